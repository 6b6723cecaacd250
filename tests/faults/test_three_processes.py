"""Bridge, policy server and loop as three processes over TCP, with the shipped policy; and what a kill -9 does.

Each process starts a simulator or torch, which costs tens of seconds: VLA_SLOW=1 runs these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from waiting import eventually

from vla_robot.core.clock import NS_PER_S
from vla_robot.record.episode import EpisodeLog, read_episode
from vla_robot.web.latest_frame import LatestFrameBuffer
from vla_robot.web.view import BridgeView

pytestmark = [
    pytest.mark.sim,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("VLA_SLOW"), reason="three programs; VLA_SLOW=1 runs it"),
    pytest.mark.timeout(900),
]

DEADLINE_S = 200.0
HOLD_AFTER_S = 0.5
TICK_S = 0.1
SEED = 10_000


@dataclass
class Program:
    """A `vla` command in a process of its own, whose lines are read as they come."""

    arguments: tuple[str, ...]
    lines: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vla_robot.cli.main", *self.arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def find(self, pattern: str) -> str:
        """The first match of a pattern in what it prints."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if found := re.search(pattern, self.printed):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"'{pattern}' was not printed by {self.arguments}:\n{self.printed}")

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def kill(self) -> int:
        """As the system does when memory runs out; the monotonic time [ns] at which it is dead."""
        self.process.kill()
        self.process.wait()
        return time.monotonic_ns()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)


@dataclass
class Lab:
    """A running bridge with the simulated Panda, and a running policy server."""

    folder: Path
    programs: contextlib.ExitStack

    def __post_init__(self) -> None:
        self.bridge = self.start(
            "bridge", "envs/lift.toml", "--bind", "tcp://127.0.0.1:0", "--record", str(self.folder / "log"),
            "--max-age-s", "5", "--hold-after-s", str(HOLD_AFTER_S), "--stop-after-s", "5",
            "--json", str(self.folder / "bridge.json"),
        )  # fmt: skip
        self.policy = self.serve("tcp://127.0.0.1:0")
        self.robot_address = self.bridge.find(r"listening on (tcp://\S+),")
        self.policy_address = self.policy.find(r"(tcp://127\.0\.0\.1:\d+)")

    def start(self, *arguments: str) -> Program:
        program = Program(arguments)
        self.programs.callback(program.kill)
        return program

    def serve(self, address: str) -> Program:
        return self.start("serve", "openvla_nano", "--bind", address)

    def run(self, name: str, *options: str) -> Program:
        return self.start(
            "run", "--robot", self.robot_address, "--policy", self.policy_address, "--episodes", "1",
            "--seed", str(SEED), "--out", str(self.folder / name), "--json", str(self.folder / f"{name}.json"),
            *options,
        )  # fmt: skip

    def ended(self, run: Program, name: str) -> dict[str, object]:
        """The only episode of a run that comes to its end."""
        run.process.wait(DEADLINE_S)
        results = self.folder / f"{name}.json"
        assert results.is_file(), run.printed
        (episode,) = json.loads(results.read_text())["episodes"]
        return episode

    def logs(self) -> list[EpisodeLog]:
        return [read_episode(path) for path in sorted((self.folder / "log").glob("*.vlalog"))]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with contextlib.ExitStack() as programs:
        yield Lab(tmp_path, programs)


def facts_of(board: LatestFrameBuffer) -> dict[str, object]:
    scene = board.next(0, timeout_s=1.0)
    return {} if scene is None else dict(scene.facts)


def drives(board: LatestFrameBuffer, step: int = 3) -> bool:
    facts = facts_of(board)
    return facts.get("mode") == "run" and int(str(facts.get("step", 0))) >= step


def require_safe(log: EpisodeLog, dead_ns: int) -> None:
    """Nothing beyond the limits reached the arm, and nothing but holding after the watchdog's time."""
    low, high = (np.array([dim[key] for dim in log.header["embodiment"]["action"]["dims"]]) for key in ("low", "high"))
    assert len(log.steps) > 3
    executed = [step.executed for step in log.steps if step.executed is not None]
    assert executed
    assert (np.stack(executed) >= low - 1e-9).all() and (np.stack(executed) <= high + 1e-9).all()
    late = [s for s in log.steps if s.command_ns > dead_ns + (HOLD_AFTER_S + 2 * TICK_S) * NS_PER_S]
    assert all(step.commanded is None for step in late), "something drove the arm after its driver's death"


def test_the_shipped_policy_lifts_the_cube_through_three_processes(lab: Lab) -> None:
    assert lab.ended(lab.run("lift"), "lift")["outcome"] == "success"
    assert lab.bridge.end() == 0 and lab.policy.end() == 0
    (log,) = lab.logs()
    assert log.summary is not None and log.summary["outcome"] == "success" and log.damage is None


def test_a_killed_policy_server_holds_the_arm_and_a_new_one_goes_on_without_a_new_bridge(lab: Lab) -> None:
    board = LatestFrameBuffer()
    with BridgeView(lab.robot_address, board):
        run = lab.run("broken")
        eventually(lambda: drives(board))
        dead_ns = lab.policy.kill()
        eventually(lambda: facts_of(board).get("mode") != "run")
        assert facts_of(board)["reason"]
    broken = lab.ended(run, "broken")
    assert broken["outcome"] == "error" and "did not answer" in str(broken["error"])
    eventually(lambda: len(lab.logs()) == 1)
    (log,) = lab.logs()
    assert log.damage is None and log.summary is not None and log.summary["steps"] == len(log.steps)
    require_safe(log, dead_ns)
    lab.serve(lab.policy_address).find(r"(tcp://127\.0\.0\.1:\d+)")
    # The silence was long enough for the supported stop, which only a person releases.
    refused = lab.run("refused")
    assert refused.process.wait(DEADLINE_S) != 0 and "--arm" in refused.find("(the arm is stopped.*)")
    assert lab.ended(lab.run("again", "--arm"), "again")["outcome"] == "success"


def test_a_killed_loop_holds_the_arm_and_the_next_one_takes_over(lab: Lab) -> None:
    board = LatestFrameBuffer()
    with BridgeView(lab.robot_address, board):
        run = lab.run("killed")
        eventually(lambda: drives(board))
        dead_ns = run.kill()
        eventually(lambda: facts_of(board).get("mode") != "run")
    assert lab.ended(lab.run("next", "--arm"), "next")["outcome"] == "success"
    killed, finished = lab.logs()
    require_safe(killed, dead_ns)
    assert finished.summary is not None and finished.summary["outcome"] == "success"
