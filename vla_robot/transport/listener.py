"""Listening TCP socket that keeps room for the next client; for servers of other protocols than ZeroMQ.

    kernel --accept--> parked (silent) --first byte--> `accept`: SPEAKING --> a thread --hear--> GUEST, OPERATOR
                          |                               |                                         |
                          +-- too many, or too slow: closed ----------------------------------------+

A silent connection takes a file descriptor and no thread. `accept` and `fileno` are those of a socket, so that a server
of another project can use a Listener.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Sequence

from vla_robot.core.clock import NS_PER_S
from vla_robot.transport.admission import Admission
from vla_robot.transport.connections import raise_file_limit
from vla_robot.transport.sockets import BACKLOG, require_port

SPEAKING, GUEST, OPERATOR = 1, 2, 3
"""Ranks of connections that sent something, that sent a whole request, and that showed the operator's token."""

ROOM = (128, 64, 64, 32)
"""Most open connections of each rank; those of rank 0 are silent, and take a file descriptor each."""

NEWCOMER_S = 10.0
"""Time limit of a connection's first complete request, TLS handshake included [s]."""

SWEEP_S = 0.25
"""Period at which deadlines are checked [s]."""

ACCEPTED_AT_ONCE = 64
PAUSE_S = 0.02
"""Pause before the next attempt when this process has no file descriptor left [s]."""

_LOG = logging.getLogger(__name__)


