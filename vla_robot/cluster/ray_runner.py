"""Runs tasks on the nodes of a Ray cluster.

    driver                                   node
    jobs --one at a time, to any free--->    worker: an actor with a state of its own
         <------------result---------------
    a worker is lost with its node: its job goes to the front of the queue, and another worker starts where room is
    a node joins: workers start there, up to the number that was asked for

Ray pickles between its own processes: a Ray cluster is trusted (docs/security.md).
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

from vla_robot.cluster.local import not_stopped, process_peak_mb
from vla_robot.cluster.versions import differences, present
from vla_robot.core.errors import ContractError, LostError, TransportError, VlaError
from vla_robot.core.ports.tasks import PlacedObject, Resources, SharedObject, ShouldStop, Workers

POLL_S = 0.3
"""Longest time between two looks at the stop flag and at new nodes [s]."""
MOST_ATTEMPTS = 4
"""A job that was lost so often is not run again: it may be what kills its worker, e.g. for want of memory."""
NO_NODE_S = 120.0
"""How long to wait for a node when all that had room are gone [s]."""
SHARED_OPEN_S = 900.0
"""How long placing and making a shared object may take [s]: weights are read from a shared disk."""
CLOSING_S = 5.0
"""How long a worker may take to close its state before it is killed [s]."""

_MB = 10**6


class RayRunner:
    """A `TaskRunner` of the cluster that this process is connected to; see `ray_connection`."""

    is_here = False

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.peak_mb = 0.0

    def nodes(self) -> list[Mapping[str, float]]:
        """Return what each living node has in all: "CPU", "memory" [bytes], "GPU"."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def most_workers(self, needs: Resources) -> int:
        return sum(_fitting(node, needs) for node in self.nodes())

    def has_gpu(self) -> bool:
        return any(node.get("GPU", 0) >= 1 for node in self.nodes())

    @contextmanager
    def workers[State](
        self, make: Callable[[], AbstractContextManager[State]], count: int, needs: Resources
    ) -> Iterator[Workers[State]]:
        self._require_room(needs)
        workers: _RayWorkers[State] = _RayWorkers(self._ray, self, make, count, needs)
        try:
            yield workers
        finally:
            workers.close()

    @contextmanager
    def share[State](
        self, make: Callable[[], AbstractContextManager[State]], callers: int, needs: Resources, copies: int = 1
    ) -> Iterator[SharedObject[State]]:
        self._require_room(needs, copies)
        options = _options(needs) | {"max_concurrency": callers + 1, "max_restarts": -1, "max_task_retries": -1}
        made = [self._ray.remote(_Holder).options(**options).remote(make, present()) for _ in range(copies)]
        try:
            opening = [actor.open.remote() for actor in made]
            _, late = self._ray.wait(opening, num_returns=copies, timeout=SHARED_OPEN_S)
            if late:
                raise TransportError(
                    f"{len(late)} of {copies} shared objects with {_in_words(needs)} each were not ready within "
                    f"{SHARED_OPEN_S:g} s: the nodes may have no room beside other work, or the disk is slow."
                )
            for reference in opening:
                _result(self._ray, reference)
            yield _RayObject(made)
        finally:
            _end(self._ray, made)

    def place[State](self, make: Callable[[], AbstractContextManager[State]], needs: Resources) -> PlacedObject[State]:
        self._require_room(needs)
        return _RayPlaced(self._ray, make, needs)

    def _require_room(self, needs: Resources, count: int = 1) -> None:
        room = self.most_workers(needs)
        if room < count:
            raise ContractError(
                f"the cluster has room for {room} of {count} workers with {_in_words(needs)} each. Its nodes have "
                f"{_nodes_in_words(self.nodes())}."
            )


def _fitting(node: Mapping[str, float], needs: Resources) -> int:
    asked = {"CPU": needs.cpus, "memory": needs.memory_mb * _MB, "GPU": needs.gpus}
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in asked.items() if amount)


def _options(needs: Resources) -> dict[str, Any]:
    return {"num_cpus": needs.cpus, "memory": needs.memory_mb * _MB, "num_gpus": needs.gpus}


def _in_words(needs: Resources) -> str:
    gpus = f", {needs.gpus:g} GPUs" if needs.gpus else ""
    return f"{needs.cpus:g} cores, {needs.memory_mb} MB{gpus}"


