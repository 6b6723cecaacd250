"""Served policies with an action head drive an arm with a clock of its own, with real-time chunking over real sockets.

Their weights are random. The arm and its bridge are patient: a busy computer is no reason to hold.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from vla_robot.cli.build import build_guard
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.policy.families import family_named
from vla_robot.recipe.finetune import Architecture, HeadRecipe
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig, Ticked
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.policy.load import build_served_policy
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.testing import ToyArm, toy_embodiment
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

K = 16
"""Actions of an answer: three seconds, within which one comes on a busy computer, too."""
ARM = toy_embodiment(reach_m=90, rate_hz=5, height=28, width=28)
HEADS = {
    "l1": HeadRecipe("l1"),
    "flow": HeadRecipe("flow", width=32, ff_dim=48),
    "prefix": HeadRecipe("flow", width=32, ff_dim=48, prefix=K - 1),
}
SIZES = Architecture(
    family="paligemma", image_size=28, tower_dim=24, tower_depth=3, tower_heads=2, llm_dim=32, llm_layers=2,
    llm_heads=2, llm_ff_dim=48, text_vocab=320, max_positions=96,
    initializer_range=0.02,  # the tests' tolerances were set for these weights
)  # fmt: skip
CONTINUED = 3
"""Answers that are awaited of each policy."""


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Head -> the folder of a policy with random weights, all of whose actions are within the arm's range."""

    def make(head: str) -> Path:
        ends = np.array([[-0.04, 0.1], [0.04, 0.9]])
        statistics = dataset_statistics("toy", ends, np.array([[-1.0], [1.0]]), 1, mask=(True, True))
        path = tmp_path / head
        family_named("paligemma").create(path, SIZES, ARM, statistics, [ToyArm().instruction], 0, None, K, HEADS[head])
        return path

    return make


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a policy, served as `vla serve` does in one process."""
    policy = build_served_policy(find_policy(folder))
    batcher, stop = Batcher(policy.act, Line(4, 0), prepare=policy.prepare), threading.Event()
    with contextlib.closing(Wake()) as wake, ServerSocket(wake=wake) as socket:
        server = PolicyServer(Served("tiny", policy.embodiment, 4), batcher, socket, wake)
        network, model = threading.Thread(target=server.serve, args=(stop.is_set,)), answering(batcher)
        network.start()
        yield socket.address
        stop.set()
        network.join()
        batcher.close()
        model.join()
    assert set(batcher.status()["counts"]) == {"answered"}


@contextlib.contextmanager
def served_by_vla(folder: Path) -> Iterator[str]:
    """The same by the program itself."""
    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", str(folder), "--bind", "tcp://127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        yield lines[2].partition("listening on ")[2].strip()
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 0


@dataclass
class Desk:
    """A bridge with real-time chunking, and what its arm did in each tick."""

    bridge: Bridge
    address: str
    done: list[Ticked]


@contextlib.contextmanager
def desk() -> Iterator[Desk]:
    clock, stop, done = MonotonicClock(), threading.Event(), list[Ticked]()
    watchdog = Watchdog(clock, hold_after_s=30, stop_after_s=100, beat_after_s=30)
    limits = SafetyFilter(ARM, limits_of(ARM, LimitsRecipe()))
    bridge = Bridge(
        ToyArm(clock, ARM, can_wait=False), limits, watchdog, clock, ExecutionConfig(max_age_s=10, splice="rtc"),
        lambda event: done.append(event) if isinstance(event, Ticked) else None,
    )  # fmt: skip
    with ServerSocket() as socket:
        thread = threading.Thread(target=BridgeServer(bridge, socket, clock).serve, args=(stop.is_set,))
        thread.start()
        yield Desk(bridge, socket.address, done)
        stop.set()
        thread.join()


@dataclass
class Watched:
    """A policy whose answers are kept."""

    policy: Policy
    answers: list[tuple[Observation, ActionChunk]] = field(default_factory=list[tuple[Observation, ActionChunk]])

    def reset(self, seed: int) -> None:
        self.policy.reset(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = self.policy.act(observations)
        self.answers += zip(observations, chunks, strict=True)
        return chunks


def promise_of(seen: Observation) -> np.ndarray:
    """The (n, D) actions that the arm was committed to."""
    return np.empty((0, 2)) if seen.committed is None else seen.committed


def drive(desk: Desk, address: str) -> Watched:
    """An episode, until some answers with committed actions were played behind these."""
    with (
        RemotePolicy(address, answer_timeout_s=60) as policy,
        RemoteRobot(desk.address, wanted=policy.embodiment) as robot,
    ):
        watched = Watched(policy)

        def enough() -> bool:
            ends = [seen.step + len(promise_of(seen)) for seen, _ in watched.answers if len(promise_of(seen))]
            return sum(end + 1 < len(desk.done) for end in ends) >= CONTINUED

        ended = run_live_episode(robot, watched, 3, guard=build_guard(ARM.action), should_stop=enough)
    assert (ended.outcome, ended.error) == ("stopped", None)
    return watched


def require_kept_promises(desk: Desk, answers: Sequence[tuple[Observation, ActionChunk]]) -> None:
    """Committed actions were executed as they were told, and behind them those of the answer."""
    played = {event.before.step: event for event in desk.done if event.tick.mode == "run"}
    chunks = {chunk.step: chunk for _, chunk in answers}
    for seen, _ in answers:
        for step, row in enumerate(promise_of(seen), start=seen.step):
            if step in played:  # not after the end of the episode
                np.testing.assert_array_equal(played[step].wanted, row)
    for step, event in played.items():
        chunk = chunks[event.tick.cause_step]
        seen = next(seen for seen, each in answers if each is chunk)
        row = step - chunk.step
        if chunk.conditioned and row >= len(promise_of(seen)):
            np.testing.assert_array_equal(event.wanted, chunk.actions[row])
        np.testing.assert_array_equal(event.tick.result.executed, event.wanted)  # no limit cut it


def require_calm(desk: Desk) -> None:
    """No action was refused, and the arm was neither held nor stopped once it moved."""
    assert (desk.bridge.refused, set(desk.bridge.watchdog.counts.values())) == (0, {0})
    assert not any(event.tick.result.clamps for event in desk.done)
    assert set(desk.bridge.faults.counts.values()) == {0}


@pytest.mark.parametrize("head", HEADS)
def test_a_served_head_continues_what_the_arm_is_committed_to(folder: Callable[[str], Path], head: str) -> None:
    with desk() as bridge, served(folder(head)) as address:
        answers = drive(bridge, address).answers
        require_kept_promises(bridge, answers)
        require_calm(bridge)
    for seen, chunk in answers:
        n = min(len(promise_of(seen)), K - 1)
        assert chunk.actions.shape == (K, 2)
        assert chunk.conditioned == (head != "l1" and seen.committed is not None)
        if chunk.conditioned:
            np.testing.assert_array_equal(chunk.actions[:n], promise_of(seen)[:n])


@pytest.mark.slow  # a process that imports torch
def test_so_it_is_with_the_program_vla_serve(folder: Callable[[str], Path]) -> None:
    with desk() as bridge, served_by_vla(folder("prefix")) as address:
        answers = drive(bridge, address).answers
        require_kept_promises(bridge, answers)
        require_calm(bridge)
    assert sum(chunk.conditioned for _, chunk in answers) >= CONTINUED
