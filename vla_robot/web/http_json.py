"""Common part of the HTTP servers: bounded connections, refusal of other sites, and JSON of a bounded size.

    Listener --a connection that sends--> a thread: JsonHandler --whole request--> do_GET, do_POST

Without these, the standard library's server starts a thread for every connection, and a timeout for every line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from vla_robot.core.errors import TransportError
from vla_robot.transport.listener import GUEST, Listener

MAX_VALUES = 1 << 16
"""Most values of a JSON body. 64 MiB of "[],[]," would take 1.4 GB when parsed."""

PAUSE_S = 0.2
"""Pause before a failed server loop is restarted [s]."""

_PORT = re.compile(r":[0-9]+$")
_LOG = logging.getLogger(__name__)


class BoundedServer(ThreadingHTTPServer):
    """HTTP server with a thread for each connection that has sent something; a Listener bounds them.

    Attributes:
        listener: accepts the connections.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[JsonHandler]) -> None:
        """
        Raises:
            OSError: the port is taken, or the address does not exist.
        """
        super().__init__((host, port), handler, bind_and_activate=False)
        self.socket.close()
        self.listener = Listener(host, port)
        self.socket = cast(socket.socket, self.listener)
        self.server_address = self.listener.getsockname()
        self.server_name, self.server_port = host, self.listener.getsockname()[1]

    def accepted(self, request: socket.socket) -> socket.socket:
        """Return the connection for its thread to use; raise OSError if it failed."""
        return request

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.listener.accept(timeout_s=0)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        connection = request
        try:
            connection = self.accepted(request)
            super().process_request_thread(connection, client_address)
        except OSError:
            self.shutdown_request(connection)
        finally:
            self.listener.leave(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnects while an answer is sent; log any other error."""
        if isinstance(sys.exception(), OSError):
            _LOG.debug("a connection broke", exc_info=True)
        else:
            _LOG.error("a request could not be answered", exc_info=True)


class Serving:
    """Runs a server in a thread until `close`. A loop that fails is logged and restarted."""

    def __init__(self, server: BoundedServer, name: str, poll_s: float) -> None:
        """
        Args:
            server: bound server.
            name: name of the thread.
            poll_s: period of checking whether it is closed [s].
        """
        self._server, self._poll_s = server, poll_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server and wait for its thread. May be called twice."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _run(self) -> None:
        # Entered even when `close` came first: its `shutdown` waits until the loop has ended once.
        while True:
            try:
                self._server.serve_forever(self._poll_s)
            except Exception:
                _LOG.exception("the server on port %d failed and is restarted", self._server.server_port)
            if self._over.wait(PAUSE_S):
                return


class JsonHandler(BaseHTTPRequestHandler):
    """Handles one connection. A request, its head and its body, must arrive within `request_s`.

    Attributes:
        timeout: longest silence of a connection between requests [s].
        request_s: longest time of a request's arrival [s].
        answers_long: an answer may take long; such a connection is kept while an idle one can be closed instead.
    """

    server: BoundedServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 20.0
    request_s = 10.0
    answers_long = False
    _had_request = False
    protocol_version = "HTTP/1.1"
    # An answer is sent in two parts, and Nagle's algorithm would delay the second one by 40 ms.
    disable_nagle_algorithm = True

    def rank(self) -> int:
        """Return the connection's rank, from the head of its request."""
        return GUEST

    def handle_one_request(self) -> None:
        try:
            speaks = self.rfile.peek(1)  # type: ignore[attr-defined]  # pyright: ignore
        except OSError:
            speaks = b""
        if not speaks:
            self.close_connection = True
            return
        if self._had_request:  # the first request's time runs since the connection was accepted
            self.server.listener.hear(self.connection, within_s=self.request_s)
        self._had_request = True
        super().handle_one_request()
        self.server.listener.hear(self.connection, within_s=type(self).timeout)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if "Host" not in self.headers:  # it broke off in its head, which the standard library takes for the end of one
            self.close_connection = True
            return False
        # A request whose head was cut off looks like one whose head ended there.
        is_open = self.server.listener.hear(self.connection, self.rank(), self.request_s, self.answers_long)
        self.close_connection = self.close_connection or not is_open
        return is_open

    def read_object(self, max_bytes: int) -> Mapping[str, Any]:
        """Read the body of a request.

        Raises:
            TransportError: it is not a JSON object, or has no size or a too large one; the connection then closes.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16 and int(length) <= max_bytes):
            self.close_connection = True
            raise TransportError(f"a request needs a Content-Length up to {max_bytes} bytes, got '{length[:40]}'.")
        body = self.rfile.read(int(length))
        self.server.listener.hear(self.connection, busy=self.answers_long)
        return parse_object(body)

    def is_foreign(self, hosts: Collection[str], origins: Collection[str] = (), *, any_port: bool = False) -> bool:
        """Return whether a request is another site's, or used its name; the connection is then closed, unread.

        A page of another site can send requests here from a browser on this computer, and with DNS rebinding under a
        name of its own. A browser then names that page's origin, or that host; programs name no origin.

        Args:
            hosts: names of this server, with their port unless `any_port`.
            origins: origins of our own pages.
            any_port: allow any port, since a tunnel may begin at another one; for servers without pages.
        """
        foreign = self._foreign(hosts, origins, any_port)
        if foreign:
            self.close_connection = True
            _LOG.warning("refused a request for %s", foreign)
        return bool(foreign)

    def _foreign(self, hosts: Collection[str], origins: Collection[str], any_port: bool) -> str:
        """Describe what is another site's; empty if nothing is."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if host not in hosts and not (any_port and _PORT.sub("", host) in hosts):
            return f"host {host[:80]!r}"
        if origin is not None and origin not in origins:
            return f"origin {origin[:80]!r}"
        return "a page of another site" if site == "cross-site" else ""

    def reply(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client disconnected
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no line per request; failures are logged with their reason."""


def parse_object(text: bytes | str) -> Mapping[str, Any]:
    """Parse a JSON object.

    Raises:
        TransportError: it is not a JSON object, or has too many values.
    """
    marks = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    if sum(text.count(mark) for mark in marks) > MAX_VALUES:  # pyright: ignore[reportArgumentType]
        raise TransportError(f"the request is not JSON of at most {MAX_VALUES} values. Send arrays as json_numpy does.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TransportError("the request is not JSON.") from error
    if not isinstance(value, dict):
        raise TransportError(f"the request must be a JSON object, got {type(value).__name__}.")
    return cast("Mapping[str, Any]", value)
