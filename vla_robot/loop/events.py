"""Events of the control loop for its subscribers: recording, live view, tests. The loop does not know these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vla_robot.core.messages import Clamp, Observation, StepResult, Vector
from vla_robot.loop.results import EpisodeResult


@dataclass(frozen=True)
class EpisodeStarted:
    """The world and the policy were reset.

    Attributes:
        seed: seed of the episode.
        observation: the first observation.
    """

    seed: int
    observation: Observation


@dataclass(frozen=True)
class StepDone:
    """One control step is done.

    Attributes:
        observation: the observation just before this step. The policy may have decided on an older one.
        wanted: (D,) action of the policy or person before any limit, in the units of the action space; None if no
            action was due and the arm held its pose.
        commanded: (D,) action that the guard passed to the world or robot; None if no action was due.
        clamps: every limit that changed the action, the guard's and the world's.
        result: the world's result.
        stages_ms: time of each stage from capture to command [ms]; see `vla_robot.loop.timing`.
        elapsed_s: time since the episode began [s].
        intervention: a person was in control: `wanted` is theirs.
        held: no action was available, so the arm held its pose.
        policy_action: (D,) the policy's action while the person was in control, if it was asked.
        entropy: how unsure the policy was of the answer that the action is from, `ActionChunk.entropy` [nats].
        chunk_gap: how far that answer is from the policy's former plan, `ActionChunk.chunk_gap`, 0 to 1.
    """

    observation: Observation
    wanted: Vector | None
    commanded: Vector | None
    clamps: tuple[Clamp, ...]
    result: StepResult
    stages_ms: Mapping[str, float]
    elapsed_s: float
    intervention: bool = False
    held: bool = False
    policy_action: Vector | None = None
    entropy: float | None = None
    chunk_gap: float | None = None


@dataclass(frozen=True)
class StepsLost:
    """Control steps of a robot that never reached the loop: a gap, across which no steps may be joined.

    The step after a lost tick is lost too, since its observation is not known here.

    Attributes:
        first: number of the first missing step, as `Observation.step` of the observation before it.
        count: number of missing steps: `first` to `first + count - 1`.
    """

    first: int
    count: int


@dataclass(frozen=True)
class EpisodeEnded:
    """The episode ended.

    Attributes:
        result: its result; the outcome of an interrupted episode is "stopped".
        observation: the last observation.
    """

    result: EpisodeResult
    observation: Observation


type Event = EpisodeStarted | StepDone | StepsLost | EpisodeEnded

type Subscriber = Callable[[Event], None]
"""Called in the loop's thread: it must return at once and leave slow work to a thread of its own."""
