"""Sockets with keys: the right client gets through, and everybody else gets nothing and hears why."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vla_robot.core.errors import TransportError
from vla_robot.transport.keys import KeyFolder
from vla_robot.transport.sockets import ANY_PORT, ClientSocket, ServerSocket

TRIES = 2000
"""Slices of waiting before a test gives up; one that passes needs a few."""


def door_of(folder: KeyFolder) -> ServerSocket:
    return ServerSocket(ANY_PORT, folder.server_security())


@contextlib.contextmanager
def eavesdropper(address: str) -> Iterator[tuple[str, bytearray]]:
    """A wire that is tapped: connect to the address, and what the client says stands in the bytes."""
    heard = bytearray()
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_server(("127.0.0.1", 0)) as ear:
        near_port = ear.getsockname()[1]

        def run() -> None:
            near, far = ear.accept()[0], socket.create_connection((host, int(port)))
            with near, far:
                while True:
                    for end in select.select([near, far], [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        if end is near:
                            heard.extend(data)
                        (far if end is near else near).sendall(data)

        threading.Thread(target=run, daemon=True).start()
        yield f"tcp://127.0.0.1:{near_port}", heard


def refusal(client: ClientSocket, server: ServerSocket) -> str:
    """What the client is told; nothing of it may reach the server."""
    for attempt in range(TRIES):
        assert server.receive(timeout_s=0) is None
        try:
            if attempt == 0:
                client.send([b"let me in"])  # the connection may be refused already
            assert client.receive() is None
        except TransportError as error:
            return str(error)
    raise AssertionError("the client was never told")


QUESTION = b"what does the front camera see"
"""Longer than what a hundred kilobytes of noise hold by chance: three letters stand in one of 170."""


def exchange(client: ClientSocket, server: ServerSocket) -> bytes:
    """The peer, after a message went each way."""
    client.send([QUESTION, b"\0" * 100_000])
    received = server.receive(timeout_s=60)
    assert received is not None
    peer, frames = received
    assert [bytes(frame) for frame in frames] == [QUESTION, b"\0" * 100_000]
    assert server.send(peer, [b"answer"])
    answer = client.receive(timeout_s=60)
    assert answer is not None
    assert bytes(answer[0]) == b"answer"
    return peer


def test_an_allowed_client_gets_through_and_is_known_by_name(robot: KeyFolder, desk: KeyFolder) -> None:
    with (
        ServerSocket(ANY_PORT, robot.server_security()) as server,
        ClientSocket(server.address, desk.client_security(server.address)) as client,
    ):
        peer = exchange(client, server)
        assert server.user_of(peer) == "desk"


def test_keys_open_every_interface(robot: KeyFolder, desk: KeyFolder) -> None:
    with ServerSocket("tcp://0.0.0.0:0", robot.server_security()) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        with ClientSocket(address, desk.client_security(address)) as client:
            exchange(client, server)


def test_a_client_that_is_not_on_the_list_is_told_how_to_get_there(
    robot: KeyFolder, desk: KeyFolder, tmp_path: Path
) -> None:
    stranger = KeyFolder(tmp_path / "stranger")
    public = stranger.create("stranger").public
    stranger.trust("127.0.0.1", robot.pair().public)
    with (
        door_of(robot) as server,
        ClientSocket(server.address, stranger.client_security(server.address)) as client,
    ):
        assert f"`vla keys allow {public} --name stranger`" in refusal(client, server)


def test_a_client_without_a_key_gets_nothing(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server, ClientSocket(server.address) as client:
        assert "it requires a key" in refusal(client, server)


def test_a_server_with_another_key_than_the_trusted_one_gets_nothing(robot: KeyFolder, desk: KeyFolder) -> None:
    impostor = desk.pair().public
    with door_of(robot) as server:
        security = replace(desk.client_security(server.address), server_public=impostor)
        with ClientSocket(server.address, security) as client:
            assert f"could not prove to own the key {impostor[:8]}" in refusal(client, server)


def test_a_server_without_keys_gets_nothing_of_a_client_with_keys(desk: KeyFolder) -> None:
    with ServerSocket() as server, ClientSocket(server.address, desk.client_security(server.address)) as client:
        assert "or runs without keys" in refusal(client, server)


def test_a_stolen_public_key_is_no_use_without_the_secret_one(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server:
        security = desk.client_security(server.address)
        forged = replace(security, keys=replace(security.keys, secret=robot.pair().secret))
        with ClientSocket(server.address, forged) as client:
            refusal(client, server)


def test_a_revoked_client_is_cut_off_while_it_is_connected(robot: KeyFolder, desk: KeyFolder) -> None:
    with (
        door_of(robot) as server,
        ClientSocket(server.address, desk.client_security(server.address)) as client,
    ):
        peer = exchange(client, server)
        robot.allowed.remove("desk")
        client.send([b"one more"])
        assert server.receive(timeout_s=1) is None
        assert server.user_of(peer) == ""
        robot.allow(desk.pair().public, "desk")
        exchange(client, server)


def test_a_revoked_client_that_only_listens_gets_nothing_more(robot: KeyFolder, desk: KeyFolder) -> None:
    """It sends nothing that could be refused; what already waited in its connection is not sent either."""
    with (
        door_of(robot) as server,
        ClientSocket(server.address, desk.client_security(server.address)) as client,
    ):
        peer = exchange(client, server)
        assert server.send(peer, [b"frame 0"])
        assert client.receive(timeout_s=60) is not None
        robot.allowed.remove("desk")
        assert [server.send(peer, [b"frame"]) for _ in range(3)] == [False] * 3
        with pytest.raises(TransportError, match="does not allow this computer's key 'desk'"):
            for _ in range(TRIES):
                assert client.receive() is None


def test_no_client_is_served_while_the_folder_of_keys_cannot_be_read(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server, ClientSocket(server.address, desk.client_security(server.address)) as client:
        peer = exchange(client, server)
        away = robot.path.with_name("away")
        robot.path.rename(away)
        robot.path.write_text("a file where the folder was")
        assert not server.send(peer, [b"frame"])
        with ClientSocket(server.address, desk.client_security(server.address)) as another:
            assert "does not allow" in refusal(another, server)
        robot.path.unlink()
        away.rename(robot.path)
        with ClientSocket(server.address, desk.client_security(server.address)) as another:
            exchange(another, server)


def test_a_message_over_a_refused_connection_says_that_it_was_refused(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server:
        robot.path.rename(robot.path.with_name("away"))
        robot.path.write_text("a file where the folder was")
        with (
            ClientSocket(server.address, desk.client_security(server.address)) as client,
            pytest.raises(TransportError, match="does not allow"),
        ):
            for _ in range(TRIES):
                assert server.receive(timeout_s=0) is None
                client.send([b"let me in"])
                time.sleep(0.01)


def test_a_client_allowed_while_the_server_runs_gets_in_when_it_connects_again(
    robot: KeyFolder, desk: KeyFolder
) -> None:
    robot.allowed.remove("desk")
    with door_of(robot) as server:
        security = desk.client_security(server.address)
        with ClientSocket(server.address, security) as client:
            assert "does not allow this computer's key 'desk'" in refusal(client, server)
        robot.allow(desk.pair().public, "desk")
        with ClientSocket(server.address, security) as client:
            exchange(client, server)


def test_nobody_gets_in_while_the_list_cannot_be_read(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server:
        (robot.path / "allowed_clients").write_text("everybody\n")
        with ClientSocket(server.address, desk.client_security(server.address)) as client:
            assert "does not allow" in refusal(client, server)


def test_a_list_that_becomes_unreadable_shuts_everybody_out_and_ends_no_server(
    robot: KeyFolder, desk: KeyFolder
) -> None:
    with door_of(robot) as server, ClientSocket(server.address, desk.client_security(server.address)) as client:
        exchange(client, server)
        allowed = (robot.path / "allowed_clients").read_text()
        (robot.path / "allowed_clients").write_text("half a li")
        client.send([b"one more"])
        assert server.receive(timeout_s=1) is None
        (robot.path / "allowed_clients").write_text(allowed)
        exchange(client, server)


def test_two_servers_of_one_process_keep_their_own_doors(robot: KeyFolder, desk: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    other.create("other")
    with door_of(robot) as open_to_desk, door_of(other) as closed_to_desk:
        security = desk.client_security(open_to_desk.address)
        with ClientSocket(open_to_desk.address, security) as client:
            exchange(client, open_to_desk)
        fooled = replace(security, server_public=other.pair().public)
        with ClientSocket(closed_to_desk.address, fooled) as client:
            assert "does not allow" in refusal(client, closed_to_desk)


def test_what_was_recorded_on_the_wire_is_no_use_a_second_time(robot: KeyFolder, desk: KeyFolder) -> None:
    with door_of(robot) as server:
        with (
            eavesdropper(server.address) as (address, heard),
            ClientSocket(address, desk.client_security(address)) as client,
        ):
            exchange(client, server)
        host, port = server.address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as again, contextlib.suppress(OSError):
            again.sendall(bytes(heard))
            while again.recv(65536):  # until the server hangs up
                pass
        assert server.receive(timeout_s=0.1) is None


def test_whoever_listens_in_between_hears_noise(robot: KeyFolder, desk: KeyFolder) -> None:
    with (
        door_of(robot) as server,
        eavesdropper(server.address) as (address, heard),
        ClientSocket(address, desk.client_security(address)) as client,
    ):
        exchange(client, server)
    assert len(heard) > 100_000
    assert QUESTION not in heard
    assert b"\0" * 32 not in heard[1000:]