class Listener:
    """Accepts connections and closes surplus ones."""

    def __init__(self, host: str, port: int, room: Sequence[int] = ROOM, newcomer_s: float = NEWCOMER_S) -> None:
        """
        Args:
            host: address to listen on.
            port: 0 means any free one.
            room: most open connections of each rank, from silent ones on.
            newcomer_s: time limit of the first complete request.

        Raises:
            TransportError: the port does not exist.
            OSError: the port is taken, or the address does not exist.
        """
        require_port(port, f"{host}:{port}")
        raise_file_limit()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self._newcomer_ns = round(newcomer_s * NS_PER_S)
        self._admission = Admission(room)
        self._parked: dict[int, tuple[socket.socket, tuple[str, int]]] = {}
        self._lock = threading.RLock()
        self._accepting = threading.Lock()
        self._over = threading.Event()
        self._wake, self._rung = socket.socketpair()
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._epoll.register(self._rung, select.EPOLLIN)
        self._sweeper = threading.Thread(target=self._sweep_until_closed, name="listener", daemon=True)
        self._sweeper.start()

    @property
    def family(self) -> int:
        return self._socket.family

    @property
    def closed(self) -> int:
        """Number of connections that were closed because they were too many or too slow."""
        return self._admission.closed

    def getsockname(self) -> tuple[str, int]:
        host, port, *_ = self._socket.getsockname()
        return host, port

    def fileno(self) -> int:
        """Return a descriptor that is readable when `accept` may have a connection; -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def accept(self, timeout_s: float | None = None) -> tuple[socket.socket, tuple[str, int]]:
        """Return the next connection that has sent something, and the address of its peer.

        Args:
            timeout_s: how long to wait; None: until `close`.

        Raises:
            BlockingIOError: no connection came in time.
            OSError: the listener is closed (EBADF).
        """
        with self._accepting:
            return self._accept(math.inf if timeout_s is None else time.monotonic() + timeout_s)

    def hear(
        self, connection: socket.socket, rank: int | None = None, within_s: float | None = None, busy: bool = False
    ) -> bool:
        """Note that a complete request came, or that the next one is awaited; then close surplus connections.

        Args:
            connection: as `accept` returned it, or as given to `replace`.
            rank: GUEST or OPERATOR; None keeps it.
            within_s: time until the next call, after which the connection is closed [s]; None: without limit.
            busy: whether it is being answered, so that an idle one is closed instead, if there is one.

        Returns:
            Whether the connection is still open on this side.
        """
        now_ns = time.monotonic_ns()
        deadline_ns = None if within_s is None else now_ns + round(within_s * NS_PER_S)
        with self._lock:
            self._admission.hear(connection, now_ns, rank, deadline_ns, busy)
            self._close_surplus()
            return connection in self._admission

    def replace(self, connection: socket.socket, wrapped: socket.socket) -> None:
        """Note that a connection is used through another object from now on, e.g. for TLS."""
        with self._lock:
            self._admission.rename(connection, wrapped)

    def leave(self, connection: socket.socket) -> None:
        """Forget a connection whose thread has ended."""
        with self._lock:
            self._admission.leave([connection])

    def close(self) -> None:
        """Stop accepting, and close every connection. May be called twice."""
        self._over.set()
        with self._lock:
            if self._epoll.closed:
                return
            for connection in self._admission.open_keys():
                self._hang_up(connection)
            self._wake.send(b"x")
            self._socket.close()
        self._sweeper.join()
        with self._accepting:  # a thread that waits in a closed epoll would never wake
            self._epoll.close()
            self._wake.close()
            self._rung.close()

    def _accept(self, end_s: float) -> tuple[socket.socket, tuple[str, int]]:
        took_in = False
        while not self._over.is_set():
            ready = self._ready(end_s)
            if self._socket.fileno() in ready:
                self._take_in()
            for fd in ready:
                spoken = self._unpark(fd)
                if spoken is not None:
                    return spoken
            # A connection accepted in the first turn may have sent something already, so there is a second turn.
            if time.monotonic() >= end_s and (took_in or not ready):
                raise BlockingIOError(errno.EAGAIN, "no connection has sent anything")
            took_in = True
        raise OSError(errno.EBADF, "the listener is closed")

    def _ready(self, end_s: float) -> list[int]:
        """Return readable file descriptors; wait for one until `end_s`, which may be infinite."""
        return [fd for fd, _ in self._epoll.poll(None if math.isinf(end_s) else max(end_s - time.monotonic(), 0.0))]

    def _take_in(self) -> None:
        """Accept and park connections; if the system has no more descriptors, close silent ones."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, address, *_ = self._socket.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._make_room(error)
                break
            self._park(connection, (address[0], address[1]))
        with self._lock:
            self._close_surplus()

    def _park(self, connection: socket.socket, address: tuple[str, int]) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            self._parked[connection.fileno()] = connection, address
            self._admission.enter(connection, address[0], now_ns, now_ns + self._newcomer_ns)
            self._epoll.register(connection, select.EPOLLIN)

    def _unpark(self, fd: int) -> tuple[socket.socket, tuple[str, int]] | None:
        """Return a parked connection if it has sent something."""
        with self._lock:
            if fd not in self._parked:
                return None
            connection, address = self._parked[fd]
            connection.setblocking(False)
            try:
                spoken = bool(connection.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                return None  # a new connection that got the number of a closed one
            except OSError:
                spoken = False
            del self._parked[fd]
            self._epoll.unregister(fd)
            if not spoken:
                self._admission.leave([connection])
                connection.close()
                return None
            connection.setblocking(True)
            self._admission.promote(connection, SPEAKING)
            self._close_surplus()
            return connection, address

    def _make_room(self, error: OSError) -> None:
        _LOG.warning("cannot accept a connection: %s; %d silent ones are closed", error.strerror, len(self._parked))
        with self._lock:
            for connection, _ in list(self._parked.values()):
                self._admission.leave([connection])
                self._hang_up(connection)
        self._over.wait(PAUSE_S)

    def _sweep_until_closed(self) -> None:
        while not self._over.wait(SWEEP_S):
            try:
                with self._lock:
                    self._admission.leave([c for c in self._admission.open_keys() if _is_closed(c)])
                    self._close_surplus()
            except Exception:  # one bad connection must not leave the server without its limit
                _LOG.exception("counting connections failed; it goes on")

    def _close_surplus(self) -> None:
        for connection in self._admission.surplus(time.monotonic_ns()):
            self._hang_up(connection)

    def _hang_up(self, connection: object) -> None:
        """Close a parked connection; shut down any other, so that its thread finds it ended."""
        assert isinstance(connection, socket.socket)
        if self._parked.pop(connection.fileno(), None) is not None:
            connection.close()
            return
        with contextlib.suppress(OSError):
            # Not the method of TLS sockets, which takes the session from the thread that uses it.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _is_closed(connection: object) -> bool:
    return isinstance(connection, socket.socket) and connection.fileno() < 0
