"""Sockets stay on this computer, and never wait longer than told."""

from __future__ import annotations

import pytest

from vla_robot.core.errors import TransportError
from vla_robot.transport.listener import Listener
from vla_robot.transport.sockets import (
    ANY_PORT,
    MAX_PARTS,
    QUEUED_MESSAGES,
    SKIPPED_AT_ONCE,
    ClientSocket,
    ServerSocket,
    require_address,
)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5555", "tcp://127.8.8.8:1", "tcp://localhost:80", "tcp://[::1]:80", "ipc:///tmp/x"]
)
def test_an_address_of_this_computer_is_allowed(address: str) -> None:
    require_address(address, keys=False)


@pytest.mark.parametrize(
    "address",
    ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.2:5555", "tcp://robot.local:5555", "tcp://[::]:5555",
     "tcp://127.0.0.1.example.org:5555"],
)  # fmt: skip
def test_binding_and_connecting_off_loopback_without_keys_are_refused_with_the_fix(address: str) -> None:
    for open_socket in (ServerSocket, ClientSocket):
        with pytest.raises(TransportError, match=r"reachable from other computers.*`vla keys new NAME` makes a key"):
            open_socket(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://:5555", "udp://127.0.0.1:1", "", "ipc://"]
)
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(TransportError, match=r"is not an address; one looks like tcp://127\.0\.0\.1:5555"):
        require_address(address, keys=True)


@pytest.mark.parametrize("port", ["65536", "70000", "99999999999999999999"])
def test_a_port_that_does_not_exist_is_refused_and_not_taken_modulo_65536(port: str) -> None:
    for open_socket in (ServerSocket, ClientSocket):
        with pytest.raises(TransportError, match="has no valid port: 1 to 65535 do"):
            open_socket(f"tcp://127.0.0.1:{port}")
    with pytest.raises(TransportError, match="1 to 65535"):
        Listener("127.0.0.1", int(port))


def test_what_nobody_can_connect_to_is_refused_in_a_sentence() -> None:
    with pytest.raises(TransportError, match=r"cannot connect to .*An address of a server looks like"):
        ClientSocket("ipc://" + "x" * 200)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:५५५५", "tcp://127.0.0.1:+80", "tcp://127.0.0.1:-1"])
def test_a_port_is_plain_digits(address: str) -> None:
    with pytest.raises(TransportError, match="is not an address"):
        ServerSocket(address)


def test_a_free_port_is_found_and_told() -> None:
    with ServerSocket(ANY_PORT) as first, ServerSocket(ANY_PORT) as second:
        assert first.address.startswith("tcp://127.0.0.1:")
        assert first.address != second.address


def test_a_taken_port_is_refused() -> None:
    with ServerSocket() as server, pytest.raises(TransportError, match="Is another server running there"):
        ServerSocket(server.address)


def test_frames_go_there_and_back() -> None:
    with ServerSocket() as server, ClientSocket(server.address) as client:
        client.send([b"ask", b""])
        received = server.receive(timeout_s=60)
        assert received is not None
        peer, frames = received
        assert [bytes(frame) for frame in frames] == [b"ask", b""]
        assert server.send(peer, [b"answer"])
        answer = client.receive(timeout_s=60)
        assert answer is not None
        assert [bytes(frame) for frame in answer] == [b"answer"]


def test_nothing_comes_of_waiting_for_nothing() -> None:
    with ServerSocket() as server, ClientSocket(server.address) as client:
        assert server.receive(timeout_s=0.01) is None
        assert client.receive(timeout_s=0.01) is None


def test_sending_to_a_peer_that_never_was_is_noticed() -> None:
    with ServerSocket() as server:
        assert not server.send(b"nobody", [b"hello"])


def test_a_client_whose_server_never_comes_closes_at_once() -> None:
    with ServerSocket() as server:
        address = server.address
    with ClientSocket(address) as client:
        client.send([b"into the void"])


def test_what_waits_for_a_server_that_does_not_read_is_bounded() -> None:
    with (
        ServerSocket() as server,
        ClientSocket(server.address) as client,
        pytest.raises(TransportError, match=r"cannot send to tcp://127\.0\.0\.1"),
    ):
        for _ in range(20 * QUEUED_MESSAGES):
            client.send([b"\0" * 100_000])


@pytest.mark.parametrize("parts", [MAX_PARTS, MAX_PARTS + 1, 3 * SKIPPED_AT_ONCE])
def test_a_message_of_too_many_parts_is_thrown_away_and_the_next_one_arrives(parts: int) -> None:
    with ServerSocket() as server, ClientSocket(server.address) as client:
        client.send([b"x"] * parts)
        client.send([b"next"])
        received, reads = None, 0
        while received is None and reads < 200:
            received, reads = server.receive(timeout_s=60), reads + 1
        assert received is not None and [bytes(frame) for frame in received[1]] == [b"next"]
        # A few parts for each read, so that whoever reads is not kept from an arm that is due.
        assert reads >= parts // SKIPPED_AT_ONCE


def test_a_message_of_as_many_parts_as_are_allowed_arrives() -> None:
    with ServerSocket() as server, ClientSocket(server.address) as client:
        client.send([b"x"] * (MAX_PARTS - 1))
        received = server.receive(timeout_s=60)
        assert received is not None and len(received[1]) == MAX_PARTS - 1
        server.send(received[0], [b"x"] * MAX_PARTS)
        answer = client.receive(timeout_s=60)
        assert answer is not None and len(answer) == MAX_PARTS
