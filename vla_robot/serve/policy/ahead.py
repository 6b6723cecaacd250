"""Work on single observations before their batch begins, in threads beside the model's.

    submit --begin--> a thread prepares it --> result --> its batch
             `--> cancelled, if a newer request of the client replaces it or its deadline passes

Nothing waits for a whole batch: which requests form one is decided as late as without this, and the newest of each
client is among them. A request that no thread has begun when its batch does is prepared by the model's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from vla_robot.core.messages import Observation

Prepare = Callable[[Observation], Observation]
"""Maps an observation to one to which the model gives the same answer with less work; see the port PreparesAhead."""

MOST_THREADS = 4
"""Threads that prepare, at most; a core stays for the network and one for the model."""


class Ahead:
    """Prepares observations; every method may be called in any thread."""

    def __init__(self, prepare: Prepare, threads: int | None = None) -> None:
        """
        Args:
            prepare: may be called in several threads at the same time.
            threads: how many; None chooses by the cores of this process.
        """
        self._prepare = prepare
        cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(threads or max(1, min(MOST_THREADS, cores - 2)), "prepare")

    def begin(self, observation: Observation) -> Future[Observation]:
        """Let a thread prepare an observation, in the order of these calls."""
        return self._pool.submit(self._prepare, observation)

    def result(self, observation: Observation, begun: Future[Observation]) -> Observation:
        """Return a prepared observation, from its thread or, if none has begun it, from this one.

        Raises:
            ContractError: it does not fit the model; so does any later call.
        """
        return self._prepare(observation) if begun.cancel() else begun.result()

    def close(self) -> None:
        """Begin nothing more, and wait for what is being prepared."""
        self._pool.shutdown(cancel_futures=True)
