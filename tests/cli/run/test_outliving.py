"""Commands in processes of their own, whose terminal, pipes and disk go away around them.

Each bridge drives the tabletop's arm with one small camera, which starts in a second.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, EXIT_USER_ERROR
from vla_robot.record.episode import read_episode
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode

DEADLINE_S = 120.0
"""For what takes a second where nothing else is at work."""

VLA = (sys.executable, "-P", "-m", "vla_robot.cli.main")
ENTER, CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\r", "\x03", "\x04", "\x1a", "\x1c"

pytestmark = pytest.mark.sim
slow = pytest.mark.slow


class Shell:
    """An interactive shell on a terminal of its own, as a person would sit at one."""

    def __init__(self) -> None:
        self._person, terminal = os.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=os.environ | {"TERM": "dumb", "PS1": "ready> "},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # job control needs it
        )  # fmt: skip
        os.close(terminal)
        self.read_until("ready> ")

    def type(self, keys: str) -> None:
        os.write(self._person, keys.encode())

    def read_until(self, pattern: str) -> re.Match[str]:
        """What is found on the screen; what stands before it is forgotten."""
        end_s = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end_s, self.seen
            if select.select([self._person], [], [], 0.2)[0]:
                self.seen += os.read(self._person, 65536).decode(errors="replace").replace("\r\n", "\n")
        self.seen = self.seen[found.end() :]
        return found

    def hang_up(self) -> None:
        """As a connection that drops."""
        os.close(self._person)
        self._person = -1

    def close(self) -> None:
        if self._person >= 0:
            self.hang_up()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()


@pytest.fixture
def env(small_tabletop: Callable[..., Path]) -> Path:
    return small_tabletop(horizon=100_000)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a process of its own, which is gone when the test ends."""
    with ExitStack() as stack:

        def begin(*arguments: str, **options: Any) -> subprocess.Popen[str]:
            environment = os.environ | options.pop("env", {})
            process = subprocess.Popen([*VLA, *arguments], text=True, env=environment, **options)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def bridge(env: Path, start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[Any, str]]:
    """Starts a bridge whose output is a file: its process and address."""

    def begin(*more: str, **options: Any) -> tuple[subprocess.Popen[str], str]:
        told = env.with_name("told.txt")
        with told.open("w") as out:
            process = start(*bridging(env), *more, **{"stdout": out, "stderr": out, **options})
        eventually(lambda: "listening on" in told.read_text() or process.poll() is not None)
        return process, address_in(told.read_text())

    return begin


def bridging(env: Path) -> Sequence[str]:
    return "bridge", str(env), "--bind", "tcp://127.0.0.1:0", "--hold-after-s", "60", "--stop-after-s", "600"


def address_in(told: str) -> str:
    found = re.search(r"listening on (tcp://\S+),", told)
    assert found, told
    return found[1]


def status(address: str) -> dict[str, Any]:
    """As another program of this computer asks for it: an answer means that the bridge's only thread goes on."""
    with ClientSocket(address) as socket:
        socket.send(encode(Message("status", 1, {})))
        answers: list[Any] = []

        def answered() -> bool:
            answers.extend(filter(None, [socket.receive(0.1)]))
            return bool(answers)

        eventually(answered)
        return dict(decode(answers[0]).body)


