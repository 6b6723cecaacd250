"""Who is answered when, on a clock that only the test moves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.errors import ContractError, OverdueError, PolicyError, SupersededError, VlaError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Answer, Batcher, Line, Request
from vla_robot.serve.policy.server import answering

WAIT_NS = 5 * NS_PER_MS


def observation(value: float = 0.0, step: int = 0) -> Observation:
    return Observation({}, np.array([value]), "go", stamp_ns=step, step=step)


@dataclass
class Model:
    """Answers with the state; refuses some values; keeps the sizes of its batches."""

    bad: Sequence[float] = ()
    sizes: list[int] = field(default_factory=list)
    takes_ns: int = 0
    clock: FakeClock = field(default_factory=FakeClock)

    def __call__(self, observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        self.sizes.append(len(observations))
        self.clock.advance_ns(self.takes_ns)
        for o in observations:
            if o.state[0] in self.bad:
                raise ContractError(f"{o.state[0]:g} is bad.")
        return [ActionChunk(o.state[None], o.stamp_ns, o.step) for o in observations]


@dataclass
class Desk:
    """A batcher, and what each client was told, in order."""

    model: Model = field(default_factory=Model)
    max_batch: int = 4
    told: list[tuple[str, Answer]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = self.model.clock
        self.batcher = Batcher(self.model, Line(self.max_batch, WAIT_NS, max_waiting=8), self.clock)

    def ask(self, client: str, value: float = 0.0, deadline_ns: int | None = None) -> None:
        self.batcher.submit(
            Request(client, observation(value), lambda a: self.told.append((client, a)), deadline_ns=deadline_ns)
        )

    def said(self, client: str) -> list[str]:
        return [_short(answer) for name, answer in self.told if name == client]


def _short(answer: Answer) -> str:
    return type(answer).__name__ if isinstance(answer, VlaError) else f"{answer.actions[0, 0]:g}"


def request(client: str) -> Request:
    return Request(client, observation(), lambda _: None)


def test_a_client_alone_waits_for_nobody() -> None:
    line = Line(4, WAIT_NS)
    line.put(request("a"), now_ns=0)
    assert line.due_ns(now_ns=0) == 0


def test_with_company_expected_the_first_waits_so_long_and_no_longer() -> None:
    line = Line(4, WAIT_NS)
    for client in "ab":
        line.put(request(client), now_ns=0)
    line.free(0, line.take(now_ns=0)[0])
    line.put(request("a"), now_ns=100)
    assert line.due_ns(now_ns=100) == 100 + WAIT_NS
    line.put(request("b"), now_ns=200)
    assert line.due_ns(now_ns=200) == 200, "all who asked lately are there"


def test_those_who_just_got_their_answers_are_waited_for_too() -> None:
    line = Line(4, WAIT_NS)
    for client in "ab":
        line.put(request(client), now_ns=0)
    line.put(request("c"), now_ns=0)
    batch, _ = line.take(now_ns=0)
    line.put(request("d"), now_ns=10)
    line.free(now_ns=20 * WAIT_NS, batch=batch)
    assert line.due_ns(now_ns=20 * WAIT_NS) == 21 * WAIT_NS


def test_who_has_left_is_not_waited_for() -> None:
    line = Line(4, WAIT_NS)
    for client in "ab":
        line.put(request(client), now_ns=0)
    line.take(now_ns=0)
    later_ns = 2 * NS_PER_S
    line.put(request("a"), now_ns=later_ns)
    assert line.due_ns(now_ns=later_ns) == later_ns


def test_a_full_batch_goes_off_at_once_and_the_oldest_go_first() -> None:
    line = Line(2, WAIT_NS)
    for now_ns, client in enumerate("cab"):
        line.put(request(client), now_ns)
    assert line.due_ns(now_ns=3) == 3
    batch, _ = line.take(now_ns=3)
    assert [r.client for r in batch] == ["c", "a"]
    assert len(line) == 1


def test_a_newer_request_takes_the_place_of_the_older_one_in_the_line() -> None:
    desk = Desk(max_batch=1)
    desk.ask("a", 1)
    desk.ask("b", 2)
    desk.ask("a", 3)
    assert desk.said("a") == ["SupersededError"]
    desk.batcher.work()
    assert desk.said("a") == ["SupersededError", "3"], "it was the first in the line and still is"
    desk.batcher.work()
    assert desk.said("b") == ["2"]


def test_what_nobody_waits_for_never_reaches_the_model() -> None:
    desk = Desk()
    desk.ask("late", 1, deadline_ns=10)
    desk.ask("patient", 2, deadline_ns=NS_PER_S)
    desk.clock.advance_ns(20)
    desk.batcher.work()
    assert desk.said("late") == ["OverdueError"]
    assert desk.said("patient") == ["2"]
    assert desk.model.sizes == [1]


def test_a_bad_row_fails_alone() -> None:
    desk = Desk(Model(bad=[2.0]), max_batch=4)
    for client, value in zip("abcd", (0, 1, 2, 3), strict=True):
        desk.ask(client, value)
    desk.batcher.work()
    assert [desk.said(c) for c in "abcd"] == [["0"], ["1"], ["ContractError"], ["3"]]


@given(st.lists(st.booleans(), min_size=1, max_size=33))
def test_whichever_rows_are_bad_each_gets_its_own_answer(good: list[bool]) -> None:
    bad = [float(i) for i, ok in enumerate(good) if not ok]
    model, told = Model(bad=bad), {}
    batcher = Batcher(model, Line(64, WAIT_NS), FakeClock())
    for i in range(len(good)):
        batcher.submit(Request(i, observation(i), lambda a, i=i: told.setdefault(i, a)))
    batcher.work()
    assert [isinstance(told[i], ActionChunk) and told[i].actions[0, 0] == i for i in range(len(good))] == good


def test_a_bug_of_the_policy_is_an_error_of_its_clients_and_not_the_end() -> None:
    def broken(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        raise ZeroDivisionError("division by zero")

    told: list[Answer] = []
    batcher = Batcher(broken, Line(4, WAIT_NS), FakeClock())
    batcher.submit(Request("a", observation(), told.append))
    batcher.work()
    assert isinstance(told[0], PolicyError) and "ZeroDivisionError" in str(told[0]) and "line" in str(told[0])


class PanicException(BaseException):
    """As pyo3's: a panic of a library in Rust is no Exception."""


