"""Runs tasks in threads of this process."""

from __future__ import annotations

import contextlib
import random
import resource
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Event
from typing import Any

from vla_robot.cluster.worker_pool import run_in_pool
from vla_robot.core.errors import LostError
from vla_robot.core.host.provenance import available_cores, main_memory_mb
from vla_robot.core.ports.tasks import PlacedObject, Resources, SharedObject, ShouldStop, Workers

MEMORY_SHARE = 0.8
"""Share of the main memory that workers may take."""
LOOK_S = 0.1
"""How often a call looks whether it was ended [s]."""


def not_stopped() -> bool:
    """Return False: nothing stops a run early."""
    return False


def process_peak_mb() -> float:
    """Return the largest main memory that this process took so far [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class LocalRunner:
    """A `TaskRunner` in this process. Threads help where tasks wait for child processes, files or a network."""

    is_here = True

    def __init__(self, most: int = 1) -> None:
        """
        Args:
            most: largest number of workers.
        """
        self._most = most

    @property
    def peak_mb(self) -> float:
        return process_peak_mb()

    def most_workers(self, needs: Resources) -> int:
        by_cores = int(available_cores() / needs.cpus)
        by_memory = int(MEMORY_SHARE * main_memory_mb() / max(needs.memory_mb, 1))
        return max(1, min(self._most, by_cores, by_memory))

    def has_gpu(self) -> bool:
        return False  # a policy in this process finds its device itself

    @contextmanager
    def workers[State](
        self, make: Callable[[], AbstractContextManager[State]], count: int, needs: Resources
    ) -> Iterator[Workers[State]]:
        with ExitStack() as stack:
            yield _LocalWorkers([stack.enter_context(make()) for _ in range(count)])

    @contextmanager
    def share[State](
        self, make: Callable[[], AbstractContextManager[State]], callers: int, needs: Resources, copies: int = 1
    ) -> Iterator[SharedObject[State]]:
        with ExitStack() as stack:
            yield _LocalObject([stack.enter_context(make()) for _ in range(copies)])

    def place[State](self, make: Callable[[], AbstractContextManager[State]], needs: Resources) -> PlacedObject[State]:
        return _LocalPlaced(make)


class _LocalWorkers[State]:
    def __init__(self, states: Sequence[State]) -> None:
        self._states = states

    def run[Job, Result](
        self,
        task: Callable[[State, Job, ShouldStop], Result],
        jobs: Sequence[Job],
        should_stop: ShouldStop = not_stopped,
    ) -> Generator[Result]:
        def worker(state: State) -> Callable[[Job], Result]:
            return lambda job: task(state, job, should_stop)

        with contextlib.closing(run_in_pool([worker(state) for state in self._states], jobs)) as results:
            yield from results


class _LocalObject[State]:
    def __init__(self, copies: Sequence[State]) -> None:
        self._copies = copies

    def call[Result](self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(random.choice(self._copies), *arguments)


class _LocalPlaced[State]:
    """A state in this process. A call that is killed ends in a thread of its own, and its result is dropped."""

    def __init__(self, make: Callable[[], AbstractContextManager[State]]) -> None:
        self._make, self._stack, self._states = make, ExitStack(), list[State]()
        self._thread = ThreadPoolExecutor(1)
        self._killed = Event()

    @property
    def lost(self) -> str:
        return "it was ended" if self._killed.is_set() else ""

    def call[Result](self, timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
        if self.lost:
            raise LostError(f"{self.lost}.")
        running, end_s = self._thread.submit(self._called, function, *arguments), time.monotonic() + timeout_s
        while not self.lost:
            done, _ = wait([running], LOOK_S)
            if done:
                return running.result()
            if time.monotonic() > end_s:
                self.kill()
        raise LostError(f"it gave no answer within {timeout_s:g} s, or was ended.")

    def close(self) -> None:
        if not self.lost:
            self._thread.submit(self._stack.close).result()
        self.kill()

    def kill(self) -> None:
        self._killed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _called[Result](self, function: Callable[..., Result], *arguments: Any) -> Result:
        if not self._states:
            self._states.append(self._stack.enter_context(self._make()))
        return function(self._states[0], *arguments)
