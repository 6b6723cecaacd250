"""One robot cell of real processes: a bridge with a journalling arm, a policy server, and `vla run` between them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_robot.core.errors import TransportError, VlaError
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode

HERE = Path(__file__).resolve().parent
HOLD_AFTER_S, STOP_AFTER_S, MAX_AGE_S = 0.5, 3.0, 0.5
PATIENCE_S = 60.0
"""For what must come true at some time, on a machine that may be busy."""

RECIPE = """
base = "tabletop"
rate_hz = 20
horizon = 60
[limits]
workspace_low = [-0.3, -0.3, -0.3]
workspace_high = [0.3, 0.3, 0.3]
max_speed_m_s = 0.5
max_acceleration_m_s2 = 5.0
"""
MARK = "VLA_CHAOS_CELL"
"""Environment variable that marks every process of a cell, also those that another one started."""


@dataclass(frozen=True)
class Entry:
    """A line of the arm's journal."""

    at_ns: int
    what: str
    action: tuple[float, ...] | None

    @property
    def moves(self) -> bool:
        return self.what == "command" and self.action is not None and any(self.action[:3])


class Program:
    """A process whose output a thread reads, until it is told to stop reading or to close."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # a session of its own would be orphaned, and terminal signals have no effect there
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            **options,
        )
        self._log = log
        self._reads = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop_reading(self) -> None:
        """What the process prints from now on fills its pipe, which is a small one."""
        self._reads = False
        self._reader.join()
        if self.process.stdout is not None and not self.process.stdout.closed:
            fcntl.fcntl(self.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4096)

    def close_output(self) -> None:
        """What the process prints from now on meets a closed pipe."""
        self.stop_reading()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        number = self.process.stdout.fileno()
        with self._log.open("ab") as file:
            # Polled, as a thread that waits in read() would keep a closed pipe open.
            while self._reads and self.process.stdout:
                if not select.select([number], [], [], 0.05)[0]:
                    continue
                if not (read := os.read(number, 1 << 16)):
                    return
                file.write(read)
                file.flush()


@dataclass
class Cell:
    """The processes of one cell; `with Cell(folder)` leaves none behind."""

    folder: Path
    bridge: Program | None = None
    policy: Program | None = None
    controller: Program | None = None
    restarts: int = 0
    _seed: int = 0
    _read_bytes: int = 0
    _journal: list[Entry] = field(default_factory=list[Entry])

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "cell.toml").write_text(RECIPE)
        self.bridge_address, self.policy_address = (f"tcp://127.0.0.1:{_free_port()}" for _ in range(2))
        self.think()
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def think(self, mode: str = "steady", delay_s: float = 0.0) -> None:
        """How the policy answers from now on."""
        _replace(self.folder / "policy.json", {"mode": mode, "delay_s": delay_s})

    def arm(self, **orders: Any) -> None:
        """How the arm misbehaves from now on; nothing: it does not."""
        _replace(self.folder / "arm.json", orders)

    def journal(self) -> list[Entry]:
        """Everything that the arm was told so far."""
        path = self.folder / "journal.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read_bytes)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read_bytes += len(line)
                    row = json.loads(line)
                    self._journal.append(Entry(row["t"], row["do"], row["a"] and tuple(row["a"])))
        return self._journal

    def moved_since(self, at_ns: int) -> bool:
        return any(entry.moves for entry in reversed(self.journal()[-400:]) if entry.at_ns > at_ns)

    def status(self, timeout_s: float = PATIENCE_S) -> Mapping[str, Any]:
        return ask(self.bridge_address, "status", {}, timeout_s)

    def drive(self) -> None:
        """Have all three run, and the arm move."""
        if self.bridge is None or not self.bridge.alive:
            self._start_bridge()
        if self.policy is None or not self.policy.alive:
            self.policy = self._start([sys.executable, str(HERE / "policy.py"), self.policy_address, "policy.json"])
        began_ns = time.monotonic_ns()
        next_start = 0.0
        end = time.monotonic() + PATIENCE_S
        while not self.moved_since(began_ns):
            if (self.controller is None or not self.controller.alive) and time.monotonic() > next_start:
                self._start_controller()
                next_start = time.monotonic() + 1.0
            if time.monotonic() > end:
                raise AssertionError(f"the arm does not move again: {self._why_not()}")
            time.sleep(0.02)

    def abandon(self) -> None:
        """Kill what runs, so that `drive` begins anew."""
        for pid in processes_of(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for program in (self.bridge, self.policy, self.controller):
            if program is not None:
                program.process.wait()
        self.bridge = self.policy = self.controller = None
        self.think()
        self.arm()

    def log_processes(self) -> list[int]:
        """The bridge's children: what writes its log."""
        if self.bridge is None:
            return []
        return children_of(self.bridge.process.pid)

    def _start_bridge(self) -> None:
        self.restarts += 1
        self.bridge = self._start([
            sys.executable, str(HERE / "arm.py"), str(self.folder), "cell.toml", "--bind", self.bridge_address,
            "--record", str(self.folder / "log"), "--hold-after-s", str(HOLD_AFTER_S),
            "--stop-after-s", str(STOP_AFTER_S), "--max-age-s", str(MAX_AGE_S),
        ])  # fmt: skip
        self.status()

    def _start_controller(self) -> None:
        self._seed += 100
        self.controller = self._start([
            sys.executable, "-m", "vla_robot.cli.main", "run", "--robot", self.bridge_address,
            "--policy", self.policy_address, "--episodes", "100", "--seed", str(self._seed), "--arm",
            "--out", str(self.folder / "runs" / str(self._seed)),
        ])  # fmt: skip

    def _start(self, command: list[str]) -> Program:
        return Program(command, {MARK: self.mark}, self.folder / "output.txt", cwd=self.folder)

    def _why_not(self) -> str:
        with contextlib.suppress(OSError, VlaError):
            printed = (self.folder / "output.txt").read_bytes()[-1500:].decode(errors="replace")
            return f"{dict(self.status(5.0))}\n{printed}"
        return "the bridge does not answer"


def ask(address: str, kind: str, body: Mapping[str, Any], timeout_s: float = 10.0) -> Mapping[str, Any]:
    """A request of a new connection, and its answer's body.

    Raises:
        TransportError: no answer in time.
    """
    end = time.monotonic() + timeout_s
    with ClientSocket(address) as client:
        client.send(encode(Message(kind, 1, dict(body))))
        while time.monotonic() < end:
            if (frames := client.receive(0.05)) is not None:
                return decode(frames).body
    raise TransportError(f"'{kind}' was not answered within {timeout_s:g} s")


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def processes_of(mark: str) -> list[int]:
    """Every living process that was started by a cell, or by a process of it."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if wanted in _environment(pid) and _lives(pid)]


def eventually(holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _replace(path: Path, data: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(data))
    temporary.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
