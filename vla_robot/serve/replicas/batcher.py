"""Batcher whose model runs in several processes: a thread for each starts its process, uses it and replaces it.

    starting --loaded--> ready --lost------> waiting (backoff) --> starting
                           |                                           ^
                           +--`restart`--> draining (its batch) -------+

All take from one line, and no state of a client is in a replica: a request may go to any of them. A batch whose replica
is lost goes back to the line and to the next one that is free, if its deadlines allow. `restart` replaces one replica
after the other, each only when the one before is ready again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vla_robot.core.clock import Clock
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Batcher, Line, ModelLostError
from vla_robot.serve.replicas.replica import Loaded, Replica, require_one_policy

LOOK_S = 0.05
"""Period at which lost processes and expired deadlines are looked for [s]."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""Pause before a lost replica is started again [s]: it doubles with each loss in a row."""

STEADY_S = 60.0
"""A replica that was ready for this long is no loss in a row [s]."""

CLOSE_S = 10.0
"""Time limit of the batches that are computed when the server ends [s]; replicas are killed then."""

_LOG = logging.getLogger(__name__)


def pause_s(losses: int) -> float:
    """Return the pause before a replica is started again [s], after so many losses in a row.

    >>> [pause_s(losses) for losses in (1, 2, 3, 20)]
    [0.5, 1.0, 2.0, 60.0]
    """
    return min(FIRST_PAUSE_S * 2.0 ** (losses - 1), LONGEST_PAUSE_S)


class ReplicatedBatcher(Batcher):
    """Answers requests with several replicas, from `start` until `close`."""

    def __init__(
        self,
        starts: Sequence[Callable[[], Replica]],
        line: Line,
        clock: Clock | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            starts: starts each replica, and returns without waiting for it.
            line: queue of the requests.
            clock: clock of the deadlines.
            on_event: gets a line of text when a replica is lost, restarted or replaced, in any thread.
        """
        super().__init__(_no_model, line, clock)
        self._on_event = on_event
        self._over = threading.Event()
        self._restart = threading.Event()
        self._seats = [_Seat(number, start, self) for number, start in enumerate(starts)]
        self._others = [
            threading.Thread(target=self._look, name="replicas", daemon=True),
            threading.Thread(target=self._restart_all, name="restart", daemon=True),
        ]

    def start(self) -> Loaded:
        """Start all replicas at the same time, and wait until each has loaded the policy; return what they loaded.

        Raises:
            VlaError: a replica cannot load it; none is left running.
        """
        for seat in self._seats:
            seat.open()
        try:
            loaded = [seat.await_first() for seat in self._seats]
        except BaseException:
            self.close()
            raise
        for thread in self._others:
            thread.start()
        return loaded[0]

    def restart(self) -> None:
        """Replace every replica, one after the other; returns at once. Safe in a signal handler."""
        self._restart.set()

    def status(self) -> dict[str, Any]:
        return {**super().status(), "replicas": [seat.status() for seat in self._seats]}

    def close(self) -> None:
        """End every replica after its batch; requests that still wait are answered with an error."""
        self._over.set()
        self._restart.set()
        super().close()
        end_s = time.monotonic() + CLOSE_S
        for seat in self._seats:
            seat.close(max(end_s - time.monotonic(), 0.0))

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self, time_s: float) -> bool:
        """Wait, and return whether the batcher was closed meanwhile."""
        return self._over.wait(time_s)

    def report(self, text: str) -> None:
        self._on_event(text)

    def _look(self) -> None:
        while not self.wait(LOOK_S):
            self.look_again()

    def _restart_all(self) -> None:
        while self._restart.wait() and not self.is_over:
            self._restart.clear()
            for seat in self._seats:
                seat.drain()
                while not seat.is_renewed and not self.wait(LOOK_S):
                    pass
            if not self.is_over:
                self.report(f"every replica was restarted ({len(self._seats)})")


class _Seat:
    """Place of one replica, and the thread that keeps a process in it."""

    def __init__(self, number: int, start: Callable[[], Replica], batcher: ReplicatedBatcher) -> None:
        self._number, self._start, self._batcher = number, start, batcher
        self._replica: Replica | None = None
        self._loaded: Loaded | None = None
        self._failure: VlaError | None = None
        self._first = threading.Event()
        self._state = "starting"
        self._draining = False
        self._losses_in_a_row = 0
        self._starts = self._rows = 0
        self._thread = threading.Thread(target=self._run, name=f"replica {number}", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def await_first(self) -> Loaded:
        """Wait for the first process; raise what kept it from loading."""
        self._first.wait()
        if self._failure is not None:
            raise self._failure
        assert self._loaded is not None
        return self._loaded

    def status(self) -> dict[str, Any]:
        replica, loaded = self._replica, self._loaded
        return {
            "state": "draining" if self._draining and self._state == "ready" else self._state,
            "pid": 0 if replica is None else replica.pid,
            "device": "" if loaded is None else loaded.device,
            "restarts": max(self._starts - 1, 0),
            "rows": self._rows,
        }

    def drain(self) -> None:
        """Let the replica finish its batch, and start another process in its place."""
        self._draining = True
        self._batcher.look_again()

    @property
    def is_renewed(self) -> bool:
        """Whether a process that was started after the last `drain` is ready."""
        return not self._draining and self._state == "ready"

    def close(self, within_s: float) -> None:
        """Wait for the end of the thread; kill its process if it takes longer."""
        if not self._thread.is_alive():
            return
        if self._state == "ready":
            self._thread.join(within_s)
        while self._thread.is_alive():
            if self._replica is not None:
                self._replica.kill()
            self._thread.join(LOOK_S)

    def _run(self) -> None:
        while not self._batcher.is_over:
            try:
                with self._start() as replica:
                    self._replica = replica
                    self._use(replica)
            except VlaError as error:
                self._note_loss(error)
            except Exception as error:  # without this thread, the place would stay empty
                _LOG.exception("replica %d failed", self._number)
                self._note_loss(ModelLostError(f"{type(error).__name__}: {error}"))
            finally:
                self._replica = None
            if self._failure is not None:
                return

    def _use(self, replica: Replica) -> None:
        """Answer batches with a process until it is drained; raise what ended it otherwise."""
        self._state, self._draining = "starting", False
        self._starts += 1
        loaded = replica.await_loaded()
        require_one_policy(self._loaded or loaded, loaded)
        self._loaded, self._state = loaded, "ready"
        ready_s = time.monotonic()
        self._first.set()
        self._batcher.run(lambda rows, keys: self._act(replica, rows, keys), lambda: self._is_needed(replica))
        if time.monotonic() - ready_s > STEADY_S:
            self._losses_in_a_row = 0
        if replica.lost:
            raise ModelLostError(f"{replica.lost}.")

    def _act(self, replica: Replica, rows: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        chunks = replica.act(rows, keys)
        self._rows += len(chunks)
        return chunks

    def _is_needed(self, replica: Replica) -> bool:
        return not replica.lost and not self._draining

    def _note_loss(self, error: VlaError) -> None:
        """Wait before the next start; at the first start, there is no other."""
        if self._batcher.is_over:
            return
        if not self._first.is_set():
            self._failure = error
            self._first.set()
            return
        self._losses_in_a_row += 1
        self._state = "waiting"
        time_s = pause_s(self._losses_in_a_row)
        self._batcher.report(f"replica {self._number}: {str(error).rstrip('.')}; started again in {time_s:g} s")
        self._batcher.wait(time_s)


def _no_model(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
    raise ModelLostError("no replica runs.")
