"""ZeroMQ sockets that close at once, stay on this computer, and never wait longer than told.

    ClientSocket (DEALER)  ----one connection----  ServerSocket (ROUTER)

A DEALER, unlike a REQ, can go on after a request that got no answer: the late answer is told by its number.
"""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Self, cast

import zmq

from vla_robot.core.errors import TransportError
from vla_robot.transport.wire import MAX_FRAME_BYTES, Buffer

ANY_PORT = "tcp://127.0.0.1:0"
"""Bind here for a free port of the loopback interface."""

SLICE_S = 0.05
"""Waits are cut into slices, so that a signal, a dead peer or a stop flag is noticed soon."""


def require_loopback(address: str) -> None:
    """Raise TransportError unless only processes of this computer can reach the address."""
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc") and rest:
        return
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal():
        raise TransportError(f"'{address}' is not an address; one looks like tcp://127.0.0.1:5555.")
    if not _is_loopback(host.strip("[]")):
        raise TransportError(
            f"'{address}' is reachable from other computers, and traffic is neither encrypted nor authenticated "
            "(CURVE keys are not supported yet). Use tcp://127.0.0.1:PORT, and an SSH tunnel between computers."
        )


class ServerSocket:
    """Answers many peers; told apart by an identity that ZeroMQ gives each connection."""

    def __init__(self, address: str = ANY_PORT) -> None:
        """
        Raises:
            TransportError: the address is taken, malformed, or off loopback.
        """
        require_loopback(address)
        self._socket = _socket(zmq.ROUTER, address)
        # Without it, what is sent to a peer that has gone vanishes silently.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(
                f"cannot listen on {address}: {error}. Is another server running there? {ANY_PORT} takes a free port."
            ) from error
        self.address = cast(bytes, self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def receive(self, timeout_s: float = SLICE_S) -> tuple[bytes, list[Buffer]] | None:
        """The sender's identity and the frames; None when nothing came in time."""
        frames = _receive(self._socket, timeout_s)
        return None if frames is None else (bytes(frames[0]), frames[1:])

    def send(self, peer: bytes, frames: list[Buffer]) -> bool:
        """Whether the peer is still connected; what it has no room for is dropped."""
        try:
            self._socket.send_multipart([peer, *frames], flags=zmq.DONTWAIT)
        except zmq.Again:
            return True
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise TransportError(f"cannot answer: {error}.") from error
        return True

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ClientSocket:
    """One connection to a server. Connecting succeeds at once, whether or not anybody listens."""

    def __init__(self, address: str) -> None:
        """
        Raises:
            TransportError: the address is malformed, or off loopback.
        """
        require_loopback(address)
        self._address = address
        self._socket = _socket(zmq.DEALER, address)
        self._socket.connect(address)

    def send(self, frames: list[Buffer]) -> None:
        """
        Raises:
            TransportError: too many messages wait for the peer already.
        """
        try:
            self._socket.send_multipart(frames, flags=zmq.DONTWAIT)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot send to {self._address}: {error}.") from error

    def receive(self, timeout_s: float = SLICE_S) -> list[Buffer] | None:
        """The frames of the next message; None when nothing came in time."""
        return _receive(self._socket, timeout_s)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _socket(kind: int, address: str) -> zmq.Socket[bytes]:
    context = cast(zmq.Context[zmq.Socket[bytes]], zmq.Context.instance())  # pyright: ignore[reportUnknownMemberType]
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    # Only where it is asked for: with it, 127.0.0.1 is reported back as [::ffff:127.0.0.1].
    socket.setsockopt(zmq.IPV6, int("[" in address))
    return socket


def _receive(socket: zmq.Socket[bytes], timeout_s: float) -> list[Buffer] | None:
    if not socket.poll(round(timeout_s * 1000)):
        return None
    return [frame.buffer for frame in socket.recv_multipart(copy=False)]
