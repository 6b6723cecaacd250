"""A ZeroMQ server under connections that say nothing: it keeps few of them, and the next client gets in."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
from waiting import eventually

from vla_robot.core.errors import TransportError
from vla_robot.transport import connections
from vla_robot.transport.connections import ConnectionWatch
from vla_robot.transport.keys import KeyFolder
from vla_robot.transport.sockets import ClientSocket, ServerSocket

PATIENCE_S = 60.0

Connections = Callable[..., contextlib.AbstractContextManager[list[socket.socket]]]


@contextlib.contextmanager
def echoing(server: ServerSocket) -> Generator[None]:
    """The server answers whatever comes, in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            received = server.receive(0.02)
            if received is not None:
                server.send(received[0], received[1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def watch_of(server: ServerSocket) -> ConnectionWatch:
    return server._connections  # pyright: ignore[reportPrivateUsage]


def asks(client: ClientSocket) -> None:
    client.send([b"stop"])
    end_s = time.monotonic() + PATIENCE_S
    while (answer := client.receive()) is None:
        assert time.monotonic() < end_s, "stop was never answered"
    assert bytes(answer[0]) == b"stop"


SERVER = """
import resource, sys
from pathlib import Path
from vla_robot.transport import sockets
from vla_robot.transport.keys import KeyFolder

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
security = KeyFolder(Path(sys.argv[1])).server_security() if sys.argv[1:] else None
with sockets.ServerSocket(sockets.ANY_PORT, security) as server:
    print(server.address, flush=True)
    while True:
        received = server.receive()
        if received is not None:
            server.send(received[0], received[1])
"""


@contextlib.contextmanager
def server_with_few_files(*arguments: str) -> Generator[str]:
    command = [sys.executable, "-c", SERVER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.parametrize("with_keys", [False, True])
def test_more_silent_connections_than_files_shut_out_no_client(
    with_keys: bool, robot: KeyFolder, desk: KeyFolder, silent: Connections
) -> None:
    with server_with_few_files(*([str(robot.path)] if with_keys else [])) as address:
        security = desk.client_security(address) if with_keys else None
        with ClientSocket(address, security) as before:
            asks(before)
            with silent(port_of(address), 1100), ClientSocket(address, security) as client:
                asks(client)
                asks(before)


def test_a_connection_that_sends_no_message_is_ended(monkeypatch: pytest.MonkeyPatch, silent: Connections) -> None:
    """libzmq takes a web browser's request for the beginning of a message of an old peer, and waits for ever."""
    with ServerSocket() as server, echoing(server), ClientSocket(server.address) as client:
        asks(client)  # has all the time of a newcomer, on a busy computer too
        monkeypatch.setattr(connections, "NEWCOMER_S", 0.2)
        monkeypatch.setattr(connections, "IDLE_S", 0.05)
        with silent(port_of(server.address), 3, b"GET / HTTP/1.1\r\n\r\n") as opened:
            for connection in opened:
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass
        asks(client)


def test_a_message_in_the_protocol_of_before_2013_is_passed_over(silent: Connections) -> None:
    """As noise may be: libzmq takes it, and does not say which connection it came by."""
    old = b"\x01\x00" + b"\x06\x00hello"
    with ServerSocket() as server, ClientSocket(server.address) as client, silent(port_of(server.address), 1, old):
        client.send([b"stop"])
        end_s, frames = time.monotonic() + PATIENCE_S, []
        while not frames:
            assert time.monotonic() < end_s
            received = server.receive()
            frames = [] if received is None else [bytes(frame) for frame in received[1]]
        assert frames == [b"stop"]
        assert server.receive(0.2) is None


def test_of_clients_that_speak_only_so_many_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConnectionWatch.__init__, "__defaults__", ((8, 4),))
    with ServerSocket() as server, echoing(server), contextlib.ExitStack() as stack:
        first = stack.enter_context(ClientSocket(server.address))
        for _ in range(8):
            asks(stack.enter_context(ClientSocket(server.address)))
            asks(first)
        end_s = time.monotonic() + PATIENCE_S
        while watch_of(server).closed < 5:  # those that went connect again, so a client that falls silent would go too
            asks(first)
            assert time.monotonic() < end_s, "no client was hung up on"
        asks(first)  # heard a moment ago: it was not among those that went


@pytest.mark.parametrize("last", [0, 5])
def test_of_clients_that_spoke_since_the_last_count_the_one_that_spoke_last_stays(
    last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_never(watch: Any) -> None:  # this test counts
        watch._over.wait()
        watch._events.close()

    monkeypatch.setattr(ConnectionWatch, "_run", count_never)
    monkeypatch.setattr(connections, "NEWCOMER_S", 3600.0)
    monkeypatch.setattr(ConnectionWatch.__init__, "__defaults__", ((8, 1),))
    with ServerSocket() as server, echoing(server), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ClientSocket(server.address)) for _ in range(6)]
        for client in (*clients, clients[last]):
            asks(client)
        for _ in range(2):
            watch_of(server)._turn()  # pyright: ignore[reportPrivateUsage]
            assert watch_of(server).closed == 5
            asks(clients[last])


def test_closing_a_server_ends_its_threads(silent: Connections) -> None:
    before = threading.active_count()
    for _ in range(3):
        with ServerSocket() as server, silent(port_of(server.address), 5):
            pass
    eventually(lambda: threading.active_count() <= before)


def test_a_number_that_another_file_has_by_now_is_left_alone() -> None:
    with ServerSocket() as server, ClientSocket(server.address) as client, echoing(server):
        asks(client)
        near, far = socket.socketpair()
        with near, far:
            watch_of(server).hang_up(near.fileno())
            near.send(b"x")
            assert far.recv(1) == b"x"
        asks(client)


def test_the_taken_port_is_still_told() -> None:
    with ServerSocket() as server, pytest.raises(TransportError, match="Is another server running"):
        ServerSocket(server.address)
