"""The events of the control loop for its subscribers: recording, live view, tests. The loop does not know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vla_robot.core.messages import Clamp, Observation, StepResult, Vector
from vla_robot.loop.results import EpisodeResult


@dataclass(frozen=True)
class EpisodeStarted:
    """The world and the policy are reset.

    Attributes:
        seed: of this episode.
        observation: what the policy is about to see.
    """

    seed: int
    observation: Observation


@dataclass(frozen=True)
class StepDone:
    """One control step is over.

    Attributes:
        observation: what was seen right before this step. The policy may have decided on an older one.
        wanted: (D,) the driver's action, before any limit, in the units of the action space; None when no
            action was due and the pose was held.
        commanded: (D,) what the guard let through to the world or robot; None when no action was due.
        clamps: every limit that changed the action, the guard's and the world's.
        result: what the world did.
        stages_ms: where the time from capture to command went; see `vla_robot.loop.timing`.
        elapsed_s: since the episode began.
        intervention: a person took over: `wanted` is theirs.
        held: no action was available, and the arm held its pose.
        policy_action: (D,) what the policy would have done in the person's place, where it was asked.
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


@dataclass(frozen=True)
class StepsLost:
    """Control steps of a robot that never reached the loop: a gap, which nothing may be joined across.

    The step after a tick that was lost is lost, too: what was seen before it is not known here.

    Attributes:
        first: number of the first step that is missing, as `Observation.step` of the observation before it.
        count: how many are missing: steps `first` to `first + count - 1`.
    """

    first: int
    count: int


@dataclass(frozen=True)
class EpisodeEnded:
    """The episode is over, whatever ended it.

    Attributes:
        result: its outcome is "stopped" when it was broken off.
        observation: the last one.
    """

    result: EpisodeResult
    observation: Observation


type Event = EpisodeStarted | StepDone | StepsLost | EpisodeEnded

type Subscriber = Callable[[Event], None]
"""Called in the loop's own thread: it must return at once and leave slow work to a thread of its own."""
