"""The port of a robot that moves on its own clock, whether or not an answer comes in time.

A World waits for its next action; a Robot does not. It ticks at its rate, plays what is due, and holds otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector

Mode = Literal["run", "hold", "stopped"]
"""run: an action was played; hold: the pose was held, the next action goes on; stopped: until it is armed."""


@dataclass(frozen=True)
class Tick:
    """One period of the robot's clock.

    Attributes:
        result: what was done, and the observation after it; `observation.step` is the tick's number in its episode.
        mode: whether an action was played.
        reason: why none was, in plain words; empty in mode "run".
        settled: newest `ActionChunk.step` that was played or refused; -1 before the first. A controller whose chunk is
            settled sees its effect in `result.observation`.
        cause_ns: `stamp_ns` of the observation that caused the action; 0 when the pose was held.
        cause_step: `ActionChunk.step` of the chunk that was played, as the controller sent it; -1 when the pose was
            held.
        wanted: (D,) the action that was due, before the limits of the robot's side and after the splice of chunks; None
            when none was.
        late: rows of chunks skipped in this episode because their tick had passed, or because they were too old.
        intervention: the action that was played came from a person who took over from the policy.
    """

    result: StepResult
    mode: Mode
    reason: str
    settled: int
    cause_ns: int
    late: int
    intervention: bool = False
    cause_step: int = -1
    wanted: Vector | None = None

    @property
    def over(self) -> bool:
        """Whether the episode ended with this tick."""
        return self.result.terminated or self.result.truncated or self.mode == "stopped"


@dataclass(frozen=True)
class TimeLimits:
    """What a bridge asks of the time of actions.

    Attributes:
        max_age_s: an action is refused when its frames are older, beyond what was planned.
        hold_after_s: the arm is held when no action came for this long.
        stop_after_s: it is stopped when it was held for this long.
    """

    max_age_s: float
    hold_after_s: float
    stop_after_s: float

    @property
    def stop_s(self) -> float:
        """The arm is stopped when no action came for this long."""
        return self.hold_after_s + self.stop_after_s


class Robot(Protocol):
    """An arm with a clock of its own, here or behind a bridge."""

    @property
    def embodiment(self) -> Embodiment:
        """What actions, state and cameras mean here."""
        ...

    @property
    def instruction(self) -> str:
        """The task in plain words."""
        ...

    def begin(self, seed: int) -> Observation:
        """Begin an episode; the clock starts. What is seen before the first tick, unless that was lost on the way."""
        ...

    def send(self, chunk: ActionChunk) -> None:
        """Hand over actions; returns at once.

        Raises:
            PolicyError: an earlier chunk was refused.
        """
        ...

    def ticks(self, timeout_s: float) -> list[Tick]:
        """Every tick of this episode that arrived since the last call, in order; waits for one when there is none.

        Ticks are numbered by `result.observation.step`, which grows by one a tick; the tick that stops the arm has the
        number of the one before it. Where the numbers jump, ticks were lost on the way, or arrived faster than they
        were taken. A recorder must not join the ticks on both sides of such a gap.

        Args:
            timeout_s: how long to wait for the first one; 0 returns at once.

        Returns:
            Oldest first; empty when none came in time.
        """
        ...

    def end(self) -> None:
        """Break the episode off; the arm holds."""
        ...


@runtime_checkable
class ReportsStatus(Protocol):
    """A robot whose bridge can be asked how it stands, beside its ticks."""

    def status(self) -> Mapping[str, Any]:
        """With `mode` and `reason`, in words. Raises TransportError when no answer comes."""
        ...


class Motors(Protocol):
    """Joints and a gripper that are told positions."""

    def read(self) -> tuple[Vector, float]:
        """(J,) measured joints [rad], and the gripper's opening, 0 to 1."""
        ...

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Go there; what was really sent."""
        ...
