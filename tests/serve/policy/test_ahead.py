"""Observations are prepared while the model computes, and the newest of each client is the one that is answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.ahead import Ahead
from vla_robot.serve.policy.batcher import Answer, Batcher, Line, Request
from vla_robot.serve.policy.server import answering

SOON_S = 60.0
READY = " (prepared)"


def observation(value: float) -> Observation:
    return Observation({}, np.array([value]), "go", stamp_ns=0, step=0)


class Policy:
    """Prepares and answers; the model waits at its gate, and preparing at its own.

    Attributes:
        prepared: values of the states that were prepared, with the name of the thread.
        batches: values of each batch.
    """

    def __init__(self) -> None:
        self.prepared: list[tuple[float, str]] = []
        self.batches: list[list[float]] = []
        self.computing, self.gate, self.may_prepare = threading.Event(), threading.Event(), threading.Event()
        self.may_prepare.set()
        self.some_prepared = threading.Semaphore(0)

    def prepare(self, seen: Observation) -> Observation:
        assert self.may_prepare.wait(SOON_S)
        if seen.state[0] < 0:
            raise ContractError("a negative state")
        self.prepared.append((float(seen.state[0]), threading.current_thread().name))
        self.some_prepared.release()
        return replace(seen, instruction=seen.instruction + READY)

    def act(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        assert all(o.instruction == "go" + READY for o in observations)
        self.batches.append([float(o.state[0]) for o in observations])
        self.computing.set()
        assert self.gate.wait(SOON_S)
        return [ActionChunk(o.state[None], o.stamp_ns, o.step) for o in observations]


class Desk:
    """A batcher that runs, and what each client was told."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.batcher = Batcher(policy.act, Line(8, 0), prepare=policy.prepare)
        self.told: list[tuple[str, str]] = []
        self.some_told = threading.Semaphore(0)

    def ask(self, client: str, value: float) -> None:
        def answer(given: Answer) -> None:
            text = f"{given.actions[0, 0]:g}" if isinstance(given, ActionChunk) else type(given).__name__
            self.told.append((client, text))
            self.some_told.release()

        self.batcher.submit(Request(client, observation(value), answer))

    def await_told(self, number: int) -> None:
        for _ in range(number):
            assert self.some_told.acquire(timeout=SOON_S)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk(Policy())
    thread = answering(made.batcher)
    yield made
    made.policy.gate.set()
    made.policy.may_prepare.set()
    made.batcher.close()
    thread.join()


def test_the_next_batch_is_prepared_while_this_one_is_computed(desk: Desk) -> None:
    policy = desk.policy
    desk.ask("a", 1)
    assert policy.computing.wait(SOON_S)
    for client, value in (("b", 2), ("c", 3)):
        desk.ask(client, value)
    for _ in range(3):
        assert policy.some_prepared.acquire(timeout=SOON_S)
    assert policy.batches == [[1]], "the model still computes the first batch"
    assert {name.partition("_")[0] for value, name in policy.prepared if value > 1} == {"prepare"}
    policy.gate.set()
    desk.await_told(3)
    assert policy.batches == [[1], [2, 3]]
    assert len(policy.prepared) == 3, "nothing is prepared twice"


def test_a_newer_observation_replaces_one_that_is_prepared_already(desk: Desk) -> None:
    policy = desk.policy
    desk.ask("a", 1)
    assert policy.computing.wait(SOON_S)
    desk.ask("b", 2)
    for _ in range(2):
        assert policy.some_prepared.acquire(timeout=SOON_S)
    desk.ask("b", 3)
    policy.gate.set()
    desk.await_told(3)
    assert desk.told == [("b", "SupersededError"), ("a", "1"), ("b", "3")]
    assert policy.batches == [[1], [3]]


def test_what_was_replaced_before_a_thread_began_it_is_not_prepared(desk: Desk) -> None:
    policy = desk.policy
    desk.ask("a", 1)
    assert policy.computing.wait(SOON_S)
    policy.may_prepare.clear()
    busy = 8  # more than there are threads, so that the last ones wait for a thread
    for number in range(busy):
        desk.ask(f"busy {number}", 10 + number)
    for value in (2, 3, 4):
        desk.ask("b", value)
    policy.may_prepare.set()
    policy.gate.set()
    desk.await_told(1 + busy + 3)
    assert {value for value, _ in policy.prepared} == {1, 4, *range(10, 10 + busy)}
    assert [told for told in desk.told if told[0] == "b"] == [("b", "SupersededError")] * 2 + [("b", "4")]


def test_an_observation_that_cannot_be_prepared_fails_alone(desk: Desk) -> None:
    policy = desk.policy
    policy.gate.set()
    policy.may_prepare.clear()
    for client, value in zip("abc", (1, -1, 2), strict=True):
        desk.ask(client, value)
    policy.may_prepare.set()
    desk.await_told(3)
    assert sorted(desk.told) == [("a", "1"), ("b", "ContractError"), ("c", "2")]


def test_a_batch_that_begins_at_once_prepares_what_no_thread_has_begun() -> None:
    """Nothing waits for a thread that is busy with another observation."""
    let_go, inside = threading.Event(), threading.Event()
    names: list[str] = []

    def prepare(seen: Observation) -> Observation:
        names.append(threading.current_thread().name)
        if seen.state[0] == 0:
            inside.set()
            assert let_go.wait(SOON_S)
        return seen

    ahead = Ahead(prepare, threads=1)
    first = ahead.begin(observation(0))
    assert inside.wait(SOON_S)
    second = ahead.begin(observation(1))
    assert ahead.result(observation(1), second).state[0] == 1
    assert names[1] == threading.current_thread().name
    let_go.set()
    assert ahead.result(observation(0), first).state[0] == 0
    ahead.close()
    assert len(names) == 2


def test_closing_ends_the_threads_and_tells_those_who_wait() -> None:
    policy = Policy()
    desk = Desk(policy)  # without a thread that runs it
    desk.ask("a", 1)
    desk.batcher.close()
    desk.ask("b", 2)
    assert desk.told == [("a", "PolicyError"), ("b", "PolicyError")]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
