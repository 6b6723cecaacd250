"""Limits the TCP connections to a ZeroMQ server, since libzmq has no limit of its own.

    libzmq --accepted, disconnected (monitor)--> ConnectionWatch --shutdown(fd)--> the connections that are too many
    ServerSocket.receive --the fd of a message-->

A connection that has sent no complete message is a newcomer. It has NEWCOMER_S to send one, and only NEWCOMERS of them
are kept: a flood of silent or half-open connections closes its own, and the next client still gets a file descriptor.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import resource
import socket
import threading
import time
from collections.abc import Generator, Sequence
from typing import cast

import zmq
from zmq.utils.monitor import parse_monitor_message

from vla_robot.core.clock import NS_PER_S
from vla_robot.transport.admission import Admission

NEWCOMERS, KNOWN = 128, 256
"""Most connections that have sent no message yet, and most that have."""

NEWCOMER_S = 10.0
"""Time limit of a connection's handshake and first message [s]."""

EVERY_S = 0.02
"""Shortest period of counting accepted connections [s]: in a flood, one wake-up of the thread for many of them."""

IDLE_S = 1.0
"""Period at which deadlines are checked without other events [s]."""

WANTED_FILES = 4096

_KNOWN_RANK = 1
_NUMBER = itertools.count()
_LOG = logging.getLogger(__name__)


class ConnectionWatch:
    """Closes surplus connections, in a thread of its own, until `close`."""

    def __init__(self, watched: zmq.Socket[bytes], room: Sequence[int] = (NEWCOMERS, KNOWN)) -> None:
        """
        Args:
            watched: a server's socket that is not bound yet.
            room: most newcomers, and most other connections.
        """
        self._admission = Admission(room)
        self._peer_of: dict[int, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._spoke_ns: dict[int, int] = {}
        self._spoke_lock = threading.Lock()  # a lock of its own: in a flood, the other one is held for milliseconds
        self._over = threading.Event()
        self._watched = watched
        address = f"inproc://connections-{next(_NUMBER)}"
        watched.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._events = _context_of(watched).socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        # With the usual bound of 1000 events, a flood would block the thread of libzmq that serves every connection.
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.connect(address)
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> int:
        """Number of connections that were closed because they were too many or too slow."""
        return self._admission.closed

    def heard(self, fd: int) -> None:
        """Note that a complete message came from a connection."""
        with self._spoke_lock:
            self._spoke_ns[fd] = time.monotonic_ns()

    def hang_up(self, fd: int) -> None:
        """Close a connection now, if it is still open."""
        with self._lock:
            self._shut(fd)
            self._admission.leave([fd])

    def close(self) -> None:
        """End the thread, before the watched socket is closed. May be called twice."""
        self._over.set()
        with contextlib.suppress(zmq.ZMQError):
            self._watched.disable_monitor()  # its last event wakes the thread
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._events.poll(round(IDLE_S * 1000))
                try:
                    self._turn()
                except Exception:  # one bad event must not leave the server without its limit
                    _LOG.exception("counting connections failed; the server continues")
                self._over.wait(EVERY_S)
        except zmq.ContextTerminated:
            pass
        finally:
            self._events.close()

    def _turn(self) -> None:
        # Taken before the events: the event of a connection's acceptance precedes its first message.
        with self._spoke_lock:
            spoke_ns, self._spoke_ns = self._spoke_ns, {}
        with self._lock:
            while self._events.poll(0):
                event = parse_monitor_message(self._events.recv_multipart())
                self._note(event["event"], event["value"])
            for fd, heard_ns in spoke_ns.items():
                self._admission.hear(fd, heard_ns, _KNOWN_RANK)
            for fd in self._admission.surplus(time.monotonic_ns()):
                assert isinstance(fd, int)
                self._shut(fd)

    def _note(self, event: int, fd: int) -> None:
        if event == zmq.EVENT_DISCONNECTED:
            self._admission.leave([fd])
            self._peer_of.pop(fd, None)
        elif event == zmq.EVENT_ACCEPTED:
            peer = _peer_of(fd)
            if peer is not None:
                now_ns = time.monotonic_ns()
                self._peer_of[fd] = peer
                self._admission.enter(fd, peer[0], now_ns, now_ns + round(NEWCOMER_S * NS_PER_S))

    def _shut(self, fd: int) -> None:
        """Shut down a connection; libzmq then finds that its peer ended it, and forgets it."""
        with contextlib.suppress(OSError), _borrowed(fd) as connection:
            # The number may belong to another file by now.
            if _peer(connection) == self._peer_of.get(fd):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _borrowed(fd: int) -> Generator[socket.socket]:
    """Borrow the connection of a file descriptor that libzmq owns. Raises OSError if there is none.

    It is not duplicated: when this is needed most, there is no free descriptor.
    """
    connection = socket.socket(fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()


def _peer_of(fd: int) -> tuple[str, int] | None:
    """Return address and port of a connection's peer; None if it is gone already."""
    with contextlib.suppress(OSError), _borrowed(fd) as connection:
        return _peer(connection)
    return None


def _peer(connection: socket.socket) -> tuple[str, int]:
    """Return the peer's address and port; a Unix socket has none."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return "", 0
    host, port, *_ = connection.getpeername()
    return host, port


def _context_of(socket_: zmq.Socket[bytes]) -> zmq.Context[zmq.Socket[bytes]]:
    return cast("zmq.Context[zmq.Socket[bytes]]", socket_.context)  # pyright: ignore[reportUnknownMemberType]


def raise_file_limit() -> None:
    """Raise this process's limit of open files, since a low limit is easily exhausted by many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
