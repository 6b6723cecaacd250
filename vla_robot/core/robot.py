"""Types of the port `Robot`: what a robot with its own clock reports of each period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.messages import StepResult, Vector

Mode = Literal["run", "hold", "stopped"]
"""run: an action was executed; hold: the pose was held until the next action; stopped: until the robot is armed."""


@dataclass(frozen=True)
class Tick:
    """One period of the robot's clock.

    Attributes:
        result: the executed action and the observation after it; `observation.step` is the tick's number.
        mode: whether an action was executed.
        reason: why none was; empty in mode "run".
        last_processed_step: newest `ActionChunk.step` that was executed or refused; -1 before the first. A controller
            whose chunk is processed sees its effect in `result.observation`.
        obs_stamp_ns: `stamp_ns` of the observation that caused the action; 0 if the pose was held.
        cause_step: `ActionChunk.step` of the executed chunk, as the controller sent it; -1 if the pose was held.
        wanted: (D,) the action that was due, after merging chunks and before the limits of the robot's side; None if
            there was none.
        dropped_rows: number of rows of chunks that were skipped in this episode, since their tick had passed or they
            were too old.
        intervention: the executed action came from a person who took over from the policy.
        entropy: `ActionChunk.entropy` of the executed chunk [nats]; None if it has none, or the pose was held.
        chunk_gap: `ActionChunk.chunk_gap` of the executed chunk, 0 to 1; None likewise.
    """

    result: StepResult
    mode: Mode
    reason: str
    last_processed_step: int
    obs_stamp_ns: int
    dropped_rows: int
    intervention: bool = False
    cause_step: int = -1
    wanted: Vector | None = None
    entropy: float | None = None
    chunk_gap: float | None = None

    @property
    def over(self) -> bool:
        """Whether the episode ended with this tick."""
        return self.result.terminated or self.result.truncated or self.mode == "stopped"


@dataclass(frozen=True)
class TimeLimits:
    """A bridge's limits on the age of actions and the silence between them.

    Attributes:
        max_age_s: an action is refused if its frames are older than planned by this.
        hold_after_s: the arm is held if no action came for this long.
        stop_after_s: the arm is stopped if it was held for this long.
    """

    max_age_s: float
    hold_after_s: float
    stop_after_s: float

    @property
    def stop_s(self) -> float:
        """Time without an action after which the arm is stopped [s]."""
        return self.hold_after_s + self.stop_after_s
