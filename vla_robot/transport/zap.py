"""ZAP handler of a server with keys: ZeroMQ asks it once per connection whether a client's key is allowed.

    libzmq (handshake) --inproc--> Doorkeeper: 200 and the key as "User-Id", or 400

Source: ZeroMQ RFC 27/ZAP 1.0. libzmq holds the connection back until the handler answers, so that no client gets in
after the handler died.
"""

from __future__ import annotations

import logging
import threading
import time

import zmq

from vla_robot.transport.keys import KeyList

ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"vla_robot"

TELL_EVERY_S = 1.0

_VERSION = b"1.0"
_CURVE_REQUEST_FRAMES = 7  # version, request id, domain, address, routing id, mechanism, credentials
_KEY_BYTES = 32

_LOG = logging.getLogger(__name__)


class Doorkeeper:
    """ZAP handler for all servers of one ZeroMQ context, until the context is terminated."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: KeyList) -> None:
        self._allowed = allowed
        self._refused, self._tell_s = 0, 0.0
        # Bound here and not in the thread: a server must not listen before its handler is bound.
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ADDRESS)
        threading.Thread(target=self._run, name="doorkeeper", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._safe_answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _safe_answer(self, request: list[bytes]) -> list[bytes]:
        """Answer, or refuse after any exception: if this thread ended, no client could connect."""
        try:
            return self._answer(request)
        except Exception:
            _LOG.exception("a client was refused because its key could not be looked up")
            return _refusal(request)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        key = _curve_key(request)
        name = None if key is None else self._allowed.name_of(key)
        if key is None or name is None:
            self._tell_refused(key)
            return _refusal(request)
        _LOG.info("let in '%s'", name)
        return [_VERSION, request[1], b"200", b"", key.encode(), b""]

    def _tell_refused(self, key: str | None) -> None:
        """Log refusals, at most one line per second, so that they cannot fill the log."""
        self._refused += 1
        if time.monotonic() >= self._tell_s:
            self._tell_s = time.monotonic() + TELL_EVERY_S
            _LOG.warning(
                "refused %d connections since the last line; the newest has the key %s, which is not on the allow-list",
                self._refused,
                key,
            )
            self._refused = 0


def _refusal(request: list[bytes]) -> list[bytes]:
    request_id = request[1] if len(request) > 1 else b""
    return [_VERSION, request_id, b"400", b"not on the allow-list", b"", b""]


def _curve_key(request: list[bytes]) -> str | None:
    """Return the client's public key; None for any other mechanism."""
    if len(request) != _CURVE_REQUEST_FRAMES or request[5] != b"CURVE" or len(request[6]) != _KEY_BYTES:
        return None
    return request[6].hex()