def _nodes_in_words(nodes: Sequence[Mapping[str, float]]) -> str:
    told = [
        f"{n.get('CPU', 0):g} cores, {n.get('memory', 0) / _MB:.0f} MB" + (f", {n['GPU']:g} GPUs" if "GPU" in n else "")
        for n in nodes
    ]
    return "; ".join(told) or "nothing: no node is alive"


class _Holder[State]:
    """An actor with a state. It is made by `open`, not by the constructor, whose errors Ray would wrap."""

    def __init__(self, make: Callable[[], AbstractContextManager[State]], driver: Mapping[str, str]) -> None:
        self._make, self._driver = make, driver
        self._stack, self._closed = ExitStack(), Event()
        self._states: list[State] = []

    def open(self) -> None:
        """Make the state. A node that joined late is compared with the driver only here."""
        if problem := differences(present(), self._driver):
            raise ContractError(f"a node of the cluster differs from the driver: {problem}.")
        self._require_state()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self._require_state(), *arguments)

    def work(self, task: Callable[[State, Any, ShouldStop], Any], job: Any) -> tuple[Any, float]:
        """Return the task's result, and the largest memory of this process [MB]."""
        return task(self._require_state(), job, not_stopped), process_peak_mb()

    def until_closed(self) -> None:
        """Return when the state is closed; the caller sees at once when this process is gone."""
        self._closed.wait()

    def close(self) -> None:
        self._states.clear()
        self._stack.close()
        self._closed.set()

    def _require_state(self) -> State:
        if not self._states:  # also after Ray restarted a shared object elsewhere
            self._states.append(self._stack.enter_context(self._make()))
        return self._states[0]


class _RayObject[State]:
    """A `SharedObject`; Ray sends it to workers as part of a task."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = tuple(actors)
        self._turn = itertools.count(random.randrange(len(self._actors)))

    def __reduce__(self) -> tuple[type[_RayObject[State]], tuple[tuple[Any, ...]]]:
        """Pickle the actors' handles; each worker begins with a copy of its own choice."""
        return _RayObject, (self._actors,)

    def call[Result](self, function: Callable[..., Result], *arguments: Any) -> Result:
        import ray

        actor = self._actors[next(self._turn) % len(self._actors)]
        return _result(ray, actor.call.remote(function, *arguments))


