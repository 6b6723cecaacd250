"""Dynamic batching of many clients' requests for one model.

    clients --submit--> Line (at most one request each, oldest first) --batch--> act --answer--> each client

A batch begins when it is full, when its oldest request has waited long enough while the model was free, or when every
recent client is waiting already: one robot alone never waits for others. A client's newest request
replaces its older one, which is answered with an error. A request whose deadline passed is dropped, and a row that
cannot be answered fails alone.

>>> line = Line(max_batch=2, max_wait_ns=5_000_000)
>>> line.due_ns(now_ns=0) is None                                        # no request waits
True
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import ContractError, OverdueError, PolicyError, SupersededError, VlaError, in_words
from vla_robot.core.messages import ActionChunk, Observation

Act = Callable[[Sequence[Observation], Sequence[str | None]], list[ActionChunk]]
"""(observations, per row the statistics key that un-normalises) -> one chunk per row."""

Answer = ActionChunk | VlaError

MAX_INSTRUCTION_CHARS = 2000
MAX_PIXELS = 1 << 24
"""Most pixels of an observation: two cameras of 4K video."""

RECENT_NS = NS_PER_S
"""A client that asked within this time is expected to ask again [ns]."""

REMEMBERED = 2000
"""Number of requests whose times are kept for the quantiles."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Request for a chunk for one observation.

    Attributes:
        client: its name; a newer request of the same client replaces this one.
        observation: the client's observation.
        answer: called once with the chunk or the error, in any thread; it must not block.
        statistics_key: dataset whose statistics un-normalise; None for the policy's own.
        deadline_ns: time at which the client stops waiting, on the batcher's clock; None: never.
        since_ns: time at which it began to wait; set by the line.
    """

    client: Hashable
    observation: Observation
    answer: Callable[[Answer], None]
    statistics_key: str | None = None
    deadline_ns: int | None = None
    since_ns: int = 0


class Line:
    """Queue of waiting requests. Its methods get the time as an argument."""

    def __init__(self, max_batch: int, max_wait_ns: int, max_waiting: int = 256) -> None:
        """
        Args:
            max_batch: most rows of a batch.
            max_wait_ns: how long the first request of a batch waits for others once the model is free, so that clients
                that just got their answers can join.
            max_waiting: most clients that wait at once.
        """
        if max_batch < 1 or max_wait_ns < 0 or max_waiting < max_batch:
            raise ContractError(
                f"a batch has at least one row and no negative wait, and its clients must find room: got "
                f"{max_batch} rows, {max_wait_ns / NS_PER_MS:g} ms, room for {max_waiting}."
            )
        self._max_batch = max_batch
        self._max_wait_ns = max_wait_ns
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[Hashable, Request] = OrderedDict()
        self._asked_ns: OrderedDict[Hashable, int] = OrderedDict()
        self._free_ns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Request, now_ns: int) -> Request | None:
        """Add a request; return the client's older request, which it replaces, or None.

        Raises:
            PolicyError: too many clients wait.
        """
        older = self._waiting.get(request.client)
        if older is None and len(self._waiting) >= self._max_waiting:
            raise PolicyError(f"{self._max_waiting} clients wait already, and there is no room for more.")
        # It keeps its place: a client that asks faster must not be served later.
        self._waiting[request.client] = replace(request, since_ns=older.since_ns if older else now_ns)
        self._note(request.client, now_ns)
        return older

    def due_ns(self, now_ns: int) -> int | None:
        """Return when the next batch is due, at latest `now_ns` if it may start at once; None if no request waits."""
        if not self._waiting:
            return None
        self._forget(now_ns)
        if len(self._waiting) >= min(self._max_batch, len(self._asked_ns)):
            return now_ns
        return max(self._free_ns, next(iter(self._waiting.values())).since_ns) + self._max_wait_ns

    def free(self, now_ns: int) -> None:
        """Note that the model finished its batch."""
        self._free_ns = now_ns

    def take(self, now_ns: int) -> tuple[list[Request], list[Request]]:
        """Remove and return the next batch, and the requests whose deadline passed."""
        overdue = [r for r in self._waiting.values() if r.deadline_ns is not None and r.deadline_ns <= now_ns]
        for request in overdue:
            del self._waiting[request.client]
        batch = [self._waiting.popitem(last=False)[1] for _ in range(min(self._max_batch, len(self._waiting)))]
        for request in batch:
            self._note(request.client, now_ns)
        return batch, overdue

    def drain(self) -> list[Request]:
        """Remove and return every request."""
        rest = list(self._waiting.values())
        self._waiting.clear()
        return rest

    def _note(self, client: Hashable, now_ns: int) -> None:
        self._asked_ns[client] = now_ns
        self._asked_ns.move_to_end(client)

    def _forget(self, now_ns: int) -> None:
        """Forget clients that asked long ago, unless they still wait."""
        for client, asked_ns in list(self._asked_ns.items()):
            if now_ns - asked_ns <= RECENT_NS:
                break
            if client not in self._waiting:
                del self._asked_ns[client]


class Batcher:
    """Answers requests in batches, in the one thread that calls `run`."""

    def __init__(self, act: Act, line: Line, clock: Clock | None = None) -> None:
        """
        Args:
            act: runs the model.
            line: queue of the requests.
            clock: clock of the deadlines.
        """
        self._act = act
        self._line = line
        self._clock = clock or MonotonicClock()
        self._changed = threading.Condition()
        self._closed = False
        self.tally = Tally()

    def submit(self, request: Request) -> None:
        """Queue a request; thread-safe. Its answer comes from another thread, or from this one if it is refused."""
        older: Request | None = None
        refusal: VlaError | None = None
        with self._changed:
            try:
                if self._closed:
                    raise PolicyError("the policy server is shutting down.")
                _require_bounded(request.observation)
                older = self._line.put(request, self._clock.now_ns())
            except VlaError as error:
                refusal = error
            self._changed.notify()
        if refusal is not None:
            self._tell(request, refusal)
        if older is not None:
            self._tell(older, SupersededError("a newer request of the same client took the place of this one."))

    def ask(
        self,
        observation: Observation,
        statistics_key: str | None = None,
        timeout_s: float = 30.0,
        client: Hashable | None = None,
    ) -> ActionChunk:
        """Submit a request and wait for its answer.

        Args:
            observation: the client's observation.
            statistics_key: dataset whose statistics un-normalise.
            timeout_s: how long to wait.
            client: its name; None for a client that asks only once.

        Raises:
            VlaError: the policy's error, or OverdueError after `timeout_s`.
        """
        future: Future[Answer] = Future()
        deadline_ns = self._clock.now_ns() + round(timeout_s * NS_PER_S)
        self.submit(Request(client or object(), observation, future.set_result, statistics_key, deadline_ns))
        try:
            answer = future.result(timeout_s + 1.0)
        except FutureTimeout as error:
            raise OverdueError(f"the policy did not answer within {timeout_s:g} s.") from error
        if isinstance(answer, VlaError):
            raise answer
        return answer

    def run(self) -> None:
        """Answer batches until `close`."""
        while self._await_batch():
            try:
                self.work()
            except Exception:  # without this thread, no client would ever get an answer again
                _LOG.exception("a batch was lost; its clients wait until their deadlines")

    def work(self) -> None:
        """Answer the next batch now, even if it is not due."""
        with self._changed:
            now_ns = self._clock.now_ns()
            batch, overdue = self._line.take(now_ns)
        for request in overdue:
            late_ms = (now_ns - (request.deadline_ns or now_ns)) / NS_PER_MS
            self._tell(request, OverdueError(f"the deadline passed {late_ms:.0f} ms before the model was free."))
        if not batch:
            return
        answers = self._answers(batch)
        inference_ns = self._clock.now_ns() - now_ns
        self.tally.batch(len(batch), inference_ns)
        for request, answer in zip(batch, answers, strict=True):
            wait_ns = now_ns - request.since_ns
            self.tally.waited(wait_ns)
            self._tell(request, _with_wait(answer, wait_ns / NS_PER_MS))
        with self._changed:
            self._line.free(self._clock.now_ns())

    def close(self) -> None:
        """End `run` after its batch; requests that still wait are answered with an error."""
        with self._changed:
            self._closed = True
            rest = self._line.drain()
            self._changed.notify_all()
        for request in rest:
            self._tell(request, PolicyError("the policy server is shutting down."))

    def status(self) -> dict[str, Any]:
        """Return counts and quantiles since the start, without waiting for the model."""
        with self._changed:
            waiting = len(self._line)
        return {"waiting": waiting, **self.tally.summary()}

    def _await_batch(self) -> bool:
        """Wait until a batch is due; return False if the batcher was closed."""
        with self._changed:
            while not self._closed:
                now_ns = self._clock.now_ns()
                due_ns = self._line.due_ns(now_ns)
                if due_ns is not None and due_ns <= now_ns:
                    return True
                self._changed.wait(None if due_ns is None else (due_ns - now_ns) / NS_PER_S)
        return False

    def _answers(self, batch: Sequence[Request]) -> list[Answer]:
        """Return one answer per request. A batch that fails is halved until the faulty row is alone."""
        try:
            chunks = self._act([r.observation for r in batch], [r.statistics_key for r in batch])
            if len(chunks) != len(batch):
                raise PolicyError(f"the policy gave {len(chunks)} answers to {len(batch)} observations.")
            return list(chunks)
        except VlaError as error:
            failure = error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A bug of a policy must reach the client and not end the server. A panic of a Rust library is not an
            # Exception, and neither is what sys.exit raises.
            _LOG.exception("inference failed")
            failure = PolicyError(f"the policy failed with {in_words(error)}.")
        if len(batch) == 1:
            return [failure]
        half = len(batch) // 2
        return self._answers(batch[:half]) + self._answers(batch[half:])

    def _tell(self, request: Request, answer: Answer) -> None:
        self.tally.answered(answer)
        try:
            request.answer(answer)
        except Exception:
            _LOG.exception("an answer could not be handed over")


class Tally:
    """Counts and times of a batcher, for its status. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._inference_ns: deque[int] = deque(maxlen=REMEMBERED)
        self._wait_ns: deque[int] = deque(maxlen=REMEMBERED)

    def answered(self, answer: Answer) -> None:
        kind = type(answer).__name__ if isinstance(answer, VlaError) else "answered"
        with self._lock:
            self._counts[kind] += 1

    def batch(self, rows: int, inference_ns: int) -> None:
        with self._lock:
            self._sizes[rows] += 1
            self._inference_ns.append(inference_ns)

    def waited(self, wait_ns: int) -> None:
        with self._lock:
            self._wait_ns.append(wait_ns)

    def summary(self) -> dict[str, Any]:
        """Return counts by outcome, batches by size, and quantiles of the newest times [ms], as plain data."""
        with self._lock:
            batches = sum(self._sizes.values())
            rows = sum(size * count for size, count in self._sizes.items())
            return {
                "counts": dict(self._counts),
                "batches": {str(size): count for size, count in sorted(self._sizes.items())},
                "mean_batch": rows / batches if batches else 0.0,
                "wait_ms": _quantiles_ms(self._wait_ns),
                "inference_ms": _quantiles_ms(self._inference_ns),
            }


def _require_bounded(observation: Observation) -> None:
    """Raise ContractError for an observation so large that it would delay all other clients."""
    if len(observation.instruction) > MAX_INSTRUCTION_CHARS:
        raise ContractError(
            f"the instruction has {len(observation.instruction)} characters, allowed are {MAX_INSTRUCTION_CHARS}."
        )
    pixels = sum(image.shape[0] * image.shape[1] for image in observation.images.values() if image.ndim == 3)
    if pixels > MAX_PIXELS:
        raise ContractError(
            f"the images have {pixels} pixels together, allowed are {MAX_PIXELS}. Send them smaller: a policy resizes "
            "them to a few hundred pixels anyway."
        )


def _quantiles_ms(times_ns: Sequence[int] | deque[int]) -> dict[str, float]:
    if not times_ns:
        return {}
    p50, p99 = np.quantile(np.asarray(times_ns) / NS_PER_MS, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99)}


def _with_wait(answer: Answer, wait_ms: float) -> Answer:
    """Add the time that the observation waited to a chunk's stages."""
    if isinstance(answer, VlaError):
        return answer
    return replace(answer, stages_ms={"wait_for_batch": wait_ms, **answer.stages_ms})
