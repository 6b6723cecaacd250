"""A policy in several processes behind one batcher: one answer to each request, whatever happens to a process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, VlaError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.batcher import Line, ModelLostError, Request
from vla_robot.serve.policy.tally import Answer
from vla_robot.serve.replicas import replica
from vla_robot.serve.replicas.batcher import ReplicatedBatcher
from vla_robot.serve.replicas.replica import ProcessReplica
from vla_robot.testing import toy_embodiment

TOY = str(Path(__file__).with_name("toy_replica.py"))
BAD, FATAL, HANGS = -1.0, -2.0, -3.0
PATIENCE_S = 120.0
"""For an answer that a busy computer may delay."""

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits on a process by its pidfd")

Start = Callable[..., ReplicatedBatcher]


def observation(value: float, step: int = 0) -> Observation:
    state = np.zeros(len(toy_embodiment().state))
    state[0] = value
    return Observation({}, state, "go", stamp_ns=step, step=step)


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, events: list[str]) -> Iterator[Start]:
    """Starts replicas without a model, which end with the test."""
    with ExitStack() as stack:

        def begin(replicas: int = 2, max_batch: int = 4) -> ReplicatedBatcher:
            command = [sys.executable, TOY, str(tmp_path)]
            batcher = ReplicatedBatcher(
                [partial(ProcessReplica, command)] * replicas, Line(max_batch, 0), on_event=events.append
            )
            stack.callback(batcher.close)
            batcher.start()
            return batcher

        yield begin


def pids(batcher: ReplicatedBatcher) -> list[int]:
    return [each["pid"] for each in batcher.status()["replicas"]]


def states(batcher: ReplicatedBatcher) -> list[str]:
    return [each["state"] for each in batcher.status()["replicas"]]


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Wait for a process that need not be a child of ours."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE_S)[0])
    finally:
        os.close(handle)


def ask(batcher: ReplicatedBatcher, value: float, client: str | None = None) -> float:
    return float(batcher.ask(observation(value), client=client, timeout_s=PATIENCE_S).actions[0, 0])


def ask_all(batcher: ReplicatedBatcher, values: list[float]) -> dict[float, Answer]:
    """Submit at once, and return all answers."""
    told: dict[float, Answer] = {}
    done = threading.Event()

    def answer(value: float, given: Answer) -> None:
        told[value] = given
        if len(told) == len(values):
            done.set()

    for value in values:
        batcher.submit(Request(value, observation(value), lambda a, value=value: answer(value, a)))
    assert done.wait(PATIENCE_S)
    return told


def hanging(folder: Path) -> int | None:
    return next((int(path.name.partition("_")[2]) for path in folder.glob("hangs_*")), None)


def test_two_replicas_answer_as_one(start: Start) -> None:
    batcher = start(2, max_batch=1)
    for _ in range(10):
        told = ask_all(batcher, [float(n) for n in range(8)])
        for value, chunk in told.items():
            assert isinstance(chunk, ActionChunk)
            assert chunk.actions[0, 0] == 2 * value
    status = batcher.status()
    assert status["counts"] == {"answered": 80}
    assert sum(each["rows"] for each in status["replicas"]) == 80
    assert all(each["rows"] for each in status["replicas"]), "both took a part"


def test_an_error_of_the_policy_is_that_of_its_row_only_and_ends_no_replica(start: Start) -> None:
    batcher = start(2)
    before = pids(batcher)
    told = ask_all(batcher, [1.0, 2.0, BAD, 3.0])
    assert isinstance(told.pop(BAD), ContractError)
    assert all(isinstance(answer, ActionChunk) for answer in told.values())
    assert pids(batcher) == before


def test_a_request_whose_replica_is_killed_is_answered_by_the_other(
    start: Start, tmp_path: Path, events: list[str]
) -> None:
    batcher = start(2)
    told: Queue[Answer] = Queue()
    batcher.submit(Request("a", observation(HANGS), told.put))
    wait_for(lambda: hanging(tmp_path) is not None)
    first = hanging(tmp_path)
    assert first is not None
    (tmp_path / "go_on").touch()  # the next one that computes it does not hang
    os.kill(first, signal.SIGKILL)
    answer = told.get(timeout=PATIENCE_S)
    assert isinstance(answer, ActionChunk)
    assert answer.stages_ms["pid"] != first
    wait_for(lambda: states(batcher) == ["ready", "ready"] and first not in pids(batcher))
    assert batcher.status()["counts"] == {"answered": 1, "retried": 1}
    assert any("killed by signal 9" in event for event in events)


def test_others_are_answered_while_one_replica_hangs(start: Start, tmp_path: Path) -> None:
    batcher = start(2, max_batch=1)
    batcher.submit(Request("hangs", observation(HANGS), lambda _: None))
    wait_for(lambda: hanging(tmp_path) is not None)
    assert [ask(batcher, value) for value in (1.0, 2.0)] == [2.0, 4.0]


def test_a_replica_that_dies_idle_is_started_again(start: Start) -> None:
    batcher = start(2)
    before = pids(batcher)
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: pids(batcher)[0] not in (0, before[0]) and states(batcher) == ["ready", "ready"])
    assert pids(batcher)[1] == before[1]
    assert [each["restarts"] for each in batcher.status()["replicas"]] == [1, 0]
    assert ask(batcher, 3.0) == 6.0


def test_a_request_that_ends_processes_ends_two_and_then_gets_an_error(start: Start) -> None:
    batcher = start(2)
    with pytest.raises(PolicyError, match="exit status 3"):
        ask(batcher, FATAL)
    assert ask(batcher, 1.0) == 2.0, "the replicas came back"
    assert sum(each["restarts"] for each in batcher.status()["replicas"]) == 2


def test_a_stuck_replica_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "STUCK_S", 1.0)
    batcher = start(1)
    with pytest.raises(ModelLostError, match="ended"):
        ask(batcher, HANGS)


def test_a_restart_loses_no_request_and_replaces_every_process(start: Start, events: list[str]) -> None:
    batcher = start(2)
    before, over = pids(batcher), threading.Event()
    failures: list[VlaError] = []
    least_ready = [2]

    def drive(client: str) -> None:
        while not over.is_set():
            try:
                assert ask(batcher, 4.0, client) == 8.0
            except VlaError as error:
                failures.append(error)

    clients = [threading.Thread(target=drive, args=(name,)) for name in "abc"]
    for client in clients:
        client.start()
    batcher.restart()

    def is_over() -> bool:
        least_ready[0] = min(least_ready[0], states(batcher).count("ready"))
        return any("every replica was restarted" in event for event in events)

    wait_for(is_over)
    over.set()
    for client in clients:
        client.join()
    assert failures == []
    assert not set(before) & set(pids(batcher))
    assert least_ready[0] == 1, "one after the other"
    assert [each["restarts"] for each in batcher.status()["replicas"]] == [1, 1]


def test_a_replica_of_another_arm_does_not_answer(start: Start, tmp_path: Path, events: list[str]) -> None:
    batcher = start(2)
    kept = pids(batcher)[1]
    (tmp_path / "other_arm").touch()
    batcher.restart()
    wait_for(lambda: any("for another arm" in event for event in events))
    assert ask(batcher, 1.0) == 2.0
    assert pids(batcher)[1] == kept, "the restart does not go on"


def test_what_keeps_a_replica_from_loading_is_raised_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    (tmp_path / "damaged").touch()
    with pytest.raises(CheckpointError, match=r"^the weights are damaged\.$"):
        start(2)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("replica ")]


def test_replicas_end_with_their_server_also_when_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from vla_robot.serve.policy.batcher import Line\n"
        "from vla_robot.serve.replicas.batcher import ReplicatedBatcher\n"
        "from vla_robot.serve.replicas.replica import ProcessReplica\n"
        "batcher = ReplicatedBatcher([lambda: ProcessReplica([sys.executable, *sys.argv[1:]])] * 2, Line(1, 0))\n"
        "batcher.start()\n"
        "print(*[each['pid'] for each in batcher.status()['replicas']], flush=True)\n"
        "threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, TOY, str(tmp_path)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        children = [int(pid) for pid in server.stdout.readline().split()]
        assert len(children) == 2
        server.kill()
    assert all(ended(pid) for pid in children)
