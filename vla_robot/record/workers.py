"""Records demonstrations in several processes, each with its own world, and yields them in the order of their seeds.

    seeds --> worker 0 \\
    seeds --> worker 1  --> in order --> the iterator

The order, and so the dataset, is the same for any number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from vla_robot.core.errors import VlaError, WorldError
from vla_robot.core.host.closeable import Closeable
from vla_robot.data.demonstration import Demonstration
from vla_robot.record.collect import Collector

Build = Callable[[], contextlib.AbstractContextManager[Collector]]
"""Function that builds a worker's world and policies. It is sent to the worker, so it must be picklable: a function of
a module, or an instance of a module's dataclass."""

STOP_TIMEOUT_S = 2.0


def collect_in_processes(build: Build, seeds: Sequence[int], num_workers: int) -> Generator[Demonstration]:
    """Yield one demonstration per seed, in the order of the seeds.

    The workers end when the iteration ends, is closed, or fails, and when this process dies.

    Args:
        build: builds each worker's collector.
        seeds: the episodes' seeds.
        num_workers: largest number of processes.

    Raises:
        VlaError: a worker raised it.
        WorldError: a worker died.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(build)) for _ in range(min(num_workers, len(seeds)))]
        waiting = iter(seeds)
        finished: dict[int, Demonstration] = {}
        for worker in workers:
            worker.begin(next(waiting, None))
        for seed in seeds:
            while seed not in finished:
                for worker in _ready(workers):
                    demonstration = worker.take()
                    finished[demonstration.seed] = demonstration
                    worker.begin(next(waiting, None))
            yield finished.pop(seed)


class _Worker(Closeable):
    """One process and the pipe to it."""

    def __init__(self, build: Build) -> None:
        # "fork" would copy an OpenGL context, and locks that no thread of the child would ever release.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(build, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.busy = False

    def close(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def begin(self, seed: int | None) -> None:
        """Start on a seed; None leaves the worker idle."""
        self.busy = seed is not None
        if seed is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: `take` raises the error
                self.pipe.send(seed)

    def take(self) -> Demonstration:
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(STOP_TIMEOUT_S)
            raise WorldError(
                f"a recording process ended unexpectedly with exit code {self._process.exitcode}. Finished episodes "
                "are kept, and the same command goes on after them. If memory ran out, use --workers 1."
            ) from error
        if isinstance(answer, VlaError):
            raise answer
        return answer


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until at least one busy worker has answered. Return those that have."""
    pipes = wait([worker.pipe for worker in workers if worker.busy])
    return [worker for worker in workers if worker.pipe in pipes]


def _work(build: Build, pipe: Connection) -> None:
    """Record a demonstration for each seed from the pipe, until it closes."""
    for each in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all processes; the parent handles them
        signal.signal(each, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the workers already use all cores
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            with build() as collector:
                while True:
                    pipe.send(collector.collect(pipe.recv()))
        except VlaError as error:
            pipe.send(error)
