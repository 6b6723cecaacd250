"""The newest durations of a repeated piece of work, and their quantiles."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_robot.core.clock import NS_PER_MS

REMEMBERED = 2000
"""Number of durations that are kept."""


class RecentTimes:
    """The newest durations of one piece of work."""

    def __init__(self) -> None:
        self._times_ns: deque[int] = deque(maxlen=REMEMBERED)

    def add(self, time_ns: int) -> None:
        self._times_ns.append(time_ns)

    def quantiles_ms(self) -> dict[str, float]:
        """Return the median "p50" and the 99th percentile "p99" [ms]; nothing before the first duration."""
        if not self._times_ns:
            return {}
        p50, p99 = np.quantile(np.asarray(self._times_ns) / NS_PER_MS, (0.5, 0.99))
        return {"p50": float(p50), "p99": float(p99)}
