"""Time of the stages of one inference."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any


class Instant:
    """The CPU's moment: the one at which it was made."""

    def __init__(self) -> None:
        self._s = time.perf_counter()

    def synchronize(self) -> None:
        """Do nothing; the moment was reached."""

    def elapsed_time(self, end: Instant) -> float:
        """Return the time until a later moment [ms]."""
        return (end._s - self._s) * 1e3


class StageTimer:
    """Times the stages of one inference.

    On a GPU, a CUDA event in its stream marks the end of a stage, so that the CPU need not
    wait at each one; it waits once, when the times are read.

    Attributes:
        passes: passes over tokens of the answer, without the one that read the prompt.
    """

    def __init__(self, mark: Callable[[], Any] = Instant) -> None:
        """
        Args:
            mark: makes the mark of this moment, `Instant` or torch's CUDA event; `device_timer.timer_on` has a GPU's.
        """
        self.passes = 0
        self._mark = mark
        self._names: list[str] = []
        self._marks: list[Any] = [mark()]

    def lap(self, name: str) -> None:
        """Add the time since the last stage to the stage `name`."""
        self._names.append(name)
        self._marks.append(self._mark())

    @property
    def ms(self) -> dict[str, float]:
        """Time of each stage, in order [ms]."""
        self._marks[-1].synchronize()
        booked = dict.fromkeys(self._names, 0.0)
        for name, (start, end) in zip(self._names, pairwise(self._marks), strict=True):
            booked[name] += start.elapsed_time(end)
        return booked