def state_of(pid: int) -> str:
    """One letter of the process's state: T is suspended."""
    found = re.search(r"^State:\s+(\w)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return found[1]


def running_episode(address: str) -> RemoteRobot:
    robot = RemoteRobot(address)
    robot.begin(0)
    assert robot.newest(after=3, timeout_s=DEADLINE_S) is not None
    return robot


def why_it_ended(folder: Path) -> str:
    """Of the only episode, by its log, which was closed."""
    (log,) = folder.glob("*.vlalog")
    summary = read_episode(log).summary
    assert summary is not None
    return summary["error"]


def test_nothing_that_is_typed_suspends_a_bridge_in_the_background(shell: Shell, env: Path) -> None:
    shell.type(f"stty tostop; {' '.join([*VLA, *bridging(env)])} &\r")
    address, pid = shell.read_until(r"listening on (tcp://\S+), process (\d+)").groups()
    promise = shell.read_until("e-stop: .*")[0]
    assert f"e-stop: kill -USR1 {pid}" in promise and "Enter" not in promise
    with running_episode(address) as robot:
        for keys in (ENTER, ENTER, CTRL_Z, CTRL_D.join("x\b"), ENTER):
            shell.type(keys)
        shell.type("echo nothing stopped\r")
        shell.read_until("\nnothing stopped")
        tick = robot.newest(after=10, timeout_s=DEADLINE_S)
        assert tick is not None and not status(address)["reason"].startswith("emergency")
    assert state_of(int(pid)) != "T"
    shell.type("fg\r")
    assert "Enter here, or kill" in shell.read_until("e-stop: .*")[0]
    shell.type(CTRL_Z)
    shell.type(ENTER)
    shell.read_until("E-STOP: the Enter key at the bridge")
    assert state_of(int(pid)) != "T"
    shell.type(CTRL_BACKSLASH)  # a key that ends a program without a word, elsewhere
    shell.read_until("The arm was held, and its connection is closed")
    shell.read_until("ready> ")


def test_output_in_the_background_does_not_suspend_a_command_at_any_time(shell: Shell, tmp_path: Path) -> None:
    says = tmp_path / "says.py"
    says.write_text(
        "import os\nfrom vla_robot.core.host.console import steady_output\n"
        "with steady_output() as out:\n    print(f'said by {os.getpid()}')\n"
        "    out.settle(60)\n    print('and went on')\n"
    )
    shell.type(f"stty tostop; {sys.executable} {says} &\r")
    shell.read_until(r"said by (\d+)")
    shell.read_until("and went on")


def test_enter_in_the_foreground_is_promised_and_kept(shell: Shell, env: Path) -> None:
    shell.type(f"{' '.join([*VLA, *bridging(env)])}\r")
    address = shell.read_until(r"listening on (tcp://\S+),")[1]
    assert "Enter here, or kill -USR1" in shell.read_until("e-stop: .*")[0]
    shell.type("half a line" + CTRL_D)  # gives the line without its end
    shell.read_until("E-STOP: the Enter key at the bridge")
    assert status(address)["reason"] == "emergency stop by the Enter key at the bridge"
    shell.type(CTRL_C)
    shell.read_until("The arm was held, and its connection is closed")


def test_a_terminal_that_hangs_up_ends_the_bridge_as_sigterm_does(shell: Shell, env: Path, tmp_path: Path) -> None:
    kept, report = tmp_path / "log", tmp_path / "bridge.json"
    command = [*VLA, *bridging(env), "--record", str(kept), "--json", str(report)]
    shell.type(f"{' '.join(command)}\r")
    address = shell.read_until(r"listening on (tcp://\S+),")[1]
    robot = running_episode(address)
    shell.hang_up()
    eventually(report.exists)
    robot.close()
    assert why_it_ended(kept) == "the bridge was ended"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, *(pytest.param(n, marks=slow) for n in (signal.SIGQUIT, signal.SIGINT))]
)
def test_every_signal_that_ends_a_bridge_closes_its_log(
    bridge: Callable[..., tuple[Any, str]], number: signal.Signals, tmp_path: Path
) -> None:
    process, address = bridge("--record", str(tmp_path / "log"))
    with running_episode(address):
        process.send_signal(number)
        if number == signal.SIGHUP:
            process.send_signal(number)  # the shell sends one, and so does the terminal
        assert process.wait(DEADLINE_S) == 0
    assert why_it_ended(tmp_path / "log") == "the bridge was ended"


