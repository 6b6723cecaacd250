"""`vla view` as a command: two addresses, one of which may stop; Ctrl-C ends it and the arm goes on."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loop import EmulatedArm
from vla_robot.cli.common.cli_common import EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.embodiment import CameraSpec
from vla_robot.core.errors import VlaError
from vla_robot.core.robot import Tick
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.transport.jpeg import decode_jpeg
from vla_robot.transport.sockets import ServerSocket

DEADLINE_S = 60.0


@pytest.fixture
def address() -> Iterator[str]:
    """Where a bridge with an emulated arm listens."""
    clock, arm, over = MonotonicClock(), EmulatedArm(50.0), threading.Event()
    limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
    with ServerSocket() as socket:
        server = BridgeServer(Bridge(arm, limits, Watchdog(clock), clock), socket, clock)
        thread = threading.Thread(target=server.serve, args=(over.is_set,), daemon=True)
        thread.start()
        yield socket.address
        over.set()
        thread.join(timeout=60)


@pytest.fixture
def view(address: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command with these options."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vla_robot.cli.main", "view", address, "--port", "0", *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_it_serves_a_page_until_ctrl_c(view: Callable[..., subprocess.Popen[str]]) -> None:
    process = view()
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert "emulated" in lines[0] and "front, wrist" in lines[0] and "may stop the arm" in lines[1]
    operator, watcher = (re.findall(r"http://127\.0\.0\.1:\d+/\S*", line)[0] for line in lines[1:3])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#[\w-]{16,}", operator) and "#" not in watcher
    with urllib.request.urlopen(f"{watcher}about", timeout=DEADLINE_S) as answer:
        assert json.load(answer)["may"] == []
    process.send_signal(signal.SIGINT)
    assert "the robot was not affected" in process.stdout.read()
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--port", "70000"], "1 to 65535"),
        (["--host", "192.168.1.20"], "without a certificate"),
        (["--certificate", "nothing.pem"], "cannot serve the page"),
    ],
)
def test_what_cannot_be_served_is_told(
    address: str, options: list[str], why: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["view", address, *options]) == EXIT_USER_ERROR
    assert why in capsys.readouterr().err.replace("\n", " ")


def dataset(folder: Path, camera: str) -> Path:
    """One episode of one step, seen by one camera: all grey."""
    arm = EmulatedArm(50.0)
    seen = arm.reset(0)
    frame = np.full((16, 16, 3), 100, np.uint8)
    builder = DemonstrationBuilder()
    builder.add(replace(seen, images={camera: frame}), np.zeros(len(arm.embodiment.action)), arm.hold())
    with LeRobotWriter(folder) as writer:
        writer.write(builder.finish(replace(arm.embodiment, cameras=(CameraSpec(camera, 16, 16),)), 0, "a test"))
    return folder


def test_recorded_frames_come_from_a_dataset(view: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = view("--overlay", str(dataset(tmp_path / "demos", "wrist")))
    assert process.stdout is not None
    watcher = re.findall(r"http://127\.0\.0\.1:\d+/", "".join(process.stdout.readline() for _ in range(3)))[-1]
    with urllib.request.urlopen(f"{watcher}about", timeout=DEADLINE_S) as answer:
        overlay = json.load(answer)["overlay"]
    assert list(overlay) == ["wrist"]
    np.testing.assert_allclose(decode_jpeg(np.frombuffer(base64.b64decode(overlay["wrist"]), np.uint8)), 100, atol=2)


def test_a_dataset_of_other_cameras_is_refused(address: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    demos = dataset(tmp_path / "demos", "side")
    assert main(["view", address, "--port", "0", "--overlay", str(demos)]) == EXIT_USER_ERROR
    assert re.search(r"cameras side.*robot has front, wrist", capsys.readouterr().err.replace("\n", " "))


def test_without_rerun_the_extra_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("vla_robot.core.host.optional.installed", lambda distribution: None)
    assert main(["view", address, "--port", "0", "--rerun", str(tmp_path / "seen.rrd")]) == EXIT_USER_ERROR
    assert "vla_robot[rerun]" in capsys.readouterr().err.replace("\n", "")


def test_what_is_seen_is_kept_for_rerun(tmp_path: Path) -> None:
    """Where the extra [rerun] is installed."""
    pytest.importorskip("rerun")
    from vla_robot.cli.view.rerun_view import RerunLog

    path, arm = tmp_path / "seen.rrd", EmulatedArm(50.0)
    arm.reset(0)
    log = RerunLog(path)
    for _ in range(4):
        log(Tick(arm.hold(), "hold", "no action is due yet", -1, 0, 0), arm.embodiment)
    log.close()
    assert path.read_bytes()[:3] == b"RRF" and path.stat().st_size > 4 * 2 * 10_000  # frames of noise
    with pytest.raises(VlaError, match="never overwritten"):
        RerunLog(path)
