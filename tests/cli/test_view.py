"""`vla view` as a command: two addresses, one of which may stop; Ctrl-C ends it and the arm goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_robot.act.limits import limits_of
from vla_robot.act.safety import SafetyFilter
from vla_robot.act.watchdog import Watchdog
from vla_robot.cli.bench_loop import EmulatedArm
from vla_robot.cli.main import main
from vla_robot.cli.words import EXIT_USER_ERROR
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.errors import VlaError
from vla_robot.core.robot import Tick
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.serve.bridge import Bridge
from vla_robot.serve.bridge_server import BridgeServer
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
        thread.join(timeout=5)


@pytest.fixture
def start(address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "vla_robot.cli.main", "view", address, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    yield process
    process.kill()
    process.wait()


def test_it_serves_a_page_until_ctrl_c(start: subprocess.Popen[str]) -> None:
    assert start.stdout is not None
    lines = [start.stdout.readline() for _ in range(5)]
    assert "emulated" in lines[0] and "front, wrist" in lines[0] and "may stop the arm" in lines[1]
    operator, watcher = (re.findall(r"http://127\.0\.0\.1:\d+/\S*", line)[0] for line in lines[1:3])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#[\w-]{16,}", operator) and "#" not in watcher
    with urllib.request.urlopen(f"{watcher}about", timeout=DEADLINE_S) as answer:
        assert json.load(answer)["may"] == []
    start.send_signal(signal.SIGINT)
    assert "the robot was not touched" in start.stdout.read()
    assert start.wait(DEADLINE_S) == 0


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


def test_without_rerun_the_extra_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("vla_robot.core.optional.installed", lambda distribution: None)
    assert main(["view", address, "--port", "0", "--rerun", str(tmp_path / "seen.rrd")]) == EXIT_USER_ERROR
    assert "vla_robot[rerun]" in capsys.readouterr().err.replace("\n", "")


def test_what_is_seen_is_kept_for_rerun(tmp_path: Path) -> None:
    """Where the extra [rerun] is installed."""
    pytest.importorskip("rerun")
    from vla_robot.cli.view_rerun import RerunLog

    path, arm = tmp_path / "seen.rrd", EmulatedArm(50.0)
    arm.reset(0)
    log = RerunLog(path)
    for _ in range(4):
        log(Tick(arm.hold(), "hold", "no action is due yet", -1, 0, 0), arm.embodiment)
    log.close()
    assert path.read_bytes()[:3] == b"RRF" and path.stat().st_size > 4 * 2 * 10_000  # frames of noise
    with pytest.raises(VlaError, match="never overwritten"):
        RerunLog(path)
