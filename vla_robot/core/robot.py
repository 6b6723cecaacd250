"""What a robot with a clock of its own says of each period: the nouns of the port `Robot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.messages import StepResult, Vector

Mode = Literal["run", "hold", "stopped"]
"""run: an action was played; hold: the pose was held, the next action goes on; stopped: until it is armed."""


@dataclass(frozen=True)
class Tick:
    """One period of the robot's clock.

    Attributes:
        result: what was done, and the observation after it; `observation.step` is the tick's number in its episode.
        mode: whether an action was played.
        reason: why none was, in plain words; empty in mode "run".
        last_processed_step: newest `ActionChunk.step` that was played or refused; -1 before the first. A controller
            whose chunk is processed sees its effect in `result.observation`.
        obs_stamp_ns: `stamp_ns` of the observation that caused the action; 0 when the pose was held.
        cause_step: `ActionChunk.step` of the chunk that was played, as the controller sent it; -1 when the pose was
            held.
        wanted: (D,) the action that was due, before the limits of the robot's side and after the splice of chunks; None
            when none was.
        dropped_rows: rows of chunks skipped in this episode because their tick had passed, or because they were too
            old.
        intervention: the action that was played came from a person who took over from the policy.
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
