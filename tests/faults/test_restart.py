"""A bridge that is killed and started again in the midst of a run: one episode is lost, and the others are not."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_robot.cli.main import main
from vla_robot.core.errors import ContractError, SessionError, TransportError
from vla_robot.core.messages import Clamp, Vector
from vla_robot.loop import live_loop
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.policy.scripted.simple import HoldPolicy
from vla_robot.serve.bridge import remote_robot
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.synchronous_env import SynchronousEnv
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode

DEADLINE_S = 60.0


class Free:
    """No limit of its own: the bridge has some."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        return action, ()


def at_step(number: int, happen: Callable[[], None]) -> Callable[[Event], None]:
    """A subscriber to whom something happens once, in the midst of an episode."""
    happened = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.result.observation.step >= number and not happened.is_set():
            happened.set()
            happen()

    return listen


def test_the_episode_in_which_the_bridge_was_restarted_is_an_error_and_the_next_ones_go_on(bridges: Any) -> None:
    with RemoteRobot(bridges.address) as robot:
        restart = at_step(10, bridges.restart)
        first, *others = (
            run_live_episode(robot, HoldPolicy(robot.embodiment.action), seed, guard=Free(), subscribers=[restart])
            for seed in range(3)
        )
    assert first.outcome == "error" and "the bridge was started anew" in (first.error or "")
    assert [episode.outcome for episode in others] == ["timeout", "timeout"]


def test_in_lockstep_too(bridges: Any) -> None:
    with RemoteRobot(bridges.address) as robot:
        world = SynchronousEnv(robot)
        restart = at_step(10, bridges.restart)
        first, *others = (
            run_episode(world, HoldPolicy(robot.embodiment.action), seed, guard=Free(), subscribers=[restart])
            for seed in range(3)
        )
    assert first.outcome == "error" and "the bridge was started anew" in (first.error or "")
    assert [episode.outcome for episode in others] == ["timeout", "timeout"]


def test_a_bridge_with_another_arm_is_refused_with_every_difference(bridges: Any) -> None:
    with RemoteRobot(bridges.address) as robot:
        robot.begin(0)
        bridges.restart(rate_hz=20.0)
        for _ in range(2):  # asked again, it is still another arm
            with pytest.raises(ContractError, match=r"another arm: rate_hz was 30.0, is 20.0\. Nothing was moved"):
                robot.begin(1)
        assert robot.embodiment.rate_hz == 30.0
        assert not robot.status()["running"]


def test_a_bridge_that_was_restarted_between_episodes_costs_none(bridges: Any) -> None:
    with RemoteRobot(bridges.address) as robot:
        robot.begin(0)
        robot.end()
        bridges.restart()
        assert robot.begin(1).step == 0


def test_what_was_meant_for_the_bridge_before_moves_nothing(bridges: Any) -> None:
    with RemoteRobot(bridges.address) as robot:
        robot.begin(0)
        bridges.restart()
        with pytest.raises(SessionError):
            robot.arm()
        assert not robot.status()["running"]


def test_a_bridge_that_does_not_come_back_is_told_in_words(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_robot, "CONNECT_TIMEOUT_S", 0.5)
    with RemoteRobot(bridges.address) as robot:
        robot.begin(0)
        bridges.kill(bridges.process)
        with pytest.raises(TransportError, match=r"did not answer 'hello' within 0\.5 s\. Is `vla bridge`"):
            robot.begin(1)
        bridges.start()
        monkeypatch.setattr(remote_robot, "CONNECT_TIMEOUT_S", DEADLINE_S)
        assert robot.begin(2).step == 0


def test_of_a_frozen_bridge_a_controller_says_only_what_it_knows(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_loop, "SILENCE_S", 3.0)
    with RemoteRobot(bridges.address) as robot:
        monkeypatch.setattr(remote_robot, "ANSWER_TIMEOUT_S", 0.5)
        freeze = at_step(10, lambda: bridges.process.send_signal(signal.SIGSTOP))
        policy = HoldPolicy(robot.embodiment.action)
        episode = run_live_episode(robot, policy, 0, guard=Free(), subscribers=[freeze])
        with pytest.raises(TransportError, match=r"did not answer 'stop'.*It is not known whether the arm stopped"):
            robot.stop("a person stood up")
    assert episode.outcome == "error" and "no tick came from the robot" in (episode.error or "")
    assert "holds the arm, is not known here" in (episode.error or "")


def test_a_run_prints_its_table_and_its_report(
    bridges: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_robot, "CONNECT_TIMEOUT_S", DEADLINE_S)  # a busy computer starts the bridge slowly
    restarts = threading.Thread(target=lambda: (wait_until_it_ticks(bridges.address), bridges.restart()))
    restarts.start()
    out, file = tmp_path / "run", tmp_path / "run.json"
    options = ["--policy", "hold", "--episodes", "3", "--out", str(out), "--json", str(file)]
    assert main(["run", "--robot", bridges.address, *options]) == 1  # an episode ended in an error
    restarts.join()
    outcomes = [episode["outcome"] for episode in json.loads(file.read_text())["episodes"]]
    assert outcomes == ["error", "timeout", "timeout"]
    printed = capsys.readouterr().out
    assert "0 of 3 succeeded" in printed and "hello first" not in printed
    assert (out / "report.html").is_file() and re.search("Report:", printed)


def test_a_log_that_failed_at_the_bridge_is_told_by_the_run_and_its_report(
    bridges: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.write_text("a file")
    bridges.kill(bridges.process)
    bridges.start(record=folder)
    out, file = tmp_path / "run", tmp_path / "run.json"
    options = ["--policy", "hold", "--episodes", "2", "--out", str(out), "--json", str(file)]
    assert main(["run", "--robot", bridges.address, *options]) == 0
    told = "The bridge's log failed for 2 episodes; the arm continued."
    assert told in capsys.readouterr().out and told in json.loads(file.read_text())["notes"][0]
    assert "log failed for 2 episodes" in (out / "report.html").read_text()


def test_a_run_whose_bridge_does_not_come_back_prints_its_table_too(
    bridges: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_robot, "CONNECT_TIMEOUT_S", 1.0)
    killer = threading.Thread(target=lambda: (wait_until_it_ticks(bridges.address), bridges.kill(bridges.process)))
    killer.start()
    out, file = tmp_path / "run", tmp_path / "run.json"
    options = ["--policy", "hold", "--episodes", "3", "--out", str(out), "--json", str(file)]
    assert main(["run", "--robot", bridges.address, *options]) == 2
    killer.join()
    printed = capsys.readouterr()
    assert "3 were planned" in printed.out and (out / "report.html").is_file()
    assert "did not answer 'hello'" in " ".join(printed.err.split())
    assert [episode["outcome"] for episode in json.loads(file.read_text())["episodes"]] == ["error"]


def wait_until_it_ticks(address: str) -> None:
    end = time.monotonic() + DEADLINE_S
    with ClientSocket(address) as socket:
        while time.monotonic() < end:
            socket.send(encode(Message("status", 1, {})))
            frames = socket.receive(1.0)
            if frames is not None and (status := decode(frames).body)["running"] and status["step"] >= 5:
                return
            time.sleep(0.02)
    raise AssertionError("no episode ran")
