"""Wakes a socket's thread from another thread; ZeroMQ's own sockets belong to one thread each."""

from __future__ import annotations

import contextlib
import socket


class Wake:
    """Wake-up signal: `ring` from any thread makes `fileno` readable. Several rings count as one."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)

    def ring(self) -> None:
        # Full: it is readable already. Closed: it is not polled any more.
        with contextlib.suppress(BlockingIOError, OSError):
            self._rung.send(b"\0")

    def silence(self) -> None:
        """Forget all rings so far."""
        with contextlib.suppress(BlockingIOError):
            while self._heard.recv(4096):
                pass

    def fileno(self) -> int:
        return self._heard.fileno()

    def close(self) -> None:
        self._heard.close()
        self._rung.close()
