"""`vla bench stop`: latency of an operator's stop while strangers flood the servers.

    flood, a process of its own  ====connections, garbage, requests====>  bridge | page of vla view | openpi server
    this process  --stop, over a new connection-->  bridge or page, processes of their own; an emulated arm at 50 Hz

A stop ends the episode, so another one begins before the next stop; each uses a new connection. A stop without an
answer within UNANSWERED_S counts as unanswered. SIGUSR1 is measured until the bridge reports that the arm is held.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from benchmarks.children import start_child
from benchmarks.stop_peers import BRIDGE, KEY_NAMES, OPENPI, STOPPED, TOKEN, VIEW
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError, TransportError, VlaError
from vla_robot.core.host.provenance import row
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.transport.keys import ClientSecurity, KeyFolder
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, encode

UNANSWERED_S = 5.0
SPARE_S = 45.0
"""Time for a flood to make all its connections, and for the last stops [s]."""

PAUSE_S = 0.02
"""Pause between two stops [s]."""

SIGNALS = 30
QUIET = "quiet"


@dataclass(frozen=True)
class StopArgs:
    """Measure the latency of an operator's stop, without and with floods of connections, and of SIGUSR1."""

    seconds: Annotated[float, option("S")] = 5.0
    """duration of the stops under each flood"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 60:
            raise RecipeError(f"--seconds {self.seconds:g}: more than 0, at most 60.")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: name of the row.
        stopped_at: server that the stop goes to.
        flood: flood beside it, one of FLOODS; None for none.
        flooded: server that is flooded.
        keys: whether the bridge needs keys.
    """

    name: str
    stopped_at: str
    flood: str | None = None
    flooded: str = BRIDGE
    keys: bool = False


CASES = (
    Case(f"bridge/{QUIET}", BRIDGE),
    Case("bridge/idle", BRIDGE, "idle"),
    Case("bridge/garbage", BRIDGE, "garbage"),
    Case("bridge/hellos", BRIDGE, "hellos"),
    Case("bridge/openpi_idle", BRIDGE, "idle", OPENPI),
    Case(f"bridge_keys/{QUIET}", BRIDGE, keys=True),
    Case("bridge_keys/idle", BRIDGE, "idle", keys=True),
    Case("bridge_keys/garbage", BRIDGE, "garbage", keys=True),
    Case(f"page/{QUIET}", VIEW),
    Case("page/idle", VIEW, "idle", VIEW),
    Case("page/slow_head", VIEW, "slow_head", VIEW),
    Case("page/bridge_idle", VIEW, "idle", BRIDGE),
    Case(f"openpi/{QUIET}", OPENPI),
    Case("openpi/idle", OPENPI, "idle", OPENPI),
)
"""The first of each server is its baseline. openpi has no stop: its time is that until the metadata arrives."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one case.

    Attributes:
        times_ms: times from the new connection to the answer.
        unanswered: number of stops without an answer.
        not_begun: number of stops after which no other episode began, so that the next stop may meet an arm at rest.
    """

    times_ms: list[float]
    unanswered: int
    not_begun: int = 0

    def percentile(self, percent: float) -> float | None:
        return float(np.percentile(self.times_ms, percent)) if self.times_ms else None


def main(args: StopArgs) -> int:
    """Measure, and print a table.

    Raises:
        TransportError: a server did not start.
    """
    load = os.getloadavg()[0]
    say(f"vla bench stop: {args.seconds:g} s a case, load average {load:.1f} on {os.cpu_count()} cores", flush=True)
    results = {case: measure(case, args.seconds) for case in CASES}
    signals = measure_signal(SIGNALS)
    Terminal().print(_table({**{case.name: found for case, found in results.items()}, "SIGUSR1 to held": signals}))
    if args.json:
        write_json(args.json, "bench stop", rows(results, signals), load_average=load)
    return 0


def rows(results: Mapping[Case, Measured], signals: Measured) -> list[dict[str, Any]]:
    """Return the quantiles of every case beside its server's baseline, and the number of unanswered stops."""
    quiet = {case.name.partition("/")[0]: found for case, found in results.items() if case.flood is None}
    made: list[dict[str, Any]] = []
    for case, found in results.items():
        base = quiet[case.name.partition("/")[0]]
        for label, percent in (("p50", 50), ("p99", 99), ("max", 100)):
            ours, theirs = found.percentile(percent), base.percentile(percent)
            ratio = None if ours is None or not theirs else ours / theirs
            made.append(row(f"{case.name}/{label}", ours, "ms", theirs, ratio))
        made.append(row(f"{case.name}/answered", len(found.times_ms), "1"))
        made.append(row(f"{case.name}/unanswered", found.unanswered, "1"))
        made.append(row(f"{case.name}/not_begun", found.not_begun, "1"))
    made += [row(f"sigusr1/{n}", signals.percentile(p), "ms") for n, p in (("p50", 50), ("p99", 99), ("max", 100))]
    return made


def measure(case: Case, seconds: float) -> Measured:
    """Start the servers and the flood, and stop repeatedly."""
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(_servers(case))
        ask = _asking(case, servers)
        robot = None if case.stopped_at == OPENPI else stack.enter_context(_running_episode(servers))
        if case.flood is not None:
            target = servers.addresses[case.flooded].rpartition("://")[2].partition("/")[0]
            flood = stack.enter_context(_peer(case.flood, target, str(seconds + SPARE_S)))
            _first_line(flood, case.flood)
        return _ask_for(ask, robot, seconds)


