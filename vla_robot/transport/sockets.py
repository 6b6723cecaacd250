"""ZeroMQ sockets that close at once, are closed to other computers without keys, and never exceed their timeouts.

    ClientSocket (DEALER)  ----one connection----  ServerSocket (ROUTER)
                                CURVE, if both have keys

A DEALER, unlike a REQ, can continue after an unanswered request: it recognises a late answer by its number.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from vla_robot.core.errors import TransportError
from vla_robot.core.host.closeable import Closeable
from vla_robot.transport.connections import ConnectionWatch, raise_file_limit
from vla_robot.transport.keys import ClientSecurity, KeyPair, ServerSecurity, raw_key
from vla_robot.transport.wake import Wake
from vla_robot.transport.wire import MAX_ARRAYS, MAX_FRAME_BYTES, Buffer
from vla_robot.transport.zap import DOMAIN, Doorkeeper

ANY_PORT = "tcp://127.0.0.1:0"
"""Address for a free port of the loopback interface."""

MAX_PORT = (1 << 16) - 1

SLICE_S = 0.05
"""Longest wait of one poll [s], so that a signal, a dead peer or a stop flag is noticed soon."""

QUEUED_MESSAGES = 64
"""Most queued messages per connection and direction; in a control loop, older ones are of no use."""

COPIED_BYTES = 1 << 18
"""Frames up to this size are copied when sent: handing over the memory costs a thread switch, which takes longer than
copying 256 KiB."""

MAX_PEERS = 1024
"""Most connections whose user is stored; the one that was silent longest is forgotten first."""

MAX_PARTS = MAX_ARRAYS + 2
"""Most parts of a message: the sender's identity, the header, and a frame for each array."""

SKIPPED_AT_ONCE = 1000
"""Parts of an oversized message that are dropped at once: dropping a million takes 1 s, and a tick may be due."""

BACKLOG = 4096
"""Connections that the kernel may hold until libzmq accepts them. One more waits 1 s for its next attempt."""

HANDSHAKE_MS = 5000
"""libzmq ends a connection whose handshake takes longer [ms]."""

KEEPALIVE_IDLE_S, KEEPALIVE_EVERY_S, KEEPALIVE_TRIES = 30, 10, 3
"""TCP keepalive: a connection to a computer that vanished ends after a minute; a frozen process keeps its own."""

SETTLE_S = 0.2
"""Time for sent messages to arrive, or for their receiver to be known as gone [s]."""

PATIENCE = 3
"""Failed handshakes in a row after which a client gives up; one fails when a server is restarting."""

_LOG = logging.getLogger(__name__)


def require_address(address: str, *, keys: bool) -> None:
    """Raise TransportError unless this is an address, and without keys one of this computer only."""
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc") and rest:
        return
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port.isascii() and port.isdigit()):
        raise TransportError(f"'{address}' is not an address; one looks like tcp://127.0.0.1:5555.")
    require_port(port, address)
    if not keys and not is_loopback(address):
        raise TransportError(
            f"'{address}' is reachable from other computers, and without keys each of them could read what is sent "
            "and command the arm. `vla keys new NAME` makes a key, docs/security.md says the rest; or stay on "
            "tcp://127.0.0.1:PORT, with an SSH tunnel between computers."
        )


def require_port(port: int | str, where: str) -> None:
    """Raise TransportError unless this is a TCP port. libzmq would take the number modulo 65536."""
    if not 0 <= int(port) <= MAX_PORT:
        raise TransportError(
            f"'{where}' has no valid port: 1 to {MAX_PORT} do, and 0 takes a free one where a server listens."
        )


