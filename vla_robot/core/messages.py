"""Messages between rooms. All are frozen, and their arrays are never changed in place.

    world --Observation--> policy --ActionChunk--> guard --action--> world --StepResult--> loop

Stamps are integers [ns] on the clock of the computer that made the reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""RGB frame, (H, W, 3) uint8, row 0 at the top, as a person sees it."""

Vector = NDArray[np.float64]
"""Row of numbers, (N,) float64, in the units of the embodiment's dimensions."""


@dataclass(frozen=True)
class Observation:
    """Frames, state and instruction at one moment.

    Attributes:
        images: camera name -> (H, W, 3) uint8 RGB. Names and sizes are those of `Embodiment.cameras`.
        state: (S,) float64, the arm's own state; dimension names and units in `Embodiment.state`.
        instruction: the task as text.
        stamp_ns: time at which the oldest frame was captured.
        step: control steps since reset; 0 is the observation that reset returns.
        privileged: the simulator's state for scripted experts and labels. Empty unless the world was built with it, and
            never given to a learned policy.
        committed: (n, D) float64 actions, in the units of the action space, that the arm will execute from this step
            on while the answer is computed; the answer's first n rows cannot change them. None if the arm waits.
        planned: (m, D) float64 actions that the arm's plan has behind the committed ones, in the same units; the answer
            may change them, and real-time chunking by guidance stays near them. None without a plan.
        stamps_ns: camera name -> time at which its frame was captured, for cameras with different rates; empty if all
            frames have `stamp_ns`.
        before: observations of the control steps before this one, oldest first, for a policy that `ReadsHistory`; fewer
            than it reads at the start of an episode. Never sent over the wire.
    """

    images: Mapping[str, Image]
    state: Vector
    instruction: str
    stamp_ns: int
    step: int
    privileged: Mapping[str, Vector] = field(default_factory=dict[str, Vector])
    committed: NDArray[np.float64] | None = None
    stamps_ns: Mapping[str, int] = field(default_factory=dict[str, int])
    planned: NDArray[np.float64] | None = None
    before: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class ActionChunk:
    """Consecutive actions of a policy; the first is for the step of the observation that caused them.

    Attributes:
        actions: (T, D) float64 in the units of the embodiment's action space.
        stamp_ns: `Observation.stamp_ns` of the cause.
        step: `Observation.step` of the cause; row k is for control step `step + k`.
        stages_ms: times of the policy's stages: name -> [ms].
        intervention: a person took over, and the actions are theirs.
        conditioned: the chunk begins with `Observation.committed`, and its other rows were generated given those.
        rests: the person gave no action, and this one only holds the arm's pose: not to be learned from. It is never
            sent over the wire, like `policy_actions`.
        policy_actions: (T, D) the policy's own actions while a person was in control, if it was asked.
        entropy: how unsure the policy was: mean entropy of the tokens that it generated [nats], 0 if each was certain.
            None for a policy that does not answer in tokens, and for a person.
        chunk_gap: how far the policy's plan is from its former one, 0 to 1: mean difference in the steps that both
            chunks have, as shares of the dimensions' ranges; see `vla_robot.loop.chunk_gap`. The loop that asks the
            policy measures it; None without such steps, and for a person.
        rows: execution horizon: number of actions, 1 to T, that are used before the policy is asked again. None: all of
            them in a world that waits; in real time, the policy is asked again at once.
    """

    actions: NDArray[np.float64]
    stamp_ns: int
    step: int
    stages_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    intervention: bool = False
    conditioned: bool = False
    rests: bool = False
    policy_actions: NDArray[np.float64] | None = None
    entropy: float | None = None
    chunk_gap: float | None = None
    rows: int | None = None

    def lasts(self, step: int) -> bool:
        """Return whether a world that waits uses an action of this chunk at a control step."""
        return 0 <= step - self.step < (self.rows or len(self.actions))


@dataclass(frozen=True)
class Clamp:
    """One limit that changed an action before it reached the arm.

    Attributes:
        dim: name of the action dimension.
        cause: name of the limit, e.g. "range".
        wanted: value asked for, in the dimension's unit.
        allowed: value sent instead.
    """

    dim: str
    cause: str
    wanted: float
    allowed: float


def clamps_of(
    names: Sequence[str], cause: str, wanted: Vector, allowed: Vector, tolerance: float = 0.0
) -> tuple[Clamp, ...]:
    """Return one clamp for each number that a limit changed.

    Args:
        names: D action dimensions.
        cause: name of the limit, e.g. "range".
        wanted: (D,) values asked for.
        allowed: (D,) values sent instead.
        tolerance: largest difference of two values that count as equal, in the dimensions' units.
    """
    pairs = zip(names, wanted.tolist(), allowed.tolist(), strict=True)
    return tuple(Clamp(name, cause, w, a) for name, w, a in pairs if abs(w - a) > tolerance)


@dataclass(frozen=True)
class StepResult:
    """Result of one control step.

    Attributes:
        observation: the world after the step.
        executed: (D,) float64, the action that was sent to the arm, after every limit; if the pose was held, the action
            that keeps it. None if no action was sent: at the start of an episode, after a stop, or in a dry run. Zeros
            would mean "go to joint zero" for an arm that takes joint positions.
        success: the task's success test is fulfilled now.
        terminated: the world ended the episode (after lasting success, or a failure that cannot be undone).
        truncated: the horizon was reached.
        clamps: every limit that changed the action, with its cause.
        command_ns: time at which the action was sent to the arm, on the clock of `Observation.stamp_ns`.
    """

    observation: Observation
    executed: Vector | None
    success: bool
    terminated: bool
    truncated: bool
    clamps: tuple[Clamp, ...] = ()
    command_ns: int = 0
