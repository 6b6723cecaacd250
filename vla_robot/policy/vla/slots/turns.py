"""Callers that use one memory in turns, from any thread and on any stream of its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch


class Turns:
    """Lets one caller after the other work on a memory.

    On CUDA a caller leaves before the device has done what it asked for. Work on the same stream is done in order; on
    another one, which a thread may choose for itself, the next caller's waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = Lock()
        self._done: Any = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for the callers before, and keep others out during the `with` block."""
        with self._lock:
            if self._device.type != "cuda":
                yield
                return
            stream = torch.cuda.current_stream(self._device)
            if self._done is not None:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done = stream.record_event()
