"""Between episodes viewers get camera frames; the arm gets no command, and no request waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.errors import WorldError
from vla_robot.core.robot import Tick
from vla_robot.record.episode import read_episode
from vla_robot.serve.bridge.viewers import SILENT_S
from vla_robot.transport.bridge_codec import unpack_tick
from vla_robot.transport.codec import MessageReader
from vla_robot.transport.wire import Message

VIEWER = b"viewer"
BEAT_MS = 100.0
LOOKS_PER_S = 10
"""As often as the arm ticks."""

MakeStage = Callable[..., Any]


class Viewer:
    """Watches a bridge, as long as it is here; says at once what has arrived."""

    def __init__(self, stage: Any) -> None:
        self.here = True
        self.ticks: list[Tick] = []
        self._network, self._seen = stage.network, 0
        self._hear_others, self._network.on_message = self._network.on_message, self._hear
        self._beat()

    def _hear(self, peer: bytes, message: Message) -> None:
        if peer != VIEWER:
            self._hear_others(peer, message)
        elif self.here:
            reader = MessageReader(message.body, "tick")
            self._seen = reader.integer("number")
            self.ticks.append(unpack_tick(reader.table("tick")))
            self._say()

    def _beat(self) -> None:
        if self.here:
            self._say()
            self._network.call(self._beat, BEAT_MS)

    def _say(self) -> None:
        self._network.post(VIEWER, Message("view", 1, {"seen": self._seen}))


def touched(stage: Any) -> tuple[int, ...]:
    """How often the arm was told something."""
    return len(stage.arm.commands), len(stage.arm.holds), len(stage.arm.stops)


def test_whoever_watches_sees_fresh_frames_before_the_first_episode(make_stage: MakeStage) -> None:
    stage = make_stage()
    viewer = Viewer(stage)
    stage.play(2.0)
    assert len(viewer.ticks) == pytest.approx(2 * LOOKS_PER_S, abs=1)
    stamps_ns = [tick.result.observation.stamp_ns for tick in viewer.ticks]
    assert np.diff(stamps_ns) == pytest.approx(NS_PER_S / LOOKS_PER_S)
    assert {(tick.mode, tick.reason) for tick in viewer.ticks} == {("hold", "no episode is running")}
    assert viewer.ticks[-1].result.executed is None


def test_nobody_who_watches_means_that_nobody_looks(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.hello()
    stage.play(2.0)
    assert stage.arm.looks == []
    viewer = Viewer(stage)
    stage.play(1.0)
    assert stage.arm.looks
    viewer.here = False
    stage.play(SILENT_S + 0.1)
    looks = len(stage.arm.looks)
    stage.play(2.0)
    assert len(stage.arm.looks) == looks


def test_looking_tells_the_arm_nothing(make_stage: MakeStage) -> None:
    stage = make_stage()
    Viewer(stage)
    stage.play(2.0)
    assert len(stage.arm.looks) > LOOKS_PER_S and touched(stage) == (0, 0, 0)
    stage.arm.horizon = 5
    stage.begin()
    stage.play(1.0)
    assert not stage.bridge.running
    after_episode, looks = touched(stage), len(stage.arm.looks)
    stage.play(2.0)
    assert len(stage.arm.looks) > looks + LOOKS_PER_S and touched(stage) == after_episode == (5, 0, 0)


def test_while_an_episode_runs_the_arm_is_not_looked_at(make_stage: MakeStage) -> None:
    stage = make_stage()
    viewer = Viewer(stage)
    stage.begin()
    stage.play(0.1)
    looks = len(stage.arm.looks)
    stage.play(2.0)
    assert len(stage.arm.looks) == looks
    assert viewer.ticks[-1].mode == "run"


def test_the_log_knows_nothing_of_it(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage()
    Viewer(stage)
    stage.play(1.0)
    stage.arm.horizon = 5
    stage.begin()
    stage.play(2.0)
    (path,) = (tmp_path / "logs").glob("*.vlalog")
    assert len(read_episode(path).steps) == len(stage.arm.commands) + len(stage.arm.holds) == 5


def test_who_asks_meanwhile_is_answered_at_once(make_stage: MakeStage) -> None:
    stage = make_stage()
    Viewer(stage)
    stage.hello()
    stage.play(1.0)
    stage.network.post(b"stranger", Message("stop", 1, {"reason": "a person stood up"}))
    stage.play(0.002 + stage.arm.look_ms / 1000)
    assert stage.status["mode"] == "stopped"
    stage.controller.say("arm")
    stage.controller.say("reset", episode=1, seed=0, lockstep=False)
    stage.play(0.002 + stage.arm.look_ms / 1000)
    assert stage.bridge.running


def test_an_arm_that_is_slow_to_look_keeps_nobody_waiting_for_two_looks(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.arm.look_ms = 250.0
    Viewer(stage)
    stage.hello()
    stage.play(1.0)
    looks = len(stage.arm.looks)
    for _ in range(5):
        stage.controller.say("status")
    stage.controller.say("reset", episode=1, seed=0, lockstep=False)
    stage.play(0.3)
    assert stage.bridge.running and len(stage.arm.looks) <= looks + 1


def test_a_stopped_arm_is_seen_and_called_stopped(make_stage: MakeStage) -> None:
    stage = make_stage()
    viewer = Viewer(stage)
    stage.network.post(b"stranger", Message("stop", 1, {"reason": "a person stood up"}))
    stage.play(1.0)
    assert viewer.ticks[-1].mode == "stopped" and "a person stood up" in viewer.ticks[-1].reason
    assert viewer.ticks[-1].result.observation.stamp_ns > stage.clock.now_ns() - NS_PER_S / 5


def test_an_arm_that_cannot_be_looked_at_is_told_and_ends_nothing(make_stage: MakeStage) -> None:
    stage = make_stage()
    viewer = Viewer(stage)
    stage.play(0.5)
    stage.arm.raises["look"] = WorldError("motor 'elbow' does not answer.")
    stage.play(1.0)
    seen = len(viewer.ticks)
    assert stage.status["mode"] == "hold"
    assert stage.status["reason"] == "no episode is running; motor 'elbow' does not answer."
    stage.arm.raises.clear()
    stage.play(1.0)
    assert len(viewer.ticks) > seen + LOOKS_PER_S / 2 and stage.status["reason"] == "no episode is running"
    stage.begin()
    stage.play(1.0)
    assert stage.status["mode"] == "run"


def test_success_is_still_told_while_nothing_moves(make_stage: MakeStage) -> None:
    stage = make_stage()
    viewer = Viewer(stage)
    stage.arm.horizon, stage.arm.succeeds = 5, True
    stage.begin()
    stage.play(2.0)
    assert not stage.bridge.running and viewer.ticks[-1].result.success
