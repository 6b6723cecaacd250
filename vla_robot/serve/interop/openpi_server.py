"""Serves our policies over openpi's WebSocket protocol to its clients. `OpenpiPolicy` is another client.

    ours      metadata          as soon as the connection is made: actions and cameras
    client    observation       one binary frame
    ours      {actions, policy_timing, server_timing}; or a text frame with the error, after which it disconnects

`GET /healthz` answers OK. Only programs on this computer can connect, and no web page: the protocol has no keys, so use
an SSH tunnel between computers.

Source: openpi @15a9616, src/openpi/serving/websocket_policy_server.py and src/openpi/policies.
"""

from __future__ import annotations

import http
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, cast

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.errors import TransportError, VlaError
from vla_robot.core.host.optional import require
from vla_robot.core.messages import ActionChunk
from vla_robot.serve.interop.msgpack_safe import MAX_MESSAGE_BYTES, limit_sending
from vla_robot.serve.interop.openpi_schema import Words
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.serve.policy.batcher import Batcher
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


class OpenpiServer:
    """Serves a batcher over WebSockets, with one thread per connection."""

    def __init__(self, batcher: Batcher, name: str, words: Words, port: int) -> None:
        """
        Args:
            batcher: answers the requests.
            name: name of the policy.
            words: converts requests and answers.
            port: on the loopback interface; 0 means any free one.

        Raises:
            TransportError: the port is taken.
            MissingDependencyError: the package websockets is not installed.
        """
        require("websockets", "serve", "answering openpi's clients")
        self._batcher = batcher
        self._words = words
        self._metadata = pack({"server": "vla_robot", "policy": name, **words.describe()})
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            # With a plain socket, the server's loop would end when no file descriptor is left.
            self._listener = Listener(HOST, port, (SILENT, NEWCOMERS, MAX_CONNECTIONS + SPARE), HANDSHAKE_S)
        except OSError as error:
            raise TransportError(
                f"cannot listen on {HOST}:{port}: {error.strerror}. Choose another --openpi."
            ) from error
        self.url = f"ws://{HOST}:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        self._server = self._new_server()
        self._thread = threading.Thread(target=self._run, name="openpi", daemon=True)
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
            process_request=_health,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=HANDSHAKE_S,
            close_timeout=CLOSE_TIMEOUT_S,
            logger=_THEIR_LOG,
        )

    def _run(self) -> None:
        """Run the server's loop; if it ends, for example because no thread can be started, log that and restart it."""
        while True:
            try:
                self._server.serve_forever()
            except Exception:
                _LOG.exception("the server for openpi's clients failed")
            if self._over.wait(PAUSE_S):
                return
            _LOG.error("the loop of the server for openpi's clients ended and is restarted")
            self._server = self._new_server()

    def _talk(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        self._listener.hear(connection.socket, GUEST, busy=True)
        if not self._room.acquire(blocking=False):
            connection.close(TRY_LATER, f"{MAX_CONNECTIONS} clients are connected already")
            return
        try:
            limit_sending(connection.socket, SEND_TIMEOUT_S)
            self._answer_all(connection)
        except ConnectionClosed:
            return
        except VlaError as error:
            _LOG.warning("openpi client: %s", error)
            _hang_up(connection, str(error))
        except Exception:
            _LOG.exception("an openpi client could not be answered")
            _hang_up(connection, "the server failed; see its log.")
        finally:
            self._room.release()

    def _answer_all(self, connection: ServerConnection) -> None:
        connection.send(self._metadata)
        timing: dict[str, float] = {}
        while True:
            frame = connection.recv()
            began_ns = time.monotonic_ns()
            if not isinstance(frame, bytes):
                raise TransportError("an observation is a binary frame of msgpack, got text.")
            chunk = self._batcher.ask(self._words.read(unpack(frame)), client=connection)
            timing["infer_ms"] = _since_ms(began_ns)
            times = {"policy_timing": {"infer_ms": _policy_ms(chunk)}, "server_timing": timing}
            connection.send(pack({**self._words.write(chunk), **times}))
            timing["prev_total_ms"] = _since_ms(began_ns)


def _policy_ms(chunk: ActionChunk) -> float:
    return sum(ms for stage, ms in chunk.stages_ms.items() if stage != "wait_for_batch")


def _since_ms(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / NS_PER_MS


def _hang_up(connection: ServerConnection, reason: str) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        connection.send(reason)
    except ConnectionClosed:
        return
    connection.close(INTERNAL_ERROR, "Internal server error. The reason is in the previous frame.")


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
