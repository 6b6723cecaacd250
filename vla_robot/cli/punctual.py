"""Keeps away from a process what makes its control ticks late."""

from __future__ import annotations

import gc
import os

MAX_PRIORITY = 99


def freeze_garbage() -> None:
    """Switch off garbage collection, which stops the program for milliseconds while it visits all that was imported.

    What a control loop makes is freed by reference counts. Call `gc.collect()` where nothing is urgent, as between
    episodes: it then visits only what was made since.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def take_priority(priority: int) -> str:
    """Ask for real-time priority (SCHED_FIFO), 0 for none; what came of it, in words."""
    if priority == 0:
        return "ordinary priority"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return f"ordinary priority, as real-time priority is not to be had here ({error})"
    return f"real-time priority {priority}"
