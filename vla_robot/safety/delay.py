"""How long an answer takes, measured while it runs: from the capture of an observation to its chunk's arrival.

Conservative on purpose. An estimate that is too long makes a policy respect a few actions more than needed; one that is
too short lets it rewrite actions that the arm has already executed. So: the longest of the recent ones, rounded up.
"""

from __future__ import annotations

from collections import deque

from vla_robot.core.clock import NS_PER_S

WINDOW = 10
"""Answers that are remembered; RTC's own queue has ten."""


class DelayEstimator:
    """The longest of the last answers.

    >>> delay = DelayEstimator(window=2)
    >>> delay.steps(rate_hz=50)
    0
    >>> for answer_ns in (90_000_000, 61_000_000, 20_000_000): delay.add(answer_ns)
    >>> delay.longest_ns, delay.steps(rate_hz=50)
    (61000000, 4)
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._delays_ns: deque[int] = deque(maxlen=window)

    def add(self, delay_ns: int) -> None:
        """Learn from one answer; a negative delay is a clock's error and counts as none."""
        self._delays_ns.append(max(delay_ns, 0))

    @property
    def longest_ns(self) -> int:
        """0 until the first answer."""
        return max(self._delays_ns, default=0)

    def steps(self, rate_hz: float) -> int:
        """Control steps that begin before an answer arrives, rounded up."""
        period_ns = round(NS_PER_S / rate_hz)
        return -(-self.longest_ns // period_ns)
