"""What our HTTP servers share: a bound on connections, and JSON bodies whose size is checked before they are read.

The standard library's server otherwise starts a thread for whoever connects.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from vla_robot.core.errors import TransportError

MAX_CONNECTIONS = 64
MAX_VALUES = 1 << 16
"""In one JSON body. 64 MiB of "[],[]," would take 1.4 GB when they are parsed."""


class BoundedServer(ThreadingHTTPServer):
    """A thread for each of at most MAX_CONNECTIONS; further ones are hung up on."""

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), handler)

    def accepted(self, request: Any) -> Any:
        """The connection as its thread talks to it; OSError where it comes to nothing."""
        return request

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(self.accepted(request), client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._room.release()


def read_object(handler: BaseHTTPRequestHandler, max_bytes: int) -> Mapping[str, Any]:
    """The body of a request.

    Raises:
        TransportError: it is no JSON object, or says no size, or too large a one; then the connection ends, unread.
    """
    length = handler.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 16 and int(length) <= max_bytes):
        handler.close_connection = True
        raise TransportError(f"a request says its Content-Length, at most {max_bytes} bytes, got '{length[:40]}'.")
    return parse_object(handler.rfile.read(int(length)))


def parse_object(text: bytes | str) -> Mapping[str, Any]:
    """
    Raises:
        TransportError: it is no JSON object.
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
