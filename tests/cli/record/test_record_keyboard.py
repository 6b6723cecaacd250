"""`vla record --source keyboard` over a real pseudo-terminal, in a process of its own, as a person would start it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.cli.main import main
from vla_robot.data.formats.lerobot.demo_dataset import open_demos

DEADLINE_S = 120.0
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Person:
    """Types at one end of a terminal, and reads what stands there."""

    def __init__(self, command: list[str]) -> None:
        self._end, self._terminal = os.openpty()
        self.before = termios.tcgetattr(self._terminal)
        self.screen = ""
        self.process = subprocess.Popen(
            command,
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
            start_new_session=True,
        )

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def read_until(self, pattern: str) -> str:
        """What came on the screen, up to what is looked for."""
        end_s = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < end_s, self.screen[-2000:]
            assert self._look(0.2) or self.process.poll() is None, self.screen[-2000:]
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def leave(self) -> int:
        """Read until the process has ended, as a terminal does."""
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, self.screen[-2000:]
            self._look(0.2)
        while self._look(0.0):
            pass
        return self.process.returncode

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self._terminal)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)
        os.close(self._terminal)

    def _look(self, wait_s: float) -> bool:
        if not select.select([self._end], [], [], wait_s)[0]:
            return False
        text = os.read(self._end, 65536).decode(errors="replace")
        self.screen += COLOURS.sub("", text).replace("\N{NO-BREAK SPACE}", " ")
        return True


@pytest.fixture
def env(small_tabletop: Callable[..., Path]) -> Path:
    return small_tabletop()


@pytest.fixture
def person(env: Path, tmp_path: Path) -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def start(*more: str) -> Person:
        out = str(tmp_path / "demos")
        command = [sys.executable, "-m", "vla_robot.cli.main", "record", "--env", str(env), "--out", out, *more]
        people.append(Person([*command, "--source", "keyboard"]))
        people[-1].read_until("ready")
        return people[-1]

    yield start
    for each in people:
        each.close()


@pytest.mark.sim
def test_keys_record_an_episode_and_the_terminal_is_left_as_it_was(
    person: Callable[..., Person], tmp_path: Path
) -> None:
    who = person("--episodes", "1")
    assert who.modes != who.before
    who.type("\r")
    who.read_until("paused")
    for key, moved in (("w", "2"), ("\x1b[D", "4")):
        who.type(key)
        who.read_until(rf"steps\s+{moved}")
    who.type("iput it down\r")
    who.read_until(r"put it down")
    who.type(" ")
    who.read_until("gripper closed")
    who.type("y")
    assert who.leave() == 0, who.screen[-2000:]
    assert who.modes == who.before
    (episode,) = open_demos(tmp_path / "demos").episodes
    assert episode.success and episode.driver == "a person, by keyboard"
    demos = open_demos(tmp_path / "demos")
    assert demos.actions[0, 0] > 0 and demos.actions[2, 5] > 0  # the first nudge was forward, the second a turn
    note = json.loads((tmp_path / "demos" / "meta" / "recording.jsonl").read_text())
    assert note["rate_hz"] > 0 and note["late_ticks"] >= 0


@pytest.mark.sim
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "sighup"])
def test_an_interruption_keeps_what_is_finished_and_leaves_the_terminal_as_it_was(
    person: Callable[..., Person], tmp_path: Path, how: str
) -> None:
    who = person("--episodes", "2")
    who.type("\r")
    who.read_until("paused")
    who.type("w")
    who.read_until(r"steps\s+2")
    who.type("n")
    who.read_until("kept")
    who.read_until("ready")
    who.type("\r")
    who.read_until("paused")
    who.type("w")
    who.read_until(r"steps\s+2")
    if how == "ctrl-c":
        os.killpg(who.process.pid, signal.SIGINT)
    else:
        who.process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGHUP)
    assert who.leave() == EXIT_INTERRUPTED, who.screen[-2000:]
    assert who.modes == who.before
    assert [e.stop - e.start for e in open_demos(tmp_path / "demos").episodes] == [2]


def test_without_a_terminal_it_says_what_to_do(
    env: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    out = str(tmp_path / "demos")
    assert main(["record", "--env", str(env), "--source", "keyboard", "--out", out]) == EXIT_USER_ERROR
    assert "ssh -t" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.parametrize(("by", "meant"), [("keybord", "keyboard"), ("so101_lead", "so101_leader")])
def test_a_device_that_is_misspelt_is_named(by: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["record", "--env", "tabletop", "--source", by, "--out", str(tmp_path / "d")]) == EXIT_USER_ERROR
    assert f"did you mean '{meant}'" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--arm"], ["--robot", "tcp://127.0.0.1:5570"]])
def test_a_robots_options_are_for_a_person_and_a_robot(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["record", "--env", "tabletop", *option, "--out", str(tmp_path / "d")]
    assert main([*arguments, "--source", "keyboard"]) == EXIT_USER_ERROR
    assert main([*arguments, "--source", "expert"]) == EXIT_USER_ERROR
    assert "--source keyboard" in capsys.readouterr().err