class _RayPlaced[State]:
    """A `PlacedObject`: an actor that Ray does not start again."""

    def __init__(self, ray: Any, make: Callable[[], AbstractContextManager[State]], needs: Resources) -> None:
        # One call at a time, and beside it the one that watches.
        options = _options(needs) | {"max_concurrency": 2, "max_restarts": 0, "max_task_retries": 0}
        self._ray, self._actor = ray, ray.remote(_Holder).options(**options).remote(make, present())
        self._watch = self._actor.until_closed.remote()
        self._opening: Any = self._actor.open.remote()
        self._ended = ""

    @property
    def lost(self) -> str:
        if not self._ended and self._ray.wait([self._watch], timeout=0)[0]:
            self._ended = "its process or its node is gone"
        return self._ended

    def call[Result](self, timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
        if self._ended:
            raise LostError(f"{self._ended}.")
        end_s = time.monotonic() + timeout_s
        if self._opening is not None:
            self._await(self._opening, timeout_s)
            self._opening = None
        return self._await(self._actor.call.remote(function, *arguments), end_s - time.monotonic())

    def close(self) -> None:
        if not self._ended:
            self._ended = "it was closed"
            _end(self._ray, [self._actor])

    def kill(self) -> None:
        self._ended = self._ended or "it was ended"
        _end(self._ray, [self._actor], at_once=True)

    def _await(self, reference: Any, timeout_s: float) -> Any:
        if not self._ray.wait([reference], timeout=max(timeout_s, 0.0))[0]:
            self.kill()
            raise LostError(f"it gave no answer within {timeout_s:g} s.")
        try:
            return _result(self._ray, reference)
        except LostError:
            self._ended = self._ended or "its process or its node is gone"
            raise


@dataclass(frozen=True)
class _Try:
    """A job, and how many workers were lost with it."""

    job: Any
    lost: int = 0


class _RayWorkers[State]:
    """A set of actors that grows with the cluster, up to a number."""

    def __init__(
        self,
        ray: Any,
        runner: RayRunner,
        make: Callable[[], AbstractContextManager[State]],
        count: int,
        needs: Resources,
    ) -> None:
        self._ray, self._runner = ray, runner
        self._make, self._count, self._needs = make, count, needs
        self._starting: dict[Any, Any] = {}  # reference of `open` -> actor
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Try]] = {}  # reference of a result -> actor, job
        self._without_room_since_s: float | None = None
        self._not_opened = 0  # workers in a row that were lost before they had a state

    def run[Job, Result](
        self,
        task: Callable[[State, Job, ShouldStop], Result],
        jobs: Sequence[Job],
        should_stop: ShouldStop = not_stopped,
    ) -> Generator[Result]:
        waiting = deque(_Try(job) for job in jobs)
        sent = self._ray.put(task)
        try:
            while (waiting or self._busy) and not should_stop():
                self._grow(len(waiting) + len(self._busy))
                self._hand_out(sent, waiting)
                yield from self._results(waiting)
        finally:
            _end(self._ray, [actor for actor, _ in self._busy.values()], at_once=True)
            self._busy.clear()

    def close(self) -> None:
        _end(self._ray, self._idle)
        _end(self._ray, self._starting.values(), at_once=True)

    def _grow(self, wanted: int) -> None:
        """Start workers where room is, as many as have a job."""
        there = len(self._starting) + len(self._idle) + len(self._busy)
        if there >= min(self._count, wanted):
            return
        room = self._runner.most_workers(self._needs)
        self._require_hope(room + there)
        for _ in range(min(self._count, wanted, room) - there):
            actor = self._ray.remote(_Holder).options(**_options(self._needs)).remote(self._make, present())
            self._starting[actor.open.remote()] = actor

    def _require_hope(self, places: int) -> None:
        """Raise TransportError if no node has had room for long."""
        now_s = time.monotonic()
        if places:
            self._without_room_since_s = None
        elif self._without_room_since_s is None:
            self._without_room_since_s = now_s
        elif now_s - self._without_room_since_s > NO_NODE_S:
            raise TransportError(
                f"no node of the cluster has had room for {_in_words(self._needs)} for {NO_NODE_S:g} s. What is "
                "finished is kept, and the same command goes on after it."
            )

    def _hand_out(self, sent: Any, waiting: deque[_Try]) -> None:
        while waiting and self._idle:
            actor, each = self._idle.pop(), waiting.popleft()
            self._busy[actor.work.remote(sent, each.job)] = actor, each

    def _results(self, waiting: deque[_Try]) -> Iterator[Any]:
        """Wait for a moment; yield results, and put the jobs of lost workers back."""
        references = [*self._starting, *self._busy]
        if not references:
            time.sleep(POLL_S)
            return
        done, _ = self._ray.wait(references, num_returns=1, timeout=POLL_S)
        for reference in done:
            if reference in self._starting:
                self._opened(reference)
            else:
                yield from self._finished(reference, waiting)

    def _opened(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            _result(self._ray, reference)
        except LostError as error:  # its node is gone; `_grow` starts another
            self._not_opened += 1
            if self._not_opened == MOST_ATTEMPTS:
                raise TransportError(
                    f"{MOST_ATTEMPTS} workers in a row ended before their first task: {error}"
                ) from error
            return
        self._not_opened = 0
        self._idle.append(actor)

    def _finished(self, reference: Any, waiting: deque[_Try]) -> Iterator[Any]:
        actor, each = self._busy.pop(reference)
        try:
            result, peak_mb = _result(self._ray, reference)
        except LostError as error:
            _end(self._ray, [actor], at_once=True)
            waiting.appendleft(_Try(each.job, each.lost + 1))
            if each.lost + 1 == MOST_ATTEMPTS:
                raise TransportError(
                    f"a task lost its worker {MOST_ATTEMPTS} times: {error}. Does it need more memory than declared? "
                    "What is finished is kept, and the same command goes on after it."
                ) from error
            return
        self._idle.append(actor)
        self._runner.peak_mb = max(self._runner.peak_mb, peak_mb)
        yield result


def _result(ray: Any, reference: Any) -> Any:
    """Return a result. Raises our errors as they were raised there, LostError where a process or a node is gone."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VlaError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:  # an actor, its node or a result in its store is gone
        raise LostError(" ".join(str(error).split())[:300]) from error


def _end(ray: Any, actors: Any, at_once: bool = False) -> None:
    """Close the states of actors, and end them."""
    ending = list(actors)
    with suppress(Exception):  # the cluster may be gone, and its actors with it
        if ending and not at_once:
            ray.wait([actor.close.remote() for actor in ending], num_returns=len(ending), timeout=CLOSING_S)
        for actor in ending:
            ray.kill(actor)
