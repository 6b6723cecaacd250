"""Avoids delays of the control ticks: garbage collection off, real-time priority on."""

from __future__ import annotations

import gc
import os

MAX_PRIORITY = 99


def freeze_garbage() -> None:
    """Switch off garbage collection, which stops the program for milliseconds to visit all imported objects.

    Reference counts free a control loop's objects. Call `gc.collect()` when nothing is urgent, as between episodes: it
    then visits only objects made after this call.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def take_priority(priority: int) -> str:
    """Request real-time priority (SCHED_FIFO) for this thread, 0 for none; return the result in words.

    Threads that are started later have ordinary priority: a writer of logs must not delay the clock.
    """
    if priority == 0:
        return "ordinary priority"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return f"ordinary priority, since real-time priority is not permitted here ({error})"
    return f"real-time priority {priority}"


def give_priority_back() -> None:
    """Return this thread to ordinary priority."""
    if hasattr(os, "SCHED_RESET_ON_FORK"):
        # The reset-on-fork flag stays: only root may remove it, and ordinary threads have nothing to reset.
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