def measure_signal(count: int) -> Measured:
    """Measure the time from SIGUSR1 to the bridge's line that the arm is held."""
    times_ms: list[float] = []
    not_begun = 0
    case, rng = Case("signal", BRIDGE), np.random.default_rng(0)
    with _servers(case) as servers, _running_episode(servers) as robot:
        process = servers.processes[BRIDGE]
        assert process.stdout is not None
        for _ in range(count):
            sent = time.perf_counter()
            process.send_signal(signal.SIGUSR1)
            while STOPPED not in (line := process.stdout.readline()):
                if not line:
                    return Measured(times_ms, 1, not_begun)
            times_ms.append((time.perf_counter() - sent) * 1e3)
            not_begun += not _begin_again(robot)
            time.sleep(PAUSE_S + float(rng.uniform(0, 0.05)))
    return Measured(times_ms, 0, not_begun)


@dataclass(frozen=True)
class _Servers:
    """Servers of a case: name -> address, name -> process, and the keys of a client."""

    addresses: Mapping[str, str]
    processes: Mapping[str, subprocess.Popen[str]]
    security: ClientSecurity | None


@contextlib.contextmanager
def _servers(case: Case) -> Generator[_Servers]:
    """Run the bridge, and the page or the openpi server if the case uses one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        keys, security = "", None
        if case.keys:
            keys, security = folder, _keys(KeyFolder(Path(folder)))
        addresses: dict[str, str] = {}
        processes: dict[str, subprocess.Popen[str]] = {}

        def start(name: str, *arguments: str) -> None:
            processes[name] = stack.enter_context(_peer(name, *arguments))
            addresses[name] = _first_line(processes[name], name)

        start(BRIDGE, keys)
        if VIEW in (case.stopped_at, case.flooded):
            start(VIEW, addresses[BRIDGE], keys)
        if OPENPI in (case.stopped_at, case.flooded):
            start(OPENPI)
        yield _Servers(addresses, processes, security)


def _keys(folder: KeyFolder) -> ClientSecurity:
    robot, desk = (folder.create(name) for name in KEY_NAMES)
    folder.allow(desk.public, desk.name)
    return ClientSecurity(desk, robot.public)


def _first_line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise TransportError(f"the {name} of the benchmark ended before it was ready; its reason is on stderr.")
    return line


@contextlib.contextmanager
def _peer(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run a process of `stop_peers` during a `with` block."""
    with start_child("stop_peers", *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _running_episode(servers: _Servers) -> Generator[RemoteRobot]:
    """Connect to the bridge and run an episode, until the arm is stopped."""
    with RemoteRobot(servers.addresses[BRIDGE], security=servers.security) as robot:
        robot.begin(seed=0)
        yield robot


def _begin_again(robot: RemoteRobot) -> bool:
    """Begin another episode, since a stop ended the last one.

    Returns:
        Whether it began: a flood may delay it, or deliver an earlier stop now.
    """
    try:
        robot.arm()
        robot.begin(seed=0)
    except VlaError:
        return False
    return True


def _asking(case: Case, servers: _Servers) -> Callable[[], bool]:
    """Return a function that sends a stop over a new connection and returns whether it was answered."""
    address = servers.addresses[case.stopped_at]
    if case.stopped_at == VIEW:
        return lambda: _stop_by_page(address.partition("://")[2].rstrip("/"))
    if case.stopped_at == OPENPI:
        return lambda: _connect_openpi(address)
    return lambda: _stop_bridge(address, servers.security)


def _ask_for(ask: Callable[[], bool], robot: RemoteRobot | None, seconds: float) -> Measured:
    times_ms: list[float] = []
    unanswered, not_begun, end = 0, 0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        if ask():
            times_ms.append((time.perf_counter() - began) * 1e3)
        else:
            unanswered += 1
        if robot is not None:
            not_begun += not _begin_again(robot)
        time.sleep(PAUSE_S)
    return Measured(times_ms, unanswered, not_begun)


def _stop_bridge(address: str, security: ClientSecurity | None) -> bool:
    end = time.perf_counter() + UNANSWERED_S
    with contextlib.suppress(TransportError), ClientSocket(address, security) as client:
        client.send(encode(Message("stop", 1, {"reason": "the benchmark"})))
        while time.perf_counter() < end:
            if client.receive() is not None:
                return True
    return False


def _stop_by_page(host: str) -> bool:
    """Stop as the page's button does; return whether it was answered."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(host, timeout=UNANSWERED_S)
        with contextlib.closing(connection):
            connection.request("POST", "/act/stop", b"{}", {"X-VLA-Token": TOKEN})
            answer = connection.getresponse()
            return answer.status == 200 and bool(json.loads(answer.read())["stopped"])
    return False


def _connect_openpi(address: str) -> bool:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    with (
        contextlib.suppress(OSError, WebSocketException),
        connect(address, open_timeout=UNANSWERED_S, proxy=None) as client,
    ):
        return bool(client.recv(UNANSWERED_S))
    return False


def _table(results: Mapping[str, Measured]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("server/flood", no_wrap=True)
    for column in ("p50 ms", "p99 ms", "max ms", "answered", "unanswered", "not begun"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in results.items():
        quantiles = [found.percentile(percent) for percent in (50, 99, 100)]
        shown = ["-" if value is None else f"{value:.1f}" for value in quantiles]
        table.add_row(name, *shown, str(len(found.times_ms)), str(found.unanswered), str(found.not_begun))
    return table
