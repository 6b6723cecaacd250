"""Distributes jobs to a few workers, each of which only one thread at a time may use.

jobs --> any free worker --> results, in the order of completion
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue


def run_in_pool[Job, Result](workers: Sequence[Callable[[Job], Result]], jobs: Iterable[Job]) -> Generator[Result]:
    """Yield one result per job, in the order of completion.

    Closing the generator, or an error of a worker, waits for the running jobs and starts no others.

    Args:
        workers: each is called from one thread at a time, though not always the same.
        jobs: jobs, started in order.
    """
    free: SimpleQueue[Callable[[Job], Result]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(job: Job) -> Result:
        worker = free.get()
        try:
            return worker(job)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(len(workers))
    try:
        for done in as_completed([threads.submit(work, job) for job in jobs]):
            yield done.result()
    finally:
        threads.shutdown(cancel_futures=True)