@pytest.mark.parametrize("thrown", [PanicException("index out of bounds"), SystemExit(1), GeneratorExit()])
def test_a_panic_of_a_library_is_an_error_of_its_client_and_the_thread_stays(thrown: BaseException) -> None:
    def act(observations: Sequence[Observation], keys: Sequence[str | None]) -> list[ActionChunk]:
        if any(o.instruction == "panic" for o in observations):
            raise thrown
        return [ActionChunk(np.zeros((1, 2)), o.stamp_ns, o.step) for o in observations]

    batcher = Batcher(act, Line(4, 0))
    thread = answering(batcher)
    with pytest.raises(PolicyError, match=type(thrown).__name__):
        batcher.ask(replace(observation(1.0), instruction="panic"))
    assert thread.is_alive()
    assert batcher.ask(observation(2.0)).actions.shape == (1, 2)
    batcher.close()
    thread.join()


def test_an_answer_that_cannot_be_handed_over_ends_no_thread() -> None:
    def gone(_: Answer) -> None:
        raise RuntimeError("the connection was torn down")

    batcher = Batcher(lambda seen, _: [ActionChunk(np.zeros((1, 2)), o.stamp_ns, o.step) for o in seen], Line(4, 0))
    thread = answering(batcher)
    batcher.submit(Request("gone", observation(1.0), gone))
    assert batcher.ask(observation(2.0)).actions.shape == (1, 2)
    batcher.close()
    thread.join()


@pytest.mark.parametrize(
    ("large", "says"),
    [
        ({"instruction": "x" * 8_000_000}, "the instruction has 8000000 characters, allowed are 2000"),
        ({"images": {"front": np.zeros((5000, 5000, 3), np.uint8)}}, "25000000 pixels together"),
    ],
)
def test_what_would_hold_the_model_for_everyone_is_refused_before_it_waits(large: dict[str, Any], says: str) -> None:
    line = Line(4, 0)
    batcher = Batcher(lambda seen, _: pytest.fail("it reached the model"), line)
    answers: list[Answer] = []
    batcher.submit(Request("a", replace(observation(1.0), **large), answers.append))
    assert len(line) == 0
    assert isinstance(answers[0], ContractError) and says in str(answers[0])