class ServerSocket(Closeable):
    """Socket of a server with many peers, each identified by an identity that ZeroMQ gives its connection."""

    def __init__(
        self, address: str = ANY_PORT, security: ServerSecurity | None = None, wake: Wake | None = None
    ) -> None:
        """
        Args:
            address: address to listen on; port 0 means any free one.
            security: this server's key and the clients it allows. None: unencrypted, for processes of this computer
                only.
            wake: ends a wait in `receive`, for a server whose answers come from another thread.

        Raises:
            TransportError: the address is taken, malformed, or off loopback without keys.
        """
        require_address(address, keys=security is not None)
        self._security = security
        self._users: OrderedDict[bytes, _User] = OrderedDict()
        # A doorkeeper serves a whole context: with keys, each server has a context of its own.
        self._own_context = None if security is None else zmq.Context()
        self._socket = _socket(self._own_context or _shared_context(), zmq.ROUTER, address)
        # Without it, messages to a peer that is gone are dropped silently.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _harden(self._socket)
        raise_file_limit()
        self._connections = ConnectionWatch(self._socket)
        try:
            if self._own_context is not None and security is not None:
                _guard(self._socket, self._own_context, security)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(
                f"cannot listen on {address}: {error}. Is another server running there? {ANY_PORT} takes a free port."
            ) from error
        self.address = cast(bytes, self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        self._inbox = _Inbox(self._socket)
        self._wake = wake
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        if wake is not None:
            self._poller.register(wake, zmq.POLLIN)

    def receive(self, timeout_s: float = SLICE_S) -> tuple[bytes, list[Buffer]] | None:
        """Return the sender's identity and the frames; None if no allowed message came in time."""
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        if self._wake is not None and self._wake.fileno() in ready:
            self._wake.silence()
        frames = self._inbox.read() if self._socket in ready else None
        if frames is None:
            return None
        peer, fd = frames[0].bytes, _fd_of(frames[-1])
        if fd is None:
            return None
        self._connections.heard(fd)
        if self._security is not None:
            self._remember(peer, cast(str, frames[-1].get("User-Id")), fd)
            if self._allowed_name(peer) is None:
                return None
        return peer, [frame.buffer for frame in frames[1:]]

    def user_of(self, peer: bytes) -> str:
        """Return the allow-list's name of a peer that has sent something; empty without keys."""
        user = self._users.get(peer)
        return "" if user is None else user.name

    def send(self, peer: bytes, frames: list[Buffer]) -> bool:
        """Send a message; return whether the peer is connected and allowed. If its queue is full, it is dropped."""
        if self._security is not None and self._allowed_name(peer) is None:
            return False
        try:
            self._socket.send_multipart([peer, *frames], flags=zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return True
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise TransportError(f"cannot answer: {error}.") from error
        return True

    def settle(self) -> None:
        """Wait before `close`, if clients may end at the same time.

        libzmq (4.3.5, its issue 3442) aborts the process when a socket is closed while its peer dies with a partly sent
        message.
        """
        time.sleep(SETTLE_S)

    def close(self) -> None:
        self._connections.close()
        self._socket.close()
        if self._own_context is not None:
            self._own_context.term()

    def _remember(self, peer: bytes, key: str, fd: int) -> None:
        known = self._users.get(peer)
        self._users[peer] = _User(key, "" if known is None else known.name, fd)
        self._users.move_to_end(peer)
        if len(self._users) > MAX_PEERS:
            self._users.popitem(last=False)

    def _allowed_name(self, peer: bytes) -> str | None:
        """Return the name of a peer whose key is on the list now. A connection with a revoked key is closed, and what
        waits in it is dropped."""
        user = self._users.get(peer)
        if user is None or self._security is None:
            return None
        name = self._security.allowed.name_of(user.key)
        if name is None:
            _LOG.warning("closed the connection of '%s', whose key is no longer allowed", user.name or "?")
            del self._users[peer]
            self._connections.hang_up(user.fd)
        elif name != user.name:
            self._users[peer] = replace(user, name=name)
        return name


@dataclass(frozen=True)
class _User:
    """User of a connection with keys.

    Attributes:
        key: key that it proved to own, 64 hexadecimal digits.
        name: its name on the allow-list; empty until it was looked up.
        fd: libzmq's file descriptor of the TCP connection.
    """

    key: str
    name: str
    fd: int


class ClientSocket(Closeable):
    """One connection to a server. Connecting succeeds at once, whether or not a server listens."""

    def __init__(self, address: str, security: ClientSecurity | None = None) -> None:
        """
        Args:
            address: address of the server.
            security: this client's key and the server's public key. None: unencrypted, for a server of this
                computer only.

        Raises:
            TransportError: the address is malformed, or off loopback without keys.
        """
        require_address(address, keys=security is not None)
        self._address = address
        self._security = security
        self._socket = _socket(_shared_context(), zmq.DEALER, address)
        if security is not None:
            _identify(self._socket, security.keys)
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, raw_key(security.server_public))
        self._inbox = _Inbox(self._socket)
        self._failed_handshakes = 0
        self._monitor = self._socket.get_monitor_socket(_HANDSHAKES)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(
                f"cannot connect to {address}: {error}. An address of a server looks like tcp://127.0.0.1:5555."
            ) from error

    def send(self, frames: list[Buffer]) -> None:
        """Queue a message for the server.

        Raises:
            TransportError: the server refused this client, or too many messages wait for it already.
        """
        try:
            self._socket.send_multipart(frames, flags=zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:
            self._check_handshakes()  # a connection that was refused takes no message
            raise TransportError(f"cannot send to {self._address}: {error}.") from error

    def receive(self, timeout_s: float = SLICE_S) -> list[Buffer] | None:
        """Return the frames of the next message; None if none came in time.

        Raises:
            TransportError: the server refuses this client, or does not own the trusted key.
        """
        if not self._socket.poll(round(timeout_s * 1000)):
            self._check_handshakes()
            return None
        frames = self._inbox.read()
        return None if frames is None else [frame.buffer for frame in frames]

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()

    def _check_handshakes(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise TransportError(self._not_allowed())
            self._failed_handshakes = 0 if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else self._failed_handshakes + 1
            # After a protocol error, libzmq does not try again.
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL or self._failed_handshakes >= PATIENCE:
                raise TransportError(self._no_handshake())

    def _not_allowed(self) -> str:
        assert self._security is not None  # only a server with keys asks for one
        keys = self._security.keys
        return (
            f"the server at {self._address} does not allow this computer's key '{keys.name}'. On the server's side: "
            f"`vla keys allow {keys.public} --name {keys.name}`."
        )

    def _no_handshake(self) -> str:
        if self._security is None:
            return (
                f"the server at {self._address} ends the connection at once: it requires a key, or is not a server of "
                "vla_robot. `vla keys new NAME` makes a key; docs/security.md says where it is used."
            )
        return (
            f"the server at {self._address} could not prove to own the key {self._security.server_public[:8]}... that "
            "is trusted for it, or runs without keys. If it has a new key, and you know why: `vla keys trust`."
        )


_HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


def is_loopback(address: str) -> bool:
    """Return whether only this computer can reach the address, as for addresses without a network."""
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _guard(socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]], security: ServerSecurity) -> None:
    """Let in only the clients on the allow-list."""
    Doorkeeper(context, security.allowed)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    # Without it, libzmq lets every client in when no ZAP handler runs.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    _identify(socket, security.keys)


def _fd_of(frame: zmq.Frame) -> int | None:
    """Return the file descriptor of a message's TCP connection; None if the peer speaks a ZeroMQ protocol from before
    2013, which only noise or other programs do."""
    try:
        return frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return None


def _harden(socket: zmq.Socket[bytes]) -> None:
    """Limit silent connections; `ConnectionWatch` does the rest."""
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_TRIES)


