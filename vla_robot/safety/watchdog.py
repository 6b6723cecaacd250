"""Decides whether the arm may move, by the age of the last action, the controller's heartbeat and the emergency stop.

    RUN      actions and heartbeat are fresh
    HOLD     one is late, or the clock jumped: keep the pose. It ends as soon as both are fresh again
    STOPPED  the hold took too long, or an emergency stop was tripped: latched until a person arms the robot

                 silent                 silent for longer, or tripped
       RUN  <------------>  HOLD  ------------------------------------>  STOPPED
                 fresh        ^                                             |
                              +----------------- arm -----------------------+

The watchdog only returns a verdict. The arm's owner asks it on every tick, and brakes the arm to rest
(`SafetyFilter.brake`) as long as the verdict is not RUN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.clock import NS_PER_S, Clock
from vla_robot.core.errors import ContractError

Mode = Literal["run", "hold", "stopped"]

SILENCE = "silence"
"""Cause of a stop that no key, signal or network message tripped: no command came in time."""


@dataclass(frozen=True)
class Verdict:
    """What the arm may do now.

    Attributes:
        mode: "run" moves, "hold" keeps the pose until actions and heartbeat are fresh, "stopped" until `Watchdog.arm`.
        reason: why the mode is not "run"; empty for "run".
    """

    mode: Mode
    reason: str = ""


class Watchdog:
    """A watchdog over events and an injected clock. Only the thread that owns the arm may call it."""

    def __init__(
        self, clock: Clock, hold_after_s: float = 0.5, stop_after_s: float = 3.0, beat_after_s: float = 0.5
    ) -> None:
        """
        Args:
            clock: monotonic as a rule; when it jumps, the arm is held.
            hold_after_s: age of the last accepted action at which the arm is held.
            stop_after_s: how long the arm may be held before it is stopped.
            beat_after_s: age of the controller's last heartbeat at which the arm is held.

        Raises:
            ContractError: a time is not above 0.
        """
        for name, value in (
            ("hold_after_s", hold_after_s),
            ("stop_after_s", stop_after_s),
            ("beat_after_s", beat_after_s),
        ):
            if not value > 0:
                raise ContractError(f"{name} is {value:g} s, it must be above 0.")
        self._clock = clock
        self.hold_after_s, self.stop_after_s = hold_after_s, stop_after_s
        self._hold_after_ns = round(hold_after_s * NS_PER_S)
        self._stop_after_ns = round(stop_after_s * NS_PER_S)
        self._beat_after_ns = round(beat_after_s * NS_PER_S)
        self.counts = {"holds": 0, "silence_stops": 0, "emergency_stops": 0}
        """Holds after an action or a heartbeat was late, and stops by cause, since the start."""
        self._causes: dict[str, None] = {}  # those not released yet, in the order of their trips
        self._stopped_by = ""
        self._seen_ns = clock.now_ns()
        self._action_ns: int | None = None
        self._beat_ns: int | None = None
        self._held_ns: int | None = None
        self._waits_for = "the first action"
        self._idle = True  # no command came yet: the hold has no time limit

    @property
    def stopped_by(self) -> str:
        """What stopped the arm, until it is armed; empty when nothing did. Reads no clock, unlike `check`."""
        return self._stopped_by

    def start(self) -> None:
        """Begin an episode: count both ages from now. This does not arm a stopped robot."""
        self._now_ns()
        self._action_ns = self._beat_ns = self._seen_ns
        self._idle = False

    def accepted(self) -> None:
        """Note that an action came which may be executed."""
        self._action_ns = self._now_ns()
        self._idle = False

    def beat(self) -> None:
        """Note a heartbeat of the controller."""
        self._beat_ns = self._now_ns()

    def trip(self, cause: str) -> None:
        """Stop the robot until `arm`, which is refused until this cause is released."""
        self.counts["emergency_stops"] += not self._stopped_by
        self._causes[cause] = None
        self._stopped_by = self._stopped_by or f"emergency stop by {cause}"

    def release(self, cause: str) -> None:
        """Remove a cause, as when the e-stop button is pulled out. The robot stays stopped until `arm`."""
        self._causes.pop(cause, None)

    def arm(self) -> None:
        """End a stop. The arm is held until the first action comes.

        Raises:
            ContractError: a cause is not released, or the heartbeat is late; the message says which, and what to do.
        """
        now_ns = self._now_ns()
        if self._causes:
            raise ContractError(
                f"the robot stays stopped: {', '.join(self._causes)} still asks for it. Release that first, then arm."
            )
        if (late := self._late("heartbeat", self._beat_ns, self._beat_after_ns, now_ns)) is not None:
            raise ContractError(f"the robot stays stopped: {late}. Connect the controller first, then arm.")
        if self._stopped_by:
            self._stopped_by = ""
            self._void("the first action after it was armed")
            self._idle = True

    def check(self) -> Verdict:
        """Return what the arm may do now. Call on every tick: a pause above `hold_after_s` counts as a clock jump."""
        now_ns = self._now_ns()
        if self._stopped_by:
            return Verdict("stopped", f"{self._stopped_by}; arm the robot to go on")
        reason = self._why_hold(now_ns)
        if reason is None:
            self._held_ns = None
            return Verdict("run")
        if self._held_ns is None:
            self.counts["holds"] += self._action_ns is not None  # not while it waits for the first action
            self._held_ns = now_ns
        if not self._idle and now_ns - self._held_ns >= self._stop_after_ns:
            self.counts["silence_stops"] += 1
            self._stopped_by = f"{SILENCE}: held for {_seconds(now_ns - self._held_ns)}, as {reason}"
            return Verdict("stopped", f"{self._stopped_by}; arm the robot to go on")
        return Verdict("hold", reason)

    def _why_hold(self, now_ns: int) -> str | None:
        """Return what is late, in words; None when nothing is."""
        if self._action_ns is None:
            return f"it waits for {self._waits_for}"
        late = (
            self._late("action", self._action_ns, self._hold_after_ns, now_ns),
            self._late("heartbeat", self._beat_ns, self._beat_after_ns, now_ns),
        )
        return " and ".join(reason for reason in late if reason) or None

    def _late(self, what: str, at_ns: int | None, limit_ns: int, now_ns: int) -> str | None:
        if at_ns is None:
            return f"no {what} came"
        if now_ns - at_ns < limit_ns:
            return None
        return f"the last {what} came {_seconds(now_ns - at_ns)} ago, allowed are {_seconds(limit_ns)}"

    def _now_ns(self) -> int:
        """Read the clock. After a jump, forget all ages: the arm is held, and the time until a stop starts anew."""
        now_ns = self._clock.now_ns()
        passed_ns, self._seen_ns = now_ns - self._seen_ns, now_ns
        if passed_ns < 0:
            self._void(f"a fresh action, as the clock went back by {_seconds(-passed_ns)}")
        elif passed_ns > self._hold_after_ns:
            self._void(f"a fresh action, as the clock jumped by {_seconds(passed_ns)}")
        return now_ns

    def _void(self, waits_for: str) -> None:
        """Forget all ages, so that the arm is held until an action and a heartbeat come."""
        self._action_ns = self._beat_ns = self._held_ns = None
        self._waits_for = waits_for


def _seconds(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_S:.3g} s"
