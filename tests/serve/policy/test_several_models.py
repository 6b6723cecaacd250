"""Several copies of one model behind one line of requests: they share what waits; the loss of one loses no request."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.errors import OverdueError, PolicyError, SupersededError, VlaError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Batcher, Line, ModelLostError, Request
from vla_robot.serve.policy.tally import Answer

WAIT_NS = 5 * NS_PER_MS
PATIENCE_S = 60.0


def observation(value: float) -> Observation:
    return Observation({}, np.array([value]), "go", stamp_ns=0, step=0)


def request(client: str) -> Request:
    return Request(client, observation(0), lambda _: None)


def doubled(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
    return [ActionChunk(2 * o.state[None], o.stamp_ns, o.step) for o in observations]


def lost(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
    raise ModelLostError("the process is gone.")


class Desk:
    """A batcher whose models are called by the test, and the answers of its clients, in order."""

    def __init__(self, max_batch: int = 4) -> None:
        self.told: list[tuple[str, Answer]] = []
        self.clock = FakeClock()
        self.batcher = Batcher(doubled, Line(max_batch, WAIT_NS), self.clock)

    def ask(self, client: str, value: float = 0.0, deadline_ns: int | None = None) -> None:
        answer = lambda a: self.told.append((client, a))  # noqa: E731
        self.batcher.submit(Request(client, observation(value), answer, deadline_ns=deadline_ns))

    def said(self) -> list[tuple[str, str]]:
        return [(who, type(a).__name__ if isinstance(a, VlaError) else f"{a.actions[0, 0]:g}") for who, a in self.told]


def test_idle_models_share_what_waits() -> None:
    line = Line(16, WAIT_NS)
    for client in "abcde":
        line.put(request(client), 0)
    first, _ = line.take(0, models=2)
    rest, _ = line.take(0, models=1)
    assert [[r.client for r in batch] for batch in (first, rest)] == [["a", "b", "c"], ["d", "e"]]


def test_a_client_that_another_model_answers_is_not_waited_for() -> None:
    line = Line(16, WAIT_NS)
    for client in "ab":
        line.put(request(client), 0)
    at_work, _ = line.take(0, models=2)
    assert [r.client for r in at_work] == ["a"]
    assert line.due_ns(1) == 1, "b waits alone: a is being answered"
    line.free(2, at_work)
    assert line.due_ns(3) == 2 + WAIT_NS, "now a may ask again"


def test_a_lost_batch_is_answered_by_another_model_in_its_old_order() -> None:
    desk = Desk(max_batch=2)
    for client in "abc":
        desk.ask(client, ord(client))
    desk.batcher.work(lost)
    assert desk.told == []
    desk.batcher.work(doubled)
    desk.batcher.work(doubled)
    assert desk.said() == [("a", "194"), ("b", "196"), ("c", "198")]
    assert desk.batcher.status()["counts"] == {"retried": 2, "answered": 3}


def test_a_request_that_two_models_were_lost_with_gets_the_error() -> None:
    desk = Desk()
    desk.ask("a")
    desk.batcher.work(lost)
    desk.batcher.work(lost)
    assert desk.said() == [("a", "ModelLostError")]
    assert isinstance(desk.told[0][1], PolicyError)


def test_a_newer_request_wins_over_one_of_a_lost_batch() -> None:
    desk = Desk()
    desk.ask("a", 1)

    def lost_meanwhile(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        desk.ask("a", 2)
        raise ModelLostError("gone.")

    desk.batcher.work(lost_meanwhile)
    desk.batcher.work(doubled)
    assert desk.said() == [("a", SupersededError.__name__), ("a", "4")]


def test_a_deadline_that_passes_while_no_model_is_there_is_told() -> None:
    desk = Desk()
    desk.ask("a", deadline_ns=100)
    desk.clock.advance_ns(99)
    desk.batcher.look_again()
    assert desk.told == []
    desk.clock.advance_ns(1)
    desk.batcher.look_again()
    assert desk.said() == [("a", OverdueError.__name__)]


def test_a_lost_batch_is_not_kept_by_a_server_that_is_closing() -> None:
    desk = Desk()
    desk.ask("a")

    def lost_in_the_end(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        desk.batcher.close()
        raise ModelLostError("gone.")

    desk.batcher.work(lost_in_the_end)
    assert desk.said() == [("a", "ModelLostError")]


def test_threads_work_at_the_same_time_and_each_leaves_when_it_is_told() -> None:
    both_work = threading.Barrier(2, timeout=PATIENCE_S)
    batcher = Batcher(doubled, Line(1, 0))
    needed = [True, True]

    def act(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        both_work.wait()  # passes only if the other model works too
        return doubled(observations, keys)

    threads = [threading.Thread(target=batcher.run, args=(act, lambda i=i: needed[i])) for i in range(2)]
    answers: dict[str, Answer] = {}
    told = threading.Semaphore(0)

    def answer(name: str, value: Answer) -> None:
        answers[name] = value
        told.release()

    for thread in threads:
        thread.start()
    for name in "ab":
        batcher.submit(Request(name, observation(1), lambda a, name=name: answer(name, a)))
    assert all(told.acquire(timeout=PATIENCE_S) for _ in range(2))
    assert all(isinstance(value, ActionChunk) for value in answers.values())
    needed[0] = False
    batcher.look_again()
    threads[0].join(PATIENCE_S)
    assert [thread.is_alive() for thread in threads] == [False, True]
    batcher.close()
    threads[1].join(PATIENCE_S)
    assert not threads[1].is_alive()


@pytest.mark.parametrize("models", [1, 2, 3])
def test_no_model_takes_more_than_a_batch(models: int) -> None:
    line = Line(2, WAIT_NS)
    for client in "abcdefgh":
        line.put(request(client), 0)
    assert len(line.take(0, models)[0]) <= 2