def test_a_policy_that_answers_too_few_answers_nobody() -> None:
    told: list[Answer] = []
    batcher = Batcher(lambda o, k: [], Line(4, WAIT_NS), FakeClock())
    batcher.submit(Request("a", observation(), told.append))
    batcher.work()
    assert "0 answers to 1 observations" in str(told[0])


def test_a_full_line_refuses_newcomers_and_keeps_those_who_wait() -> None:
    desk = Desk(max_batch=8)
    for i in range(9):
        desk.ask(f"client {i}", i)
    assert desk.said("client 8") == ["PolicyError"]
    desk.ask("client 0", 10)
    desk.batcher.work()
    assert desk.said("client 0") == ["SupersededError", "10"]
    assert desk.said("client 7") == ["7"]


def test_nobody_starves_however_often_the_others_ask() -> None:
    desk = Desk(max_batch=2)
    desk.ask("slow", -1)
    for value in range(3):
        for i in range(5):
            desk.ask(f"greedy {i}", value)
        desk.batcher.work()
        assert desk.said("slow") == ["-1"], "it was in the first batch"


def test_closing_tells_those_who_wait_and_those_who_come_later() -> None:
    desk = Desk()
    desk.ask("a")
    desk.batcher.close()
    desk.ask("b")
    assert desk.said("a") == desk.said("b") == ["PolicyError"]


def test_run_answers_from_another_thread_until_closed() -> None:
    model = Model()
    batcher = Batcher(model, Line(4, WAIT_NS))
    thread = threading.Thread(target=batcher.run)
    thread.start()
    assert batcher.ask(observation(7.0)).actions[0, 0] == 7
    with pytest.raises(ContractError, match="1 is bad"):
        model.bad = [1.0]
        batcher.ask(observation(1.0))
    batcher.close()
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(PolicyError, match="shutting down"):
        batcher.ask(observation())


def test_asking_a_batcher_that_nobody_runs_ends_in_time() -> None:
    batcher = Batcher(Model(), Line(4, WAIT_NS))
    with pytest.raises(OverdueError, match="within"):
        batcher.ask(observation(), timeout_s=-0.99)


def test_the_status_counts_what_happened() -> None:
    desk = Desk(Model(takes_ns=20 * NS_PER_MS), max_batch=2)
    for client in "abc":
        desk.ask(client)
    desk.ask("a")
    desk.batcher.work()
    desk.batcher.work()
    status = desk.batcher.status()
    assert status["counts"] == {"SupersededError": 1, "answered": 3}
    assert status["batches"] == {"1": 1, "2": 1}
    assert status["mean_batch"] == 1.5
    assert status["inference_ms"] == {"p50": 20.0, "p99": 20.0}
    assert status["wait_ms"]["p50"] == 0.0 and status["wait_ms"]["p99"] == pytest.approx(20.0, rel=0.03)
    assert status["waiting"] == 0


def test_an_answer_says_how_long_it_stood_in_line() -> None:
    desk = Desk()
    desk.ask("a")
    desk.clock.advance_ns(3 * NS_PER_MS)
    desk.batcher.work()
    answer = desk.told[0][1]
    assert isinstance(answer, ActionChunk) and answer.stages_ms["wait_for_batch"] == 3.0


@pytest.mark.parametrize(("rows", "wait_ns", "room"), [(0, 0, 8), (4, -1, 8), (9, 0, 8)])
def test_a_line_that_cannot_work_is_refused(rows: int, wait_ns: int, room: int) -> None:
    with pytest.raises(ContractError, match="at least one row"):
        Line(rows, wait_ns, room)


def test_superseded_and_overdue_are_policy_errors() -> None:
    assert issubclass(SupersededError, PolicyError) and issubclass(OverdueError, PolicyError)
