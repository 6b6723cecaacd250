"""States and tasks for runners; in a module that other processes can import, since pickle names functions."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vla_robot.core.errors import DataError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports.tasks import SharedObject, ShouldStop
from vla_robot.serve.replicas.program import Ready
from vla_robot.testing import toy_embodiment


@contextlib.contextmanager
def counter() -> Iterator[list[int]]:
    """A state that remembers its jobs."""
    yield []


@contextlib.contextmanager
def refusing() -> Iterator[list[int]]:
    """A state that cannot be made."""
    raise DataError("no state can be made here.")
    yield []


def square(state: list[int], job: int, should_stop: ShouldStop) -> int:
    state.append(job)
    return job * job


def refuse_two(state: list[int], job: int, should_stop: ShouldStop) -> int:
    if job == 2:
        raise DataError("the third job is refused.")
    return job


def process(state: list[int], job: int, should_stop: ShouldStop) -> tuple[int, int, int]:
    """Return the job, the process, and how many jobs this state has done."""
    state.append(job)
    return job, os.getpid(), len(state)


class SlowSquare:
    """Squares; each job waits until a file exists, so that a test decides when jobs end."""

    def __init__(self, gate: Path, begun: Path) -> None:
        self._gate, self._begun = gate, begun

    def __call__(self, state: list[int], job: int, should_stop: ShouldStop) -> int:
        with self._begun.open("a") as file:
            file.write(f"{job}\n")
        while not self._gate.exists() and not should_stop():
            time.sleep(0.05)
        return job * job


class Dies:
    """Ends its process at one job, always."""

    def __call__(self, state: list[int], job: int, should_stop: ShouldStop) -> int:
        if job == 1:
            os._exit(1)
        return job


class Model:
    """A shared state: counts calls, and how many came at the same time."""

    def __init__(self) -> None:
        self._lock, self.calls = threading.Lock(), 0

    def ask(self, question: int) -> int:
        with self._lock:
            self.calls += 1
        return question + 1000


@contextlib.contextmanager
def model() -> Iterator[Model]:
    yield Model()


def ask(state: Model, question: int) -> int:
    if question < 0:
        raise DataError("a negative question.")
    return state.ask(question)


def calls(state: Model) -> int:
    return state.calls


class Asking:
    """A task that asks a shared object."""

    def __init__(self, shared: SharedObject[Model]) -> None:
        self._shared = shared

    def __call__(self, state: list[int], job: int, should_stop: ShouldStop) -> int:
        return self._shared.call(ask, job)


@contextlib.contextmanager
def served() -> Iterator[Ready]:
    """A policy for a replica: doubles the state, and says its process."""

    def act(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        told = {"pid": float(os.getpid())}
        return [ActionChunk(2 * o.state[None], o.stamp_ns, o.step, told) for o in observations]

    yield Ready(act, toy_embodiment(), "a toy")


@contextlib.contextmanager
def refused() -> Iterator[Ready]:
    """A policy that cannot be loaded."""
    raise DataError("no policy can be loaded here.")
    yield


@contextlib.contextmanager
def visible_gpus() -> Iterator[list[str]]:
    """The GPUs that this process may use."""
    yield [os.environ.get("CUDA_VISIBLE_DEVICES", "")]


def first(state: list[str]) -> str:
    return state[0]


def wait_for(state: object, gate: Path) -> None:
    """Return when a file exists."""
    while not gate.exists():
        time.sleep(0.05)
