"""What happens to a cell. Each fault says what the arm must do about it, and undoes itself in `recover`."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from cell import Cell, Program, ask

from vla_robot.core.errors import VlaError
from vla_robot.transport.sockets import ClientSocket

Expected = Literal["held", "stopped", "goes on", "ends", "dies"]
"""held: nothing moves after the hold time; stopped: the same, and only arming releases it; goes on: the arm moves on;
ends: the bridge ends by itself, the arm supported; dies: it was killed, and the arm is told nothing more."""


@dataclass(frozen=True)
class Fault:
    """One kind of thing that goes wrong.

    Attributes:
        name: for the table.
        happen: does it.
        expected: of the arm.
        recover: undoes what outlives it.
    """

    name: str
    happen: Callable[[Cell, Random], None]
    expected: Expected
    recover: Callable[[Cell], None] = lambda cell: None


def _program(cell: Cell, name: str) -> Program:
    program = getattr(cell, name)
    assert isinstance(program, Program)
    return program


def _signal(name: str, number: signal.Signals) -> Callable[[Cell, Random], None]:
    return lambda cell, rng: _program(cell, name).signal(number)


def _go_on(name: str) -> Callable[[Cell], None]:
    return lambda cell: _program(cell, name).signal(signal.SIGCONT)


def _kill(name: str) -> Callable[[Cell, Random], None]:
    return lambda cell, rng: _program(cell, name).kill()


def _think(mode: str, delay_s: float = 0.0) -> Callable[[Cell, Random], None]:
    return lambda cell, rng: cell.think(mode, delay_s)


def _think_well(cell: Cell) -> None:
    cell.think()


def _break_arm(*on: str, slow_s: float = 0.0) -> Callable[[Cell, Random], None]:
    def happen(cell: Cell, rng: Random) -> None:
        cell.arm(on=on, **{"raise": rng.choice(["WorldError", "OSError", "ValueError", "KeyError", "RuntimeError"])})

    def dawdle(cell: Cell, rng: Random) -> None:
        cell.arm(on=on, slow_s=slow_s)

    return dawdle if slow_s else happen


def _mend_arm(cell: Cell) -> None:
    cell.arm()


def _pause_bridge(cell: Cell, rng: Random) -> None:
    bridge = _program(cell, "bridge")
    bridge.signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.1, 2.0))
    bridge.signal(signal.SIGCONT)


def _garbage(cell: Cell, rng: Random) -> None:
    with ClientSocket(cell.bridge_address) as client:
        for _ in range(rng.randint(1, 200)):
            frames = [rng.randbytes(rng.randint(0, 400)) for _ in range(rng.randint(1, 5))]
            with contextlib.suppress(VlaError):
                client.send(list(frames))
        client.receive(0.05)


def _garbage_below_zeromq(cell: Cell, rng: Random) -> None:
    for _ in range(20):
        with contextlib.suppress(OSError), _connection(cell.bridge_address) as raw:
            raw.sendall(rng.randbytes(rng.randint(1, 5000)))


def _silent_connections(cell: Cell, rng: Random) -> None:
    held = []
    with contextlib.suppress(OSError):
        for _ in range(rng.randint(20, 120)):
            held.append(_connection(cell.bridge_address))
    time.sleep(0.5)
    for raw in held:
        raw.close()


def _connection(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=2.0)


def _strangers(cell: Cell, rng: Random) -> None:
    """Others ask for the arm, and for what only its controller may."""
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["hello", "reset", "chunk", "end", "arm", "close", "nonsense", "status"])
        body = {"protocol": 1, "wanted": {}, "session": "0" * 32, "episode": 1, "seed": -1, "lockstep": False}
        with contextlib.suppress(VlaError):
            ask(cell.bridge_address, kind, body, timeout_s=1.0)


def _network_stop(cell: Cell, rng: Random) -> None:
    assert "message" not in ask(cell.bridge_address, "stop", {"reason": "chaos"}, timeout_s=60.0)


def _log_killed(cell: Cell, rng: Random) -> None:
    for pid in cell.log_processes():
        os.kill(pid, signal.SIGKILL)


def _log_suspended(cell: Cell, rng: Random) -> None:
    pids = cell.log_processes()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(rng.uniform(0.2, 1.5))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _log_disk_full(cell: Cell, rng: Random) -> None:
    """No file of the process that writes the log may grow: to it, the disk is full."""
    for pid in cell.log_processes():
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (rng.choice([0, 1000, 20_000]), resource.RLIM_INFINITY))


def _log_disk_free(cell: Cell) -> None:
    for pid in cell.log_processes():
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _log_folder_is_a_file(cell: Cell, rng: Random) -> None:
    folder = cell.folder / "log"
    with contextlib.suppress(FileNotFoundError):
        folder.rename(cell.folder / f"log_{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        folder.write_text("no folder")


def _log_folder_back(cell: Cell) -> None:
    if (cell.folder / "log").is_file():
        (cell.folder / "log").unlink()


def _log_folder_gone(cell: Cell, rng: Random) -> None:
    folder = cell.folder / "log"
    with contextlib.suppress(OSError):
        for part in folder.glob("*.part"):
            part.unlink()
        shutil.move(folder, cell.folder / f"log_{time.monotonic_ns()}")


def _closed_output(name: str) -> Callable[[Cell, Random], None]:
    def happen(cell: Cell, rng: Random) -> None:
        _program(cell, name).close_output()
        if name == "bridge":
            _program(cell, name).signal(signal.SIGUSR1)  # it has something to say

    return happen


def _unread_output(cell: Cell, rng: Random) -> None:
    """The output of the bridge is not read, and it prints much."""
    bridge = _program(cell, "bridge")
    bridge.stop_reading()
    for _ in range(100):
        bridge.signal(signal.SIGUSR1)
        time.sleep(0.002)


def _terminal_signals(cell: Cell, rng: Random) -> None:
    for number in rng.sample([signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU], k=2):
        _program(cell, "bridge").signal(number)


FAULTS = (
    Fault("controller killed", _kill("controller"), "held"),
    Fault("controller suspended", _signal("controller", signal.SIGSTOP), "held", _go_on("controller")),
    Fault("controller: SIGTERM", _signal("controller", signal.SIGTERM), "held"),
    Fault("controller: SIGHUP", _signal("controller", signal.SIGHUP), "held"),
    Fault("controller: SIGINT", _signal("controller", signal.SIGINT), "held"),
    Fault("controller: output closed", _closed_output("controller"), "goes on"),
    Fault("policy server killed", _kill("policy"), "held"),
    Fault("policy server suspended", _signal("policy", signal.SIGSTOP), "held", _go_on("policy")),
    Fault("policy: 0.2 s late", _think("steady", 0.2), "goes on", _think_well),
    Fault("policy: 0.7 s late", _think("steady", 0.7), "held", _think_well),
    Fault("policy: chunks, 0.2 s late", _think("chunk", 0.2), "goes on", _think_well),
    Fault("policy: not a number", _think("nan"), "held", _think_well),
    Fault("policy: actions far too large", _think("huge"), "goes on", _think_well),
    Fault("policy: wrong shape", _think("shape"), "held", _think_well),
    Fault("policy: an exception", _think("raise"), "held", _think_well),
    Fault("bridge: e-stop by SIGUSR1", _signal("bridge", signal.SIGUSR1), "stopped"),
    Fault("bridge: stop over the network", _network_stop, "stopped"),
    Fault("bridge: suspended, then continued", _pause_bridge, "goes on"),
    Fault("bridge: terminal signals", _terminal_signals, "goes on"),
    Fault("bridge: SIGTERM", _signal("bridge", signal.SIGTERM), "ends"),
    Fault("bridge: SIGINT", _signal("bridge", signal.SIGINT), "ends"),
    Fault("bridge: SIGHUP", _signal("bridge", signal.SIGHUP), "ends"),
    Fault("bridge: killed", _kill("bridge"), "dies"),
    Fault("bridge: output closed, then e-stop", _closed_output("bridge"), "stopped"),
    Fault("bridge: output never read", _unread_output, "stopped"),
    Fault("bridge: input closed", lambda cell, rng: _program(cell, "bridge").close_input(), "goes on"),
    Fault("log: its process killed", _log_killed, "goes on"),
    Fault("log: its process suspended", _log_suspended, "goes on"),
    Fault("log: disk full", _log_disk_full, "goes on", _log_disk_free),
    Fault("log: its folder is a file", _log_folder_is_a_file, "goes on", _log_folder_back),
    Fault("log: its folder is gone", _log_folder_gone, "goes on"),
    Fault("arm fails in a command", _break_arm("command"), "stopped", _mend_arm),
    Fault("arm fails in a hold", _break_arm("hold"), "goes on", _mend_arm),
    Fault("arm fails in everything", _break_arm("command", "hold", "stop", "look", "reset"), "stopped", _mend_arm),
    Fault("arm is slow to answer", _break_arm("command", slow_s=0.12), "goes on", _mend_arm),
    Fault("network: garbage", _garbage, "goes on"),
    Fault("network: garbage below ZeroMQ", _garbage_below_zeromq, "goes on"),
    Fault("network: silent connections", _silent_connections, "goes on"),
    Fault("network: strangers ask for the arm", _strangers, "goes on"),
)