def test_under_nohup_a_hang_up_means_nothing(bridge: Callable[..., tuple[Any, str]]) -> None:
    process, address = bridge(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    assert status(address)["mode"] == "hold"
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_pipe_whose_reader_left_does_not_end_the_bridge(
    env: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(*bridging(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    told = "".join(process.stdout.readline() for _ in range(4))
    process.stdout.close()  # as `| head -4`
    address = address_in(told)
    with running_episode(address) as robot:
        process.send_signal(signal.SIGUSR1)
        eventually(lambda: robot.status()["reason"] == "emergency stop by signal SIGUSR1")
    assert process.poll() is None
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("closed", [pytest.param((0,), marks=slow), pytest.param((1,), marks=slow), (0, 1, 2)])
def test_closed_standard_streams_do_not_end_the_bridge(
    env: Path, start: Callable[..., subprocess.Popen[str]], closed: Sequence[int], tmp_path: Path
) -> None:
    report = tmp_path / "bridge.json"
    address = f"ipc://{tmp_path}/bridge"
    arguments = (*bridging(env)[:3], address, "--json", str(report))
    process = start(*arguments, preexec_fn=lambda: [os.close(fd) for fd in closed])
    status(address)  # waits until the bridge is there
    with running_episode(address) as robot:
        process.send_signal(signal.SIGUSR1)
        eventually(lambda: robot.status()["reason"] == "emergency stop by signal SIGUSR1")
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    assert report.exists()


def test_a_pipe_that_nobody_reads_neither_delays_the_bridge_nor_keeps_it_from_ending(
    env: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(*bridging(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    told = ""
    while "Next:" not in told:
        told += process.stdout.readline()
    address = address_in(told)
    with running_episode(address) as robot:
        for _ in range(60):  # each stop prints a line: more than the pipe holds
            process.send_signal(signal.SIGUSR1)
            eventually(lambda: robot.status()["mode"] == "stopped")
            robot.arm()
        assert robot.begin(1).step == 0
        assert robot.newest(after=3, timeout_s=DEADLINE_S) is not None
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_full_disk_under_the_output_is_told_at_the_end_and_ends_nothing(
    start: Callable[..., subprocess.Popen[str]], env: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ("run", "--env", str(env), "--policy", "first_motion", "--episodes", "2", "--out", str(out))
    with open("/dev/full", "w") as full:
        process = start(*short(command, env), stdout=full, stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == EXIT_USER_ERROR, told
    assert "cannot write to standard output: No space left on device" in " ".join(told.split())
    assert (out / "report.html").exists() and len(list((out / "episodes").iterdir())) == 2


def test_an_encoding_without_tick_marks_loses_no_episode(
    start: Callable[..., subprocess.Popen[str]], env: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ("run", "--env", str(env), "--policy", "hold", "--episodes", "2", "--out", str(out))
    process = start(*short(command, env), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "iso-8859-1"})
    told, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "x episode 1/2" in told and "x episode 2/2" in told
    assert len(list((out / "episodes").iterdir())) == 2


def short(command: Sequence[str], env: Path) -> Sequence[str]:
    env.write_text(env.read_text().replace("horizon = 100000", "horizon = 5"))
    return command


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("run", signal.SIGHUP),
        ("eval", signal.SIGTERM),
        pytest.param("run", signal.SIGTERM, marks=slow),
        pytest.param("eval", signal.SIGHUP, marks=slow),
    ],
)
def test_a_signal_ends_episodes_with_their_report(
    start: Callable[..., subprocess.Popen[str]], env: Path, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    more = ["--workers", "1"] if verb == "eval" else []
    command = (verb, "--env", str(env), "--policy", "hold", "--episodes", "100000", "--out", str(out), *more)
    process = start(*short(command, env), stdout=subprocess.PIPE)
    assert process.stdout is not None
    while "timeout" not in (line := process.stdout.readline()):  # the first finished episode
        assert line, "it ended"
    reader = threading.Thread(target=process.stdout.read)
    reader.start()
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == EXIT_INTERRUPTED
    reader.join()
    assert (out / "report.html").exists()


def test_an_ssh_session_that_drops_leaves_the_report_of_a_run(shell: Shell, env: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("run", "--env", str(env), "--policy", "hold", "--episodes", "100000", "--out", str(out))
    shell.type(" ".join([*VLA, *short(command, env)]) + "\r")
    shell.read_until("timeout")
    shell.hang_up()
    eventually((out / "report.html").exists)


def test_keys_are_not_promised_in_the_background(shell: Shell, env: Path, tmp_path: Path) -> None:
    command = (*VLA, "record", "--env", str(env), "--source", "keyboard", "--out", str(tmp_path / "demos"))
    shell.type(" ".join(command) + " 2>&1 | cat &\r")
    shell.read_until("this runs in the background of its terminal")


def test_a_deleted_working_folder_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {' '.join(VLA)} list"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == EXIT_USER_ERROR and "the working folder is gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_short_command_on_a_full_disk_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*VLA, "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.startswith("error: cannot write to standard output: No space left on device")
    assert "Exception ignored" not in done.stderr


def test_a_short_command_ends_silently_when_its_reader_left() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(VLA)} show envs/lift | true"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) in [(EXIT_INTERRUPTED, ""), (0, "")]  # it may have been faster
