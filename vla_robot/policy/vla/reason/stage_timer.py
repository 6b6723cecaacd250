"""Time of the stages of one inference."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class StageTimer:
    """Times the stages of one inference.

    On a GPU, a CUDA event in its stream marks the end of a stage, so that the CPU need not
    wait at each one; it waits once, when the times are read.

    Attributes:
        passes: passes over tokens of the answer, without the one that read the prompt.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """
        Args:
            device: the model's device. Without one, or on a CPU, the CPU's clock is used.
        """
        self.passes = 0
        self._stream = torch.cuda.current_stream(device) if device is not None and device.type == "cuda" else None
        self._names: list[str] = []
        self._marks: list[Any] = [self._mark()]

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

    def _mark(self) -> torch.cuda.Event | _Instant:
        if self._stream is None:
            return _Instant()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


class _Instant:
    """The CPU's counterpart of a CUDA event that was reached."""

    def __init__(self) -> None:
        self._s = time.perf_counter()

    def synchronize(self) -> None:
        """Do nothing; the event was reached."""

    def elapsed_time(self, end: _Instant) -> float:
        """Return the time until a later event [ms]."""
        return (end._s - self._s) * 1e3
