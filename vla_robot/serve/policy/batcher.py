"""Dynamic batching of many clients' requests for one model, or for several copies of it.

    clients --submit--> Line (at most one request each, oldest first) --batch--> act --answer--> each client

A batch begins when it is full, when its oldest request has waited long enough while the model was free, or when every
recent client is waiting already: one robot alone never waits for others. A client's newest request
replaces its older one, which is answered with an error. A request whose deadline passed is dropped, and a row that
cannot be answered fails alone.

What an observation alone needs, such as resized frames, may be done while the model computes (`ahead`).

Several threads may each run a copy of the model: they take from one line, so the rules above hold for all of them
together. Idle copies share what waits, and a batch whose copy is lost goes back to the head of the line once.

>>> line = Line(max_batch=2, max_wait_ns=5_000_000)
>>> line.due_ns(now_ns=0) is None                                        # no request waits
True
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Any

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import ContractError, OverdueError, PolicyError, SupersededError, VlaError, in_words
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.ahead import Ahead, Prepare
from vla_robot.serve.policy.tally import RETRIED, Answer, Tally

Act = Callable[[Sequence[Observation], Sequence[str | None]], list[ActionChunk]]
"""(observations, per row the statistics key that un-normalises) -> one chunk per row."""

MAX_INSTRUCTION_CHARS = 2000
MAX_PIXELS = 1 << 24
"""Most pixels of an observation: two cameras of 4K video."""

RETRIES = 1
"""How often a request whose model was lost goes back to the line: a request that kills a process kills two at most."""

RECENT_NS = NS_PER_S
"""A client that asked within this time is expected to ask again [ns]."""

SUPERSEDED = "a newer request of the same client took the place of this one."

_LOG = logging.getLogger(__name__)


class ModelLostError(PolicyError):
    """The process that held the model is gone or does not answer; another copy of the model may answer."""


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
        losses: number of models that were lost while they computed its answer.
        prepared: its observation, once it is prepared; set by the batcher.
    """

    client: Hashable
    observation: Observation
    answer: Callable[[Answer], None]
    statistics_key: str | None = None
    deadline_ns: int | None = None
    since_ns: int = 0
    losses: int = 0
    prepared: Future[Observation] | None = None


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
        self._in_work: Counter[Hashable] = Counter()
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

    def put_back(self, request: Request) -> Request | None:
        """Put a request of a lost batch at the head of the line; return it if a newer one of its client waits there."""
        if request.client in self._waiting:
            return request
        self._waiting[request.client] = request
        self._waiting.move_to_end(request.client, last=False)
        return None

    def due_ns(self, now_ns: int) -> int | None:
        """Return when the next batch is due, at latest `now_ns` if it may start at once; None if no request waits."""
        if not self._waiting:
            return None
        self._forget(now_ns)
        if len(self._waiting) >= self._max_batch or not self._may_still_ask():
            return now_ns
        return max(self._free_ns, next(iter(self._waiting.values())).since_ns) + self._max_wait_ns

    def free(self, now_ns: int, batch: Sequence[Request] = ()) -> None:
        """Note that a model finished its batch."""
        self._free_ns = now_ns
        self._in_work -= Counter(request.client for request in batch)

    def take(self, now_ns: int, models: int = 1) -> tuple[list[Request], list[Request]]:
        """Remove and return the next batch, and the requests whose deadline passed.

        Args:
            now_ns: the present time [ns].
            models: number of idle copies of the model, which share what waits.
        """
        overdue = self.take_overdue(now_ns)
        rows = min(self._max_batch, math.ceil(len(self._waiting) / models))
        batch = [self._waiting.popitem(last=False)[1] for _ in range(rows)]
        for request in batch:
            self._note(request.client, now_ns)
        self._in_work.update(request.client for request in batch)
        return batch, overdue

    def take_overdue(self, now_ns: int) -> list[Request]:
        """Remove and return the requests whose deadline passed."""
        overdue = [r for r in self._waiting.values() if r.deadline_ns is not None and r.deadline_ns <= now_ns]
        for request in overdue:
            del self._waiting[request.client]
        return overdue

    def drain(self) -> list[Request]:
        """Remove and return every request."""
        rest = list(self._waiting.values())
        self._waiting.clear()
        return rest

    def _may_still_ask(self) -> bool:
        """Return whether a recent client neither waits nor is being answered."""
        return any(client not in self._waiting and client not in self._in_work for client in self._asked_ns)

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


