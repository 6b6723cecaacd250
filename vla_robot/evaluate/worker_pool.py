"""Jobs for a few workers, each with something of its own that only one thread at a time may use.

jobs --> whichever worker is free --> results, as they come
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue


def run_in_pool[Job, Result](workers: Sequence[Callable[[Job], Result]], jobs: Iterable[Job]) -> Generator[Result]:
    """One result per job, in the order in which they are done.

    Closing the iteration, or an error of a worker, lets the running jobs come to their end and begins no other.

    Args:
        workers: each is called from one thread at a time, though not always from the same.
        jobs: begun in their order.
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
