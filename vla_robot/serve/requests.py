"""Numbered requests of a client over one connection, and the wait for their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vla_robot.core.clock import NS_PER_S, Clock
from vla_robot.core.errors import TransportError
from vla_robot.core.host.closeable import Closeable
from vla_robot.transport.keys import ClientSecurity
from vla_robot.transport.sockets import SLICE_S, ClientSocket
from vla_robot.transport.wire import UNNUMBERED, Message, decode, encode


class Requests(Closeable):
    """One connection. Requests are numbered from 1, and an answer bears the number of its request.

    Attributes:
        number: of the newest request.
    """

    def __init__(self, address: str, clock: Clock, security: ClientSecurity | None = None) -> None:
        """Connect; see `ClientSocket`. The clock times the answers."""
        self.number = UNNUMBERED
        self._address, self._clock = address, clock
        self._socket: ClientSocket | None = ClientSocket(address, security)

    def post(self, kind: str, body: Mapping[str, Any]) -> int:
        """Send a request and return its number. Raises TransportError: closed, or too many requests wait already."""
        socket = self._open_socket()
        self.number += 1
        socket.send(encode(Message(kind, self.number, body)))
        return self.number

    def receive(self, timeout_s: float = SLICE_S) -> Message | None:
        """Return the next message; None after the timeout. Raises TransportError: closed, refused or malformed."""
        frames = self._open_socket().receive(timeout_s)
        return None if frames is None else decode(frames)

    def wait(
        self, is_wanted: Callable[[Message], bool], end_ns: int, meanwhile: Callable[[], None] = lambda: None
    ) -> Message | None:
        """Return the next wanted message; drop others, which answer requests that were given up.

        Args:
            is_wanted: returns whether a message is the answer.
            end_ns: when to return None, in the clock's time [ns].
            meanwhile: called after each slice of the wait in which no message came; may raise.
        """
        while self._clock.now_ns() < end_ns:
            message = self.receive()
            if message is None:
                meanwhile()
            elif is_wanted(message):
                return message
        return None

    def ends_ns(self, timeout_s: float) -> int:
        """Return the end of a wait that begins now, in the clock's time [ns]."""
        return self._clock.now_ns() + round(timeout_s * NS_PER_S)

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open_socket(self) -> ClientSocket:
        if self._socket is None:
            raise TransportError(f"the connection to {self._address} was closed; connect again.")
        return self._socket