def _identify(socket: zmq.Socket[bytes], keys: KeyPair) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, raw_key(keys.public))
    socket.setsockopt(zmq.CURVE_SECRETKEY, raw_key(keys.secret))


def _shared_context() -> zmq.Context[zmq.Socket[bytes]]:
    return cast(zmq.Context[zmq.Socket[bytes]], zmq.Context.instance())  # pyright: ignore[reportUnknownMemberType]


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.copy_threshold = COPIED_BYTES
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
    # Only where it is asked for: with it, 127.0.0.1 is reported back as [::ffff:127.0.0.1].
    socket.setsockopt(zmq.IPV6, int("[" in address))
    return socket


class _Inbox:
    """Reads one message after the other, and drops a message of too many parts in steps.

    libzmq has no limit on parts: it delivers a message when all of it arrived, and MAXMSGSIZE limits one part.
    Until then the sender can fill its memory, which is why only allowed clients may send.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._skipping = False

    def read(self) -> list[zmq.Frame] | None:
        """Return the parts of the next message, which must be there; None if it has too many."""
        if self._skipping:
            self._skip()
            return None
        parts: list[zmq.Frame] = []
        while len(parts) < MAX_PARTS:
            parts.append(self._socket.recv(copy=False))
            if not parts[-1].more:
                return parts
        _LOG.warning("dropped a message of more than %d parts", MAX_PARTS)
        self._skipping = True
        return None

    def _skip(self) -> None:
        for _ in range(SKIPPED_AT_ONCE):
            if not self._socket.recv(copy=False).more:
                self._skipping = False
                return
