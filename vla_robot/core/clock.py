"""Clocks and deadlines.

One clock is injected everywhere, so that tests never sleep. Deadlines are absolute, `start + k * period`: a late tick
does not push the ones after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Where time comes from."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        ...

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at `deadline_ns`, or at once when it has passed."""
        ...


class MonotonicClock:
    """The system's monotonic clock; on Linux it is common to all processes of one computer."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        while (left := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(left / NS_PER_S)


class FakeClock:
    """A clock that moves only when told, or when a thread sleeps on it."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance_ns(self, duration_ns: int) -> None:
        """Let time pass."""
        self._now_ns += duration_ns


@dataclass
class Ticker:
    """Paces a loop at absolute deadlines and counts the ticks it missed.

    A tick that is late by whole periods skips them: the arm gets one fresh command, not a burst of old ones.

    >>> clock = FakeClock()
    >>> ticker = Ticker(clock, period_ns=100)
    >>> ticker.wait(); clock.advance_ns(250); ticker.wait()
    >>> clock.now_ns(), ticker.missed
    (400, 2)
    """

    clock: Clock
    period_ns: int
    missed: int = 0

    def __post_init__(self) -> None:
        self._deadline_ns = self.clock.now_ns()

    def wait(self) -> None:
        """Sleep until the next deadline that still lies ahead."""
        self.clock.sleep_until_ns(self.next_ns())

    def next_ns(self) -> int:
        """The next deadline that still lies ahead, for a caller that has other work until then."""
        self._deadline_ns += self.period_ns
        late_ns = self.clock.now_ns() - self._deadline_ns
        if late_ns > 0:
            skipped = -(-late_ns // self.period_ns)
            self.missed += skipped
            self._deadline_ns += skipped * self.period_ns
        elif late_ns < -self.period_ns:
            self._deadline_ns = self.clock.now_ns() + self.period_ns  # the clock went back: the schedule begins anew
        return self._deadline_ns
