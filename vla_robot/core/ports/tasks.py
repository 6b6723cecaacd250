"""Ports of the place where tasks run: threads of this process, or processes on the nodes of a cluster.

    with runner.workers(make, count, needs) as workers:      a state for each worker, where the worker is
        for result in workers.run(task, jobs): ...           task(state, job, should_stop), one job at a time each

    with runner.share(make, callers, needs) as model:        one state, which every worker may use at once
        ...                                                  model.call(function, ...) inside a task
    placed = runner.place(make, needs)                       one state, which is not made anew when it is lost

Functions, states' makers, jobs and results may have to travel to another process: `make`, `task` and `function` are
functions of a module, or frozen dataclasses with a method `__call__`, and jobs and results are plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Resources:
    """What one worker takes of its computer, as it is declared. A runner places workers by it.

    Attributes:
        cpus: processor cores.
        memory_mb: main memory [MB].
        gpus: GPUs, which nothing else may use meanwhile.
    """

    cpus: float = 1.0
    memory_mb: int = 500
    gpus: float = 0.0


ShouldStop = Callable[[], bool]
"""True to end early: the results are not wanted any more."""


class Workers[State](Protocol):
    """Workers with a state each. They live until the `with` block ends, and may run several lists of jobs."""

    def run[Job, Result](
        self,
        task: Callable[[State, Job, ShouldStop], Result],
        jobs: Sequence[Job],
        should_stop: ShouldStop = ...,
    ) -> Generator[Result]:
        """Yield exactly one result per job, in the order of completion.

        A job whose worker is lost with its computer is run again by another worker, so that a task must give the same
        result each time. Closing the generator starts no other job; running ones end, or are abandoned.

        Args:
            task: does a job with the worker's state.
            jobs: jobs, started in order.
            should_stop: True to yield no further result; tasks on this computer see it, too.

        Raises:
            VlaError: raised by a task or by the making of a state; or a job was lost several times.
        """
        ...


class SharedObject[State](Protocol):
    """A state that all workers of a runner may use at once. It can be part of a task."""

    def call[Result](self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return function(state, *arguments). Calls may come at the same time, and one may be repeated after a loss.

        Raises:
            VlaError: raised by the function.
        """
        ...


class PlacedObject[State](Protocol):
    """A state somewhere, whose loss its owner handles. One thread at a time may call it, and any thread end it."""

    def call[Result](self, timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return function(state, *arguments), if it comes in time [s]. The first call waits until the state is made.

        Raises:
            LostError: the state is gone, was ended, or did not answer in time; it cannot be asked again.
            VlaError: raised by the function, or by the making of the state.
        """
        ...

    @property
    def lost(self) -> str:
        """Why it cannot be asked any more; empty if it can. Returns at once."""
        ...

    def close(self) -> None:
        """Close the state and end its process. May be called twice."""
        ...

    def kill(self) -> None:
        """End its process at once, from any thread: a running call raises LostError."""
        ...


class TaskRunner(Protocol):
    """Where tasks run."""

    @property
    def is_here(self) -> bool:
        """Whether tasks run in this process and see its objects and files; nothing has to be pickled then."""
        ...

    @property
    def peak_mb(self) -> float:
        """Largest main memory that the process of a worker took so far [MB]; 0 before the first result."""
        ...

    def most_workers(self, needs: Resources) -> int:
        """Return how many workers with these needs find room at once."""
        ...

    def has_gpu(self) -> bool:
        """Return whether `Resources.gpus` can be had anywhere."""
        ...

    def workers[State](
        self, make: Callable[[], AbstractContextManager[State]], count: int, needs: Resources
    ) -> AbstractContextManager[Workers[State]]:
        """Return up to `count` workers; each makes its state where it runs, before its first job."""
        ...

    def share[State](
        self, make: Callable[[], AbstractContextManager[State]], callers: int, needs: Resources, copies: int = 1
    ) -> AbstractContextManager[SharedObject[State]]:
        """Make a state that up to `callers` calls use at once; calls are spread over its copies."""
        ...

    def place[State](self, make: Callable[[], AbstractContextManager[State]], needs: Resources) -> PlacedObject[State]:
        """Begin to make a state where room is, and return at once.

        Raises:
            ContractError: no node has as much.
        """
        ...
