"""A listening socket under a flood: silent connections cost no thread, and the next client is accepted."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vla_robot.transport.listener import GUEST, OPERATOR, Listener

PATIENCE_S = 60.0

Connected = Callable[..., contextlib.AbstractContextManager[list[socket.socket]]]


@pytest.fixture
def listening() -> Iterator[Callable[..., Listener]]:
    with contextlib.ExitStack() as stack:

        def start(room: tuple[int, ...] = (4, 4, 4, 4), newcomer_s: float = PATIENCE_S) -> Listener:
            return stack.enter_context(contextlib.closing(Listener("127.0.0.1", 0, room, newcomer_s)))

        yield start


@pytest.fixture
def connected(silent: Connected) -> Connected:
    """`with connected(listener, count, says):`, connections that send this, or nothing."""
    return lambda listener, *arguments, **named: silent(listener.getsockname()[1], *arguments, **named)


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side hung up; waits for it."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_only_a_connection_that_speaks_is_accepted(listening: Callable[..., Listener], connected: Connected) -> None:
    listener = listening()
    with connected(listener) as (silent,), connected(listener, says=b"GET") as (speaking,):
        accepted, address = listener.accept(PATIENCE_S)
        with accepted:
            assert address == speaking.getsockname()
            assert accepted.recv(3) == b"GET"
        with pytest.raises(BlockingIOError):
            listener.accept(timeout_s=0.05)
        silent.sendall(b"at last")
        listener.accept(PATIENCE_S)[0].close()


def test_the_oldest_silent_ones_go_and_the_one_that_speaks_gets_in(
    listening: Callable[..., Listener], connected: Connected
) -> None:
    listener = listening(room=(4, 4, 4, 4))
    with connected(listener, 20) as silent, connected(listener, says=b"x") as (speaking,):
        accepted, address = listener.accept(PATIENCE_S)
        assert address == speaking.getsockname()
        assert all(is_ended(connection) for connection in silent[:10])
        accepted.close()


def test_silent_ones_do_not_press_on_those_that_have_begun_to_speak(
    listening: Callable[..., Listener], connected: Connected
) -> None:
    """A handshake takes some milliseconds on a busy computer, and hundreds of silent connections come meanwhile."""
    listener = listening(room=(4, 4, 4, 4))
    with connected(listener, says=b"x") as (speaking,):
        accepted, _ = listener.accept(PATIENCE_S)
        with connected(listener, 100) as silent:
            end_s = time.monotonic() + PATIENCE_S
            while listener.closed < 96 and time.monotonic() < end_s:
                with contextlib.suppress(BlockingIOError):
                    listener.accept(timeout_s=0.0)
            assert listener.closed == 96 and is_ended(silent[0])
        speaking.sendall(b"y")
        assert accepted.recv(2) == b"xy"
        accepted.close()


def test_a_request_that_does_not_become_whole_ends_its_connection(
    listening: Callable[..., Listener], connected: Connected
) -> None:
    listener = listening(newcomer_s=1.0)  # of which a busy computer may use much until it has seen the first byte
    with connected(listener) as (silent,), connected(listener, says=b"G") as (slow,):
        accepted, _ = listener.accept(PATIENCE_S)
        assert is_ended(silent) and is_ended(slow)
        assert accepted.recv(1) == b"G" and accepted.recv(1) == b"", "its thread finds it ended"
        accepted.close()


def test_guests_keep_no_operator_out(listening: Callable[..., Listener], connected: Connected) -> None:
    listener = listening(room=(4, 4, 2, 1))
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(connected(listener, says=b"x"))[0] for _ in range(4)]
        accepted = [stack.enter_context(listener.accept(PATIENCE_S)[0]) for _ in ends]
        listener.hear(accepted[0], OPERATOR)
        for guest in accepted[1:]:
            listener.hear(guest, GUEST, busy=True)
        assert is_ended(ends[-1]), "of busy guests, the newest goes"
        ends[0].sendall(b"y")
        assert accepted[0].recv(2) == b"xy"
        for connection in accepted:
            listener.leave(connection)


def test_a_deadline_is_lifted_while_an_answer_is_made(listening: Callable[..., Listener], connected: Connected) -> None:
    listener = listening(newcomer_s=2.0)  # of which a busy computer may use much until `hear`
    with connected(listener, says=b"x") as (client,):
        accepted, _ = listener.accept(PATIENCE_S)
        listener.hear(accepted, GUEST, busy=True)
        client.settimeout(3.0)
        with pytest.raises(TimeoutError):
            client.recv(1)
        listener.hear(accepted, within_s=0.1)
        client.settimeout(PATIENCE_S)
        assert is_ended(client)
        accepted.close()


def test_a_new_connection_with_the_number_of_one_that_went_is_kept(
    listening: Callable[..., Listener], connected: Connected
) -> None:
    listener = listening()
    with connected(listener) as (silent,):
        with pytest.raises(BlockingIOError):
            listener.accept(timeout_s=0.05)
        (fd,) = listener._parked  # pyright: ignore[reportPrivateUsage]
        assert listener._unpark(fd) is None  # pyright: ignore[reportPrivateUsage]
        silent.sendall(b"x")
        listener.accept(PATIENCE_S)[0].close()


def test_no_descriptor_left_ends_nothing(
    listening: Callable[..., Listener], connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listening()
    plain = listener._socket  # pyright: ignore[reportPrivateUsage]
    failures = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED]

    class Exhausted:
        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)

        def accept(self) -> object:
            if failures:
                raise OSError(failures.pop(0), "too many")
            return plain.accept()

    monkeypatch.setattr(listener, "_socket", Exhausted())
    with connected(listener, says=b"x"):
        listener.accept()[0].close()
    assert failures == []


def test_closing_wakes_who_waits_and_hangs_up(listening: Callable[..., Listener], connected: Connected) -> None:
    listener = listening()
    reasons: list[int | None] = []

    def wait() -> None:
        with pytest.raises(OSError, match="closed") as raised:
            listener.accept()
        reasons.append(raised.value.errno)

    with connected(listener) as (silent,):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        listener.close()
        thread.join(PATIENCE_S)
        assert reasons == [errno.EBADF] and is_ended(silent)
    assert listener.fileno() == -1
    listener.close()
