"""Ports of the place where tasks run: threads of this process, or processes on the nodes of a cluster.

    with runner.workers(make, count, needs) as workers:      a state for each worker, where the worker is
        for result in workers.run(task, jobs): ...           task(state, job, should_stop), one job at a time each

    with runner.share(make, callers, needs) as model:        one state, which every worker may use at once
        ...                                                  model.call(function, ...) inside a task

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
