"""Clocks and deadlines.

A clock is injected everywhere, so that tests never sleep. Deadlines are absolute, `start + k * period`: a late tick
does not delay the ones after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Source of time."""

    def now_ns(self) -> int:
        """Return monotonic time [ns]."""
        ...

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleep until `deadline_ns`, or return at once if it has passed."""
        ...


class MonotonicClock:
    """The system's monotonic clock; on Linux all processes of one computer share it."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        while (left := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(left / NS_PER_S)


class FakeClock:
    """Clock for tests that moves only by `advance_ns` or `sleep_until_ns`."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance_ns(self, duration_ns: int) -> None:
        """Advance the time."""
        self._now_ns += duration_ns


@dataclass
class Ticker:
    """Paces a loop at absolute deadlines and counts the ticks it missed.

    A tick that is late by whole periods skips them, so that the arm gets one fresh command, not a burst of old ones.

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
        """Sleep until the next deadline in the future."""
        self.clock.sleep_until_ns(self.next_ns())

    def next_ns(self) -> int:
        """Return the next deadline in the future [ns], for a caller with other work until then."""
        self._deadline_ns += self.period_ns
        late_ns = self.clock.now_ns() - self._deadline_ns
        if late_ns > 0:
            skipped = -(-late_ns // self.period_ns)
            self.missed += skipped
            self._deadline_ns += skipped * self.period_ns
        elif late_ns < -self.period_ns:
            self._deadline_ns = self.clock.now_ns() + self.period_ns  # the clock went back: restart the schedule
        return self._deadline_ns
