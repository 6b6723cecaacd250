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
    """Ask for real-time priority (SCHED_FIFO) for this thread, 0 for none; what came of it, in words.

    Threads that are started later get an ordinary one: what writes a log must never keep the clock waiting.
    """
    if priority == 0:
        return "ordinary priority"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return f"ordinary priority, as real-time priority is not to be had here ({error})"
    return f"real-time priority {priority}"


def give_priority_back() -> None:
    """An ordinary thread again."""
    if hasattr(os, "SCHED_RESET_ON_FORK"):
        # The mark stays: only the system's administrator may take it off, and ordinary threads have nothing to reset.
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
