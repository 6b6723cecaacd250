"""The processes beside `vla bench stop`: `python -m benchmarks.stop_peers bridge [FOLDER OF KEYS]`.

The servers print their address when they are ready. A flood runs for the given seconds, on the loopback interface
only, and opens at most RATE_HZ connections per second.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vla_robot.transport.keys import ClientSecurity, KeyFolder

BRIDGE, VIEW, OPENPI = "bridge", "view", "openpi"

KEY_NAMES = ("robot", "desk")
TOKEN = "the-operators-token"
STOPPED = "E-STOP"
"""Part of the line that a bridge prints when the arm is held."""

AT_WORK = "at work"
"""Line that a flood prints when it has made all its connections, or begun to send."""

RATE_HZ = 500.0
"""New connections per second of a flood: more than a busy server gets, and few enough that making them does not use
both cores."""

IDLE, SLOW, CLIENTS = 1100, 300, 16
"""Number of silent connections, of those that send a request byte by byte, and of clients that ask."""

ARM_HZ = 50.0
NEVER_S = 1000.0
LONGEST_S = 120.0


def bridge(folder: str = "") -> None:
    """Run a bridge as `vla bridge` does, with an emulated arm, until the process is ended."""
    from benchmarks.loop import EmulatedArm
    from vla_robot.cli.bridge import EStop, until_stopped
    from vla_robot.cli.common.realtime import freeze_garbage
    from vla_robot.core.clock import MonotonicClock
    from vla_robot.recipe.limits import LimitsRecipe
    from vla_robot.safety.filter import SafetyFilter
    from vla_robot.safety.limits import limits_of
    from vla_robot.safety.watchdog import Watchdog
    from vla_robot.serve.bridge.bridge import Bridge
    from vla_robot.serve.bridge.server import BridgeServer
    from vla_robot.transport.sockets import ServerSocket
    from vla_robot.transport.wake import Wake

    clock, arm, wake = MonotonicClock(), EmulatedArm(ARM_HZ), Wake()
    security = KeyFolder(Path(folder)).server_security(KEY_NAMES[0]) if folder else None
    limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
    e_stop = EStop(wake)
    e_stop.watch_signal()
    freeze_garbage()
    with ServerSocket("tcp://127.0.0.1:0", security, wake) as bound:
        watchdog = Watchdog(clock, hold_after_s=NEVER_S, stop_after_s=NEVER_S)
        server = BridgeServer(Bridge(arm, limits, watchdog, clock), bound, clock)
        print(bound.address, flush=True)
        server.serve(until_stopped(lambda: False, e_stop, server))


def view(address: str, folder: str = "") -> None:
    """Serve the page of `vla view` for that bridge, until the process is ended."""
    from vla_robot.cli.view.view import serve_page
    from vla_robot.web.latest_frame import LatestFrameBuffer
    from vla_robot.web.server import Access, Listen
    from vla_robot.web.view import BridgeView

    board = LatestFrameBuffer()
    with BridgeView(address, board, security=_desk(folder)) as watched:
        web = serve_page(watched, board, Access(TOKEN), Listen())
        print(web.url, flush=True)
        threading.Event().wait()


def openpi() -> None:
    """Serve openpi's protocol with a policy that takes no time, until the process is ended."""
    from vla_robot.core.messages import ActionChunk
    from vla_robot.serve.interop.openpi_schema import ExampleWords
    from vla_robot.serve.interop.openpi_server import OpenpiServer
    from vla_robot.serve.policy.batcher import Batcher, Line
    from vla_robot.serve.policy.server import answering

    batcher = Batcher(lambda seen, _: [ActionChunk(np.zeros((1, 7)), o.stamp_ns, o.step) for o in seen], Line(16, 0))
    answering(batcher)
    print(OpenpiServer(batcher, "nothing", ExampleWords((), None), 0).url, flush=True)
    threading.Event().wait()


def idle(target: str, seconds: str) -> None:
    """Keep IDLE silent connections open; those that the server closes are opened again."""
    _keep_open(target, float(seconds), IDLE, first=b"", then=b"")


def slow_head(target: str, seconds: str) -> None:
    """Send requests whose head comes byte by byte and never ends."""
    _keep_open(target, float(seconds), SLOW, first=b"POST /act/stop HTTP/1.1\r\nX-Slow: ", then=b"a")


def garbage(target: str, seconds: str) -> None:
    """Open connections that send noise, with ZeroMQ's signature or without, and close them."""
    print(AT_WORK, flush=True)
    rng, end = np.random.default_rng(0), time.monotonic() + float(seconds)
    while time.monotonic() < end:
        began = time.monotonic()
        with contextlib.suppress(OSError), socket.create_connection(_host(target), timeout=1.0) as connection:
            signature = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0" if rng.random() < 0.5 else b""
            connection.sendall(signature + rng.bytes(2000))
        _pace(began)


def hellos(target: str, seconds: str) -> None:
    """Run CLIENTS that request command of the arm again after each answer."""
    from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL
    from vla_robot.transport.sockets import ClientSocket
    from vla_robot.transport.wire import Message, encode

    end, seq = time.monotonic() + float(seconds), 0
    print(AT_WORK, flush=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ClientSocket(f"tcp://{target}")) for _ in range(CLIENTS)]
        while time.monotonic() < end:
            seq += 1
            for client in clients:
                client.send(encode(Message("hello", seq, {"protocol": BRIDGE_PROTOCOL, "wanted": {}})))
            for client in clients:
                client.receive(0.2)


FLOODS: dict[str, Callable[..., None]] = {
    "idle": idle,
    "slow_head": slow_head,
    "garbage": garbage,
    "hellos": hellos,
}
SERVERS: dict[str, Callable[..., None]] = {BRIDGE: bridge, VIEW: view, OPENPI: openpi}


def main(argv: Sequence[str]) -> None:
    """Run the named function. A flood ends by itself, also if the benchmark crashed."""
    ending = threading.Timer(LONGEST_S, os._exit, (1,))
    ending.daemon = True
    ending.start()
    {**SERVERS, **FLOODS}[argv[0]](*argv[1:])


def _keep_open(target: str, seconds: float, count: int, first: bytes, then: bytes) -> None:
    """Keep `count` connections open; each sends `first`, and then `then` once a second."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened: list[socket.socket] = []
    end = time.monotonic() + seconds
    next_round, tried = time.monotonic(), 0
    while (began := time.monotonic()) < end:
        if len(opened) < count:
            with contextlib.suppress(OSError):
                # If the server's queue is full, the next attempt comes later.
                connection = socket.create_connection(_host(target), timeout=0.05)
                connection.sendall(first)
                connection.setblocking(False)
                opened.append(connection)
            tried += 1
            if tried == count:
                print(AT_WORK, flush=True)
        if began >= next_round:
            next_round = began + 1.0
            opened = [connection for connection in opened if _is_open(connection, then)]
        _pace(began)


def _is_open(connection: socket.socket, says: bytes) -> bool:
    """Return whether the server has not closed the connection."""
    try:
        if says:
            connection.send(says)
        return bool(connection.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        connection.close()
        return False


def _pace(began: float) -> None:
    time.sleep(max(began + 1 / RATE_HZ - time.monotonic(), 0.0))


def _host(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


def _desk(folder: str) -> ClientSecurity | None:
    if not folder:
        return None
    keys = KeyFolder(Path(folder))
    return ClientSecurity(keys.pair(KEY_NAMES[1]), keys.pair(KEY_NAMES[0]).public)


if __name__ == "__main__":
    main(sys.argv[1:])
