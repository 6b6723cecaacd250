"""Estimates how long a policy's answer takes, from the capture of an observation to the arrival of its chunk.

An estimate that is too long makes a policy keep a few actions more than needed; one that is too short lets it rewrite
actions that the arm has already executed. The estimate is therefore the longest of the recent delays, rounded up.
"""

from __future__ import annotations

from collections import deque

from vla_robot.core.clock import NS_PER_S

WINDOW = 10
"""Number of answers that the estimate covers; RTC's own queue has ten."""


class DelayEstimator:
    """The longest delay of the last answers.

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
        """Add the delay of one answer [ns]. A negative delay is an error of a clock and counts as 0."""
        self._delays_ns.append(max(delay_ns, 0))

    @property
    def longest_ns(self) -> int:
        """Longest delay of the last answers [ns]; 0 until the first answer."""
        return max(self._delays_ns, default=0)

    def steps(self, rate_hz: float) -> int:
        """Return the number of control steps that begin before an answer arrives, rounded up."""
        period_ns = round(NS_PER_S / rate_hz)
        return -(-self.longest_ns // period_ns)
