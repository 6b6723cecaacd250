"""The nouns that travel between rooms. All are frozen, and their arrays are never changed in place.

    world --Observation--> policy --ActionChunk--> guard --action--> world --StepResult--> loop

Stamps are integers in nanoseconds on the clock of the computer that made the reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""RGB frame, (H, W, 3) uint8, row 0 at the top, as a person sees it."""

Vector = NDArray[np.float64]
"""One flat row of numbers, (N,) float64. Units are those of the embodiment's dimension names."""


@dataclass(frozen=True)
class Observation:
    """What the robot sees and feels at one moment.

    Attributes:
        images: camera name -> (H, W, 3) uint8 RGB. Names and sizes are those of `Embodiment.cameras`.
        state: (S,) float64, the arm's own state; dimension names and units in `Embodiment.state`.
        instruction: what the robot is asked to do, in plain words.
        stamp_ns: when the oldest frame was captured.
        step: control steps since reset; 0 is the observation that reset returns.
        privileged: simulator truth for scripted experts and labels. Empty unless the world was built to give it, and
            never given to a learned policy.
        committed: (n, D) float64 actions, in the units of the action space, that the arm will execute from this step
            on while the answer is made; the answer's first n rows cannot change them. None when the arm waits.
        stamps_ns: camera name -> when its frame was captured, where cameras have rates of their own; empty where all
            frames are of `stamp_ns`.
    """

    images: Mapping[str, Image]
    state: Vector
    instruction: str
    stamp_ns: int
    step: int
    privileged: Mapping[str, Vector] = field(default_factory=dict[str, Vector])
    committed: NDArray[np.float64] | None = None
    stamps_ns: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class ActionChunk:
    """Consecutive actions of a policy, the first meant for the step of the observation that caused them.

    Attributes:
        actions: (T, D) float64 in the units of the embodiment's action space.
        stamp_ns: `Observation.stamp_ns` of the cause.
        step: `Observation.step` of the cause; row k is meant for control step `step + k`.
        stages_ms: where the policy spent its time, stage name -> milliseconds.
        intervention: a person took over: the actions are theirs.
        conditioned: the chunk begins with `Observation.committed`, and its other rows were chosen given those.
        rests: no command came, and the action only keeps the arm where it is: nothing to learn from. Stays here,
            as does policy_actions: they never cross the wire.
        policy_actions: (T, D) what the policy would have done in their place, where it was asked.
    """

    actions: NDArray[np.float64]
    stamp_ns: int
    step: int
    stages_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    intervention: bool = False
    conditioned: bool = False
    rests: bool = False
    policy_actions: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Clamp:
    """One limit that changed an action before it reached the arm.

    Attributes:
        dim: name of the action dimension.
        cause: which limit, e.g. "range".
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
    """One clamp for each number that a limit changed.

    Args:
        names: D action dimensions.
        cause: which limit, e.g. "range".
        wanted: (D,) values asked for.
        allowed: (D,) values sent instead.
        tolerance: by which two values may differ and still count as one, in the dimensions' units.
    """
    pairs = zip(names, wanted.tolist(), allowed.tolist(), strict=True)
    return tuple(Clamp(name, cause, w, a) for name, w, a in pairs if abs(w - a) > tolerance)


@dataclass(frozen=True)
class StepResult:
    """What one control step did.

    Attributes:
        observation: the world after the step.
        executed: (D,) float64, the action that was really sent to the arm, after every limit; where the pose was held,
            the action that keeps it. None when nothing was sent: an episode begins, the arm was stopped, or it runs
            dry. Zeros would say "go to joint zero" of an arm that takes joint positions.
        success: the task's success test holds now.
        terminated: the episode ended by itself (success held long enough, or a failure that cannot be undone).
        truncated: the horizon is reached.
        clamps: every limit that changed the action, with its cause. An action that was cut without one is a bug.
        command_ns: when the action was handed to the arm; the world's clock, as `Observation.stamp_ns`.
    """

    observation: Observation
    executed: Vector | None
    success: bool
    terminated: bool
    truncated: bool
    clamps: tuple[Clamp, ...] = ()
    command_ns: int = 0
