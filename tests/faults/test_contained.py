"""Whatever the arm, the log or the bridge raises: the arm is stopped or goes on, and every request is answered."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import WorldError
from vla_robot.record.episode import EpisodeStep, EpisodeWriter, read_episode
from vla_robot.record.log_process import LogProcess
from vla_robot.serve.bridge.log import Recording, recording_process
from vla_robot.transport.wire import Message

MakeStage = Callable[..., Any]


class CameraError(Exception):
    """As OpenCV's own: of no tree that is known here."""


class PanicError(BaseException):
    """As a native library's panic, which is no Exception."""


RAISED = [
    WorldError("joint 3 reports an overcurrent."),
    OSError(5, "Input/output error"),
    CameraError("!_src.empty() in function 'cvtColor'"),
    ZeroDivisionError("division by zero"),
    PanicError("called `Option::unwrap()` on a `None` value"),
    SystemExit(3),
]


def answered(stage: Any, kind: str = "status") -> bool:
    """Whether a stranger's request gets an answer, and no error."""
    before = len(stage.controller.answers)
    stage.network.post(b"stranger", Message(kind, 1, {"reason": "a test"}))
    stage.play(0.5)
    return len(stage.controller.answers) > before


def arm_and_begin(stage: Any, episode: int) -> None:
    stage.controller.say("arm")
    stage.controller.say("reset", episode=episode, seed=0, lockstep=False)
    stage.play(1.0)


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", ["reset", "command", "hold"])
def test_whatever_the_arm_raises_is_a_stop_with_its_reason(make_stage: MakeStage, at: str, raised: Exception) -> None:
    stage = make_stage()
    stage.hello()
    if at != "reset":
        stage.controller.policy_alive = at == "command"
        stage.controller.say("reset", episode=1, seed=0, lockstep=False)
        stage.play(1.0)
    stage.arm.raises[at] = raised
    stage.controller.say("reset", episode=1, seed=0, lockstep=False)
    stage.play(1.0)
    assert stage.status["mode"] == "stopped" and str(raised) in stage.status["reason"]
    assert not stage.status["running"] and stage.arm.stops
    assert stage.status["counts"]["arm_failures"] >= 1
    assert answered(stage) and answered(stage, "stop")
    stage.arm.raises.clear()
    stage.controller.policy_alive = True
    arm_and_begin(stage, episode=2)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_a_reset_that_fails_is_answered_and_tried_no_second_time(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.hello()
    stage.arm.raises["reset"] = OSError(5, "Input/output error")
    for _ in range(3):  # as a client does that heard no answer for a while
        stage.controller.say("reset", episode=1, seed=0, lockstep=False)
    stage.play(0.5)
    assert len(stage.controller.errors) == 3 and "Input/output error" in stage.controller.errors[0]
    assert len(stage.arm.resets) == 1, "an arm that failed on its way was sent on its way again"


@pytest.mark.parametrize("seed", [-1, -(2**63)])
def test_a_seed_that_is_none_is_refused_and_nothing_moves(make_stage: MakeStage, seed: int) -> None:
    stage = make_stage()
    stage.hello()
    stage.controller.say("reset", episode=1, seed=seed, lockstep=False)
    stage.play(0.2)
    assert f"seed {seed} is outside" in stage.controller.errors[-1] and stage.arm.resets == []
    stage.controller.say("reset", episode=1, seed=2**63 - 1, lockstep=False)
    stage.play(1.0)
    assert stage.status["mode"] == "run"


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
def test_an_arm_that_does_not_take_its_stop_is_told_until_it_does(make_stage: MakeStage, raised: Exception) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.arm.raises["stop"] = raised
    stage.controller.say("end")
    stage.play(0.5)
    assert len(stage.arm.stops) == 2, "it was not tried again"
    assert stage.status["mode"] == "stopped" and "Use its own switch" in stage.status["reason"]
    assert answered(stage)
    tried = len(stage.arm.stops)
    assert not answered(stage, "stop"), "a stop that was not taken was answered as if it were"
    assert "Use its own switch" in stage.controller.errors[-1] and len(stage.arm.stops) > tried
    stage.arm.raises.clear()
    arm_and_begin(stage, episode=2)
    stage.controller.say("end")
    stage.play(0.5)
    assert "Use its own switch" not in stage.status["reason"]


@pytest.mark.parametrize("at", ["reset", "command"])
def test_frames_that_are_not_the_announced_ones_stop_the_arm(make_stage: MakeStage, at: str) -> None:
    stage = make_stage()
    if at == "command":
        stage.begin()
        stage.play(1.0)
    stage.arm.height = 5
    if at == "reset":
        stage.begin()
    stage.play(1.0)
    assert stage.status["mode"] == "stopped" and "does not fit its embodiment" in stage.status["reason"]


@pytest.mark.parametrize("raised", RAISED[1:], ids=lambda error: type(error).__name__)
def test_a_look_that_fails_in_any_way_is_told_and_ends_nothing(make_stage: MakeStage, raised: Exception) -> None:
    stage = make_stage()
    stage.arm.raises["look"] = raised
    for _ in range(10):
        stage.network.post(b"viewer", Message("view", 1, {"seen": 0}))
        stage.play(0.1)
    assert stage.arm.looks and str(raised) in stage.status["reason"] and stage.status["mode"] == "hold"
    assert answered(stage)


def test_a_bug_of_the_server_stops_the_arm_and_everybody_is_still_answered(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)

    def fail() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(stage.server, "_publish", fail)
    stage.play(1.0)
    assert stage.status["mode"] == "stopped" and "a bug" in stage.status["reason"] and stage.arm.stops
    assert answered(stage)


def test_a_request_that_meets_a_bug_is_answered_with_an_error(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)

    def fail(chunk: object) -> int:
        raise TypeError("a bug")

    monkeypatch.setattr(stage.bridge, "put", fail)
    stage.play(0.5)
    assert any("the bridge failed at this request" in error for error in stage.controller.errors)
    assert stage.status["mode"] == "stopped" and stage.arm.stops and answered(stage)


@pytest.mark.parametrize("body", [{}, {"reason": 7}, {"reason": None}, {"reason": "x" * 5000}])
def test_a_stop_stops_whatever_its_reason_looks_like(make_stage: MakeStage, body: dict[str, Any]) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.network.post(b"stranger", Message("stop", 1, body))
    stage.play(0.2)
    assert stage.status["mode"] == "stopped" and stage.arm.stops


def test_the_traceback_of_a_bug_is_logged_once(make_stage: MakeStage, caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(0.5)
    stage.arm.raises["command"] = ZeroDivisionError("in the driver")
    with caplog.at_level(logging.ERROR):
        for episode in (2, 3, 4):
            stage.play(0.5)
            arm_and_begin(stage, episode)
    traced = [record for record in caplog.records if record.exc_info]
    assert len(traced) == 1 and "in the driver" in traced[0].getMessage()


def test_a_log_folder_that_is_a_file_costs_the_log_and_nothing_else(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage()
    (tmp_path / "logs").write_text("")
    stage.begin()
    stage.play(2.0)
    assert stage.status["mode"] == "run" and "cannot write" in stage.status["log_failure"]
    assert stage.status["counts"]["log_failures"] == 1
    (tmp_path / "logs").unlink()
    stage.controller.say("end")
    stage.play(0.2)
    stage.controller.say("reset", episode=2, seed=0, lockstep=False)
    stage.play(1.0)
    stage.controller.say("end")
    stage.play(0.2)
    (path,) = (tmp_path / "logs").glob("*.vlalog")
    assert read_episode(path).complete and stage.status["log_failure"] == ""


class FullDisk(EpisodeWriter):
    """Takes some steps."""

    def add(self, step: EpisodeStep) -> None:
        if step.observation.step >= 5:
            raise OSError(28, "No space left on device")
        super().add(step)


def test_a_disk_that_fills_up_in_the_midst_of_an_episode_keeps_what_was_written(
    make_stage: MakeStage, tmp_path: Path
) -> None:
    stage = make_stage(recording=Recording(FullDisk))
    stage.begin()
    stage.play(2.0)
    assert stage.status["mode"] == "run" and "No space left on device" in stage.status["log_failure"]
    assert stage.status["counts"]["log_failures"] == 1, "it was told at every step"
    assert answered(stage, "stop") and stage.status["mode"] == "stopped"
    (path,) = (tmp_path / "logs").glob("*.part")
    assert len(read_episode(path).steps) == 5


def test_a_killed_log_process_costs_one_log(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[LogProcess] = []
    init = LogProcess.__init__
    monkeypatch.setattr(LogProcess, "__init__", lambda logs: opened.append(logs) or init(logs))
    with recording_process() as recording:
        stage = make_stage(recording=recording)
        stage.begin()
        stage.play(1.0)
        os.kill(opened[0]._process.pid, signal.SIGKILL)
        opened[0]._process._child.wait()
        stage.play(2.0)
        assert stage.status["mode"] == "run"
        assert answered(stage, "stop") and stage.status["mode"] == "stopped"
        arm_and_begin(stage, episode=2)
        assert stage.status["mode"] == "run"
        stage.controller.say("end")
        stage.play(0.2)
    assert stage.status["counts"]["log_failures"] == 1
    (path,) = (tmp_path / "logs").glob("*.vlalog")
    assert read_episode(path).complete
