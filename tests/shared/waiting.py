"""Waits for what another thread or process brings about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

DEADLINE_S = 240.0
"""Longer than a busy computer takes for anything that tests wait for."""


def eventually(
    holds: Callable[[], object], told: Callable[[], str] = str, deadline_s: float = DEADLINE_S, every_s: float = 0.01
) -> bool:
    """Return True as soon as a condition holds, which is looked at again every `every_s`.

    Raises:
        AssertionError: it does not hold within `deadline_s`; the message ends with what `told` returns.
    """
    end_s = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end_s, f"the condition did not become true within {deadline_s:g} s. {told()}"
        threading.Event().wait(every_s)
    return True
