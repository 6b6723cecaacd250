"""Real-time priority is the control clock's alone."""

from __future__ import annotations

import os
import threading

import pytest

from vla_robot.cli.common.realtime import give_priority_back, take_priority


def _policy_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(not hasattr(os, "SCHED_RESET_ON_FORK"), reason="Linux's scheduler is meant")
def test_a_thread_that_is_started_by_the_control_clock_has_ordinary_priority() -> None:
    told = take_priority(1)
    try:
        if not told.startswith("real-time"):
            pytest.skip(told)
        assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        assert _policy_of_a_new_thread() == os.SCHED_OTHER
    finally:
        give_priority_back()
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
