"""Jobs and the few workers that do them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from vla_robot.cluster.worker_pool import run_in_pool


def test_every_job_is_done_once() -> None:
    workers: list[Callable[[int], int]] = [lambda job: job * job] * 3
    assert sorted(run_in_pool(workers, range(20))) == [k * k for k in range(20)]


def test_all_workers_work_at_once_and_none_does_two_jobs_at_once() -> None:
    everybody = threading.Barrier(3)

    class Worker:
        def __init__(self) -> None:
            self.busy = threading.Lock()

        def __call__(self, job: int) -> int:
            assert self.busy.acquire(blocking=False)
            everybody.wait(timeout=60)  # breaks unless all three are in here
            self.busy.release()
            return job

    assert sorted(run_in_pool([Worker() for _ in range(3)], range(9))) == list(range(9))


def test_an_error_reaches_the_caller() -> None:
    def work(job: int) -> int:
        if job == 2:
            raise ValueError("the third")
        return job

    with pytest.raises(ValueError, match="the third"):
        list(run_in_pool([work], range(4)))


def test_closing_it_lets_the_running_job_come_to_its_end() -> None:
    begun: list[int] = []
    ended: list[int] = []
    go_on = threading.Event()

    def work(job: int) -> int:
        begun.append(job)
        assert job == 0 or go_on.wait(timeout=60)
        ended.append(job)
        return job

    with contextlib.closing(run_in_pool([work], range(9))) as results:
        assert next(results) == 0
        go_on.set()
    assert begun == ended