@dataclass(frozen=True)
class _Taken:
    """A batch that left the line.

    Attributes:
        now_ns: time at which it left [ns].
        batch: the requests to answer.
        overdue: the requests whose deadline passed.
    """

    now_ns: int
    batch: Sequence[Request]
    overdue: Sequence[Request]


class Batcher:
    """Answers requests in batches, in the threads that call `run`: one, or one for each copy of the model."""

    def __init__(self, act: Act, line: Line, clock: Clock | None = None, prepare: Prepare | None = None) -> None:
        """
        Args:
            act: runs the model.
            line: queue of the requests.
            clock: clock of the deadlines.
            prepare: prepares an observation for `act` while it runs; None where that saves nothing.
        """
        self._act = act
        self._ahead = None if prepare is None else Ahead(prepare)
        self._line = line
        self._clock = clock or MonotonicClock()
        self._changed = threading.Condition()
        self._closed = False
        self._idle = 0
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
                request = self._begun(request)
                older = self._line.put(request, self._clock.now_ns())
            except VlaError as error:
                refusal = error
            self._changed.notify_all()
        if refusal is not None:
            self._tell(request, refusal)
        if older is not None:
            self._tell(older, SupersededError(SUPERSEDED))

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

    def run(self, act: Act | None = None, is_needed: Callable[[], bool] = lambda: True) -> None:
        """Answer batches until `close`.

        Args:
            act: runs the copy of the model that belongs to the calling thread; None for the batcher's model.
            is_needed: returns False when the thread shall return after its batch; read again after each `look_again`.
        """
        while (taken := self._await_batch(is_needed)) is not None:
            try:
                self._answer_all(taken, act or self._act)
            except Exception:  # without this thread, no client would ever get an answer again
                _LOG.exception("a batch was lost; its clients wait until their deadlines")

    def look_again(self) -> None:
        """Wake the threads in `run`, so that they read `is_needed`, and drop the requests whose deadline passed."""
        with self._changed:
            now_ns = self._clock.now_ns()
            overdue = self._line.take_overdue(now_ns)
            self._changed.notify_all()
        self._tell_overdue(overdue, now_ns)

    def work(self, act: Act | None = None) -> None:
        """Answer the next batch now, even if it is not due; see `run`."""
        with self._changed:
            taken = self._take(self._idle + 1)
        self._answer_all(taken, act or self._act)

    def close(self) -> None:
        """End `run` after its batch; requests that still wait are answered with an error."""
        with self._changed:
            self._closed = True
            rest = self._line.drain()
            self._changed.notify_all()
        for request in rest:
            self._tell(request, PolicyError("the policy server is shutting down."))
        if self._ahead is not None:
            self._ahead.close()

    def status(self) -> dict[str, Any]:
        """Return counts and quantiles since the start, without waiting for the model."""
        with self._changed:
            waiting = len(self._line)
        return {"waiting": waiting, **self.tally.summary()}

    def _await_batch(self, is_needed: Callable[[], bool]) -> _Taken | None:
        """Wait until a batch is due, and take it; None if the batcher was closed or the thread is not needed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed and is_needed():
                    now_ns = self._clock.now_ns()
                    due_ns = self._line.due_ns(now_ns)
                    if due_ns is not None and due_ns <= now_ns:
                        return self._take(self._idle)
                    self._changed.wait(None if due_ns is None else (due_ns - now_ns) / NS_PER_S)
            finally:
                self._idle -= 1
        return None

    def _take(self, models: int) -> _Taken:
        """Take the next batch, with the lock held; `models` are idle."""
        now_ns = self._clock.now_ns()
        batch, overdue = self._line.take(now_ns, models)
        self._changed.notify_all()  # another idle model takes what is left
        return _Taken(now_ns, batch, overdue)

    def _answer_all(self, taken: _Taken, act: Act) -> None:
        now_ns, batch = taken.now_ns, taken.batch
        self._tell_overdue(taken.overdue, now_ns)
        if not batch:
            return
        try:
            answers = self._answers(batch, act)
        except ModelLostError as error:
            self._put_back(batch, error)
            return
        inference_ns = self._clock.now_ns() - now_ns
        self.tally.batch(len(batch), inference_ns)
        for request, answer in zip(batch, answers, strict=True):
            wait_ns = now_ns - request.since_ns
            self.tally.waited(wait_ns)
            self._tell(request, _with_wait(answer, wait_ns / NS_PER_MS))
        with self._changed:
            self._line.free(self._clock.now_ns(), batch)

    def _put_back(self, batch: Sequence[Request], error: ModelLostError) -> None:
        """Return a batch to the line, whose model was lost, or answer what may not be tried again."""
        with self._changed:
            self._line.free(self._clock.now_ns(), batch)
            may_wait = [r.losses < RETRIES and not self._closed for r in batch]
            again = [r for r, may in zip(batch, may_wait, strict=True) if may]
            # The youngest first, so that the oldest ends at the head.
            older = [self._line.put_back(replace(r, losses=r.losses + 1)) for r in reversed(again)]
            self._changed.notify_all()
        superseded = [request for request in older if request is not None]
        self.tally.count(RETRIED, len(again) - len(superseded))
        for request, may in zip(batch, may_wait, strict=True):
            if not may:
                self._tell(request, error)
        for request in superseded:
            self._tell(request, SupersededError(SUPERSEDED))

    def _tell_overdue(self, overdue: Sequence[Request], now_ns: int) -> None:
        for request in overdue:
            late_ms = (now_ns - (request.deadline_ns or now_ns)) / NS_PER_MS
            self._tell(request, OverdueError(f"the deadline passed {late_ms:.0f} ms before the model was free."))

    def _answers(self, batch: Sequence[Request], act: Act) -> list[Answer]:
        """Return one answer per request. A batch that fails is halved until the faulty row is alone.

        Raises:
            ModelLostError: the model is gone; no row can be blamed.
        """
        try:
            chunks = act([self._seen(r) for r in batch], [r.statistics_key for r in batch])
            if len(chunks) != len(batch):
                raise PolicyError(f"the policy gave {len(chunks)} answers to {len(batch)} observations.")
            return list(chunks)
        except ModelLostError:
            raise
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
        return self._answers(batch[:half], act) + self._answers(batch[half:], act)

    def _begun(self, request: Request) -> Request:
        """Return a request that is being prepared, if that saves time."""
        return request if self._ahead is None else replace(request, prepared=self._ahead.begin(request.observation))

    def _seen(self, request: Request) -> Observation:
        """Return what the model gets of a request. Raises what preparing it raises."""
        if self._ahead is None or request.prepared is None:
            return request.observation
        return self._ahead.result(request.observation, request.prepared)

    def _tell(self, request: Request, answer: Answer) -> None:
        if request.prepared is not None:
            request.prepared.cancel()  # its client has its answer
        self.tally.answered(answer)
        try:
            request.answer(answer)
        except Exception:
            _LOG.exception("an answer could not be handed over")


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


def _with_wait(answer: Answer, wait_ms: float) -> Answer:
    """Add the time that the observation waited to a chunk's stages."""
    if isinstance(answer, VlaError):
        return answer
    return replace(answer, stages_ms={"wait_for_batch": wait_ms, **answer.stages_ms})
