"""`vla record --robot`: a scripted person records from a bridge in its own process, and lerobot opens what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED
from vla_robot.cli.main import main
from vla_robot.cli.record import record_teleop as record_by_hand
from vla_robot.core.errors import TeleopError
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.testing import ScriptedTeleoperator, press

START_TIMEOUT_S = 120.0
RATE_HZ = 10
STEPS = 6


class Scripted(ScriptedTeleoperator):
    """Begins, moves up with a pause in the midst, and ends with success; the last commands may be left out."""

    def __init__(self, episodes: int, steps: int = STEPS, left_out: int = 0) -> None:
        up = TeleopCommand(np.array([0, 0, 0.02, 0, 0, 0, 1.0]))
        said = [press("start"), *[up] * steps, *[TeleopCommand(None)] * 5, up, press("success")] * episodes
        super().__init__(said[: len(said) - left_out])


@pytest.fixture
def address(small_tabletop: Callable[..., Path]) -> Iterator[str]:
    """Of a bridge that drives the tabletop."""
    recipe = small_tabletop(("front", "side"))
    command = [sys.executable, "-m", "vla_robot.cli.main", "bridge", str(recipe), "--bind", "tcp://127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--horizon", "1000"], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        yield listening(process)
    finally:
        process.terminate()
        process.communicate(timeout=120)


def listening(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    end_s = time.monotonic() + START_TIMEOUT_S
    for line in process.stdout:
        if found := re.search(r"listening on (tcp://\S+),", line):
            return found.group(1)
        assert time.monotonic() < end_s
    raise AssertionError("the bridge ended")


@pytest.mark.sim
@pytest.mark.slow
def test_a_person_records_from_a_running_bridge_and_lerobot_opens_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lerobot_dataset: Any
) -> None:
    person, out = Scripted(episodes=2), tmp_path / "demos"
    monkeypatch.setattr(record_by_hand, "open_named_teleoperator", lambda *_, **__: person)
    monkeypatch.setattr(record_by_hand, "welcome", lambda _: "")
    monkeypatch.setattr(record_by_hand, "require_terminal_for", lambda _: None)
    command = ["record", "--robot", address, "--source", "keyboard", "--episodes", "2", "--out", str(out)]
    assert main(command) == 0
    assert person.closed

    dataset = lerobot_dataset("test/demos", root=out)
    assert dataset.num_episodes == 2 and dataset.fps == RATE_HZ
    demos = open_demos(out)
    assert demos.executed is not None
    for number, episode in enumerate(demos.episodes):
        rows = slice(episode.start, episode.stop)
        # The bridge may have been a tick late with the first action, and the arm may have needed one to come to rest.
        assert STEPS <= episode.stop - episode.start <= STEPS + 3, number
        moved = demos.executed[rows]
        assert moved[:, 2].sum() == pytest.approx(demos.actions[rows][:, 2].sum(), abs=0.021)
    item, after = dataset[0], dataset[1]
    assert 0 < int(item["stamp_ns.front"]) < int(after["stamp_ns.front"])
    assert int(item["stamp_ns"]) == min(int(item["stamp_ns.front"]), int(item["stamp_ns.side"]))
    notes = [json.loads(line) for line in (out / "meta" / "recording.jsonl").read_text().splitlines()]
    for note in notes:
        assert note["success"] and note["rested_ticks"] > 0 and note["rate_hz"] > 0
        assert {"dropped_frames", "held_ticks", "late_actions"} <= set(note)
    with RemoteRobot(address) as robot:  # no person drives any more: the arm holds, and is not stopped
        assert robot.status()["mode"] == "hold"


@pytest.mark.sim
def test_ctrl_c_ends_in_the_held_pose_and_keeps_what_is_finished(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupts(Scripted):
        def command(self) -> TeleopCommand:
            if self.is_over:
                signal.raise_signal(signal.SIGINT)
            return super().command()

    person, out = Interrupts(episodes=2, left_out=3), tmp_path / "demos"  # in the midst of the second one
    monkeypatch.setattr(record_by_hand, "open_named_teleoperator", lambda *_, **__: person)
    monkeypatch.setattr(record_by_hand, "welcome", lambda _: "")
    monkeypatch.setattr(record_by_hand, "require_terminal_for", lambda _: None)
    command = ["record", "--robot", address, "--source", "keyboard", "--episodes", "2", "--out", str(out)]
    assert main(command) == EXIT_INTERRUPTED
    assert len(open_demos(out).episodes) == 1 and person.closed
    with RemoteRobot(address) as robot:
        status = robot.status()
        assert not status["running"] and status["mode"] == "hold"


@pytest.mark.sim
def test_when_a_device_is_lost_the_arm_holds_and_finished_episodes_stay(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:

    class Lost(Scripted):
        def command(self) -> TeleopCommand:
            if self.is_over:
                raise TeleopError("the terminal is gone: no person can drive from it any more.")
            return super().command()

    person, out = Lost(episodes=2, left_out=3), tmp_path / "demos"  # in the midst of the second one
    monkeypatch.setattr(record_by_hand, "open_named_teleoperator", lambda *_, **__: person)
    monkeypatch.setattr(record_by_hand, "welcome", lambda _: "")
    monkeypatch.setattr(record_by_hand, "require_terminal_for", lambda _: None)
    assert main(["record", "--robot", address, "--source", "keyboard", "--episodes", "2", "--out", str(out)]) == 2
    assert "the terminal is gone" in capsys.readouterr().err
    assert len(open_demos(out).episodes) == 1 and person.closed
    with RemoteRobot(address) as robot:
        status = robot.status()
        assert not status["running"] and status["mode"] == "hold"
