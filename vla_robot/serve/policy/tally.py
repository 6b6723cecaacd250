"""Counts and times of a policy server: quantiles of the newest requests, and histograms of all since the start."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import ActionChunk
from vla_robot.serve.recent_times import RecentTimes

Answer = ActionChunk | VlaError

RETRIED = "retried"
"""Count of requests that went to a second model because their first one was lost; they are answered once."""

TIME_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a time histogram's classes [s]; longer times are in one more class."""


@dataclass
class Histogram:
    """Number of times in each class, and their sum.

    Attributes:
        counts: times of each class of TIME_BOUNDS_S, and of all longer ones; not cumulative.
        sum_s: sum of all times [s].
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(TIME_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, time_ns: int) -> None:
        time_s = time_ns / NS_PER_S
        self.counts[bisect_left(TIME_BOUNDS_S, time_s)] += 1
        self.sum_s += time_s


class Tally:
    """Counts and times of a batcher, for its status and metrics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._recent_inference, self._recent_wait = RecentTimes(), RecentTimes()
        self._inference, self._wait = Histogram(), Histogram()

    def answered(self, answer: Answer) -> None:
        kind = type(answer).__name__ if isinstance(answer, VlaError) else "answered"
        with self._lock:
            self._counts[kind] += 1

    def count(self, what: str, number: int) -> None:
        """Add to a count; 0 adds none, so that no empty count appears."""
        with self._lock:
            self._counts.update({what: number} if number else {})

    def batch(self, rows: int, inference_ns: int) -> None:
        with self._lock:
            self._sizes[rows] += 1
            self._recent_inference.add(inference_ns)
            self._inference.add(inference_ns)

    def waited(self, wait_ns: int) -> None:
        with self._lock:
            self._recent_wait.add(wait_ns)
            self._wait.add(wait_ns)

    def summary(self) -> dict[str, Any]:
        """Return counts by outcome, batches by size, and quantiles of the newest times [ms], as plain data."""
        with self._lock:
            batches = sum(self._sizes.values())
            rows = sum(size * count for size, count in self._sizes.items())
            return {
                "counts": dict(self._counts),
                "batches": {str(size): count for size, count in sorted(self._sizes.items())},
                "mean_batch": rows / batches if batches else 0.0,
                "wait_ms": self._recent_wait.quantiles_ms(),
                "inference_ms": self._recent_inference.quantiles_ms(),
            }

    def histograms(self) -> dict[str, Histogram]:
        """Return copies of the histograms "wait" (of requests) and "inference" (of batches)."""
        with self._lock:
            both = (("wait", self._wait), ("inference", self._inference))
            return {name: Histogram(list(each.counts), each.sum_s) for name, each in both}
