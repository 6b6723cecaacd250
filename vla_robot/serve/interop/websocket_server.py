"""Serves a WebSocket protocol of another project on this computer, with a thread for each connection.

Only programs on this computer can connect, and no web page: these protocols have no keys, so use an SSH tunnel between
computers.
"""

from __future__ import annotations

import http
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vla_robot.core.errors import TransportError, VlaError
from vla_robot.core.host.optional import require
from vla_robot.serve.interop.msgpack_safe import MAX_MESSAGE_BYTES, limit_sending
from vla_robot.transport.listener import GUEST, Listener

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import Server, ServerConnection

HOST = "127.0.0.1"
MAX_CONNECTIONS = 64
SILENT, NEWCOMERS = 128, 48
"""Most connections that have sent nothing, and most whose WebSocket handshake is not done; each of the latter takes
two threads and four file descriptors."""

HANDSHAKE_S = 10.0
SEND_TIMEOUT_S, CLOSE_TIMEOUT_S = 10.0, 1.0

TRY_LATER, INTERNAL_ERROR = 1013, 1011
"""WebSocket close codes."""

PAUSE_S = 0.2
"""Pause before a loop that ended is restarted [s]."""

SPARE = 8
"""Connections over the limit that can be refused at the same time."""

_LOG = logging.getLogger(__name__)
_THEIR_LOG = logging.getLogger(f"{__name__}.websockets")
_THEIR_LOG.setLevel(logging.CRITICAL)  # it logs a traceback for each client that hangs up in its handshake


@dataclass(frozen=True)
class Protocol:
    """A project's protocol.

    Attributes:
        project: the project's name, for messages.
        option: option of `vla serve` that names the port.
        talk: answers a client until it hangs up.
        farewell: packs the reason for which the server ends a connection.
        health: path at which a GET request is answered with `healthy`.
        healthy: text of that answer.
    """

    project: str
    option: str
    talk: Callable[[ServerConnection], None]
    farewell: Callable[[str], str | bytes]
    health: str
    healthy: str


class WebSocketServer:
    """Speaks one protocol on one port."""

    def __init__(self, protocol: Protocol, port: int) -> None:
        """
        Args:
            protocol: what is spoken.
            port: on the loopback interface; 0 means any free one.

        Raises:
            TransportError: the port is taken.
            MissingDependencyError: the package websockets is not installed.
        """
        require("websockets", "serve", f"answering {protocol.project}'s clients")
        self._protocol = protocol
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            # With a plain socket, the server's loop would end when no file descriptor is left.
            self._listener = Listener(HOST, port, (SILENT, NEWCOMERS, MAX_CONNECTIONS + SPARE), HANDSHAKE_S)
        except OSError as error:
            raise TransportError(
                f"cannot listen on {HOST}:{port}: {error.strerror}. Choose another {protocol.option}."
            ) from error
        self.url = f"ws://{HOST}:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        self._server = self._new_server()
        self._thread = threading.Thread(target=self._run, name=protocol.project, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close every connection, after waiting for running inferences."""
        self._over.set()
        self._server.shutdown()
        self._thread.join()

    def _new_server(self) -> Server:
        from websockets.sync.server import serve

        return serve(
            self._talk,
            sock=cast(socket.socket, self._listener),
            # A page in this computer's browser could connect as well; only browsers name an origin.
            origins=[None],
            process_request=self._health,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=HANDSHAKE_S,
            close_timeout=CLOSE_TIMEOUT_S,
            logger=_THEIR_LOG,
        )

    def _run(self) -> None:
        """Run the server's loop; if it ends, for example because no thread can be started, log that and restart it."""
        whose = f"the server for {self._protocol.project}'s clients"
        while True:
            try:
                self._server.serve_forever()
            except Exception:
                _LOG.exception("%s failed", whose)
            if self._over.wait(PAUSE_S):
                return
            _LOG.error("the loop of %s ended and is restarted", whose)
            self._server = self._new_server()

    def _talk(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        self._listener.hear(connection.socket, GUEST, busy=True)
        if not self._room.acquire(blocking=False):
            connection.close(TRY_LATER, f"{MAX_CONNECTIONS} clients are connected already")
            return
        try:
            limit_sending(connection.socket, SEND_TIMEOUT_S)
            self._protocol.talk(connection)
        except ConnectionClosed:
            return
        except VlaError as error:
            _LOG.warning("%s client: %s", self._protocol.project, error)
            self._hang_up(connection, str(error))
        except Exception:
            _LOG.exception("a client of %s could not be answered", self._protocol.project)
            self._hang_up(connection, "the server failed; see its log.")
        finally:
            self._room.release()

    def _hang_up(self, connection: ServerConnection, reason: str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            connection.send(self._protocol.farewell(reason))
        except ConnectionClosed:
            return
        connection.close(INTERNAL_ERROR, "Internal server error. The reason is in the previous frame.")

    def _health(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != self._protocol.health:
            return None
        return connection.respond(http.HTTPStatus.OK, self._protocol.healthy)
