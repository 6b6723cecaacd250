"""A policy behind openpi's WebSocket protocol that looks like any other policy.

    server    metadata          at once after the connection is made
    client    observation       one binary frame
    server    answer            one binary frame; or a text frame with what went wrong, and then it hangs up

Nothing of the protocol is numbered: an answer that is late could not be told from the next one. So a connection is
given up after the first failure, and every episode has one of its own.

Source: openpi @15a9616, src/openpi/serving/websocket_policy_server.py.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vla_robot.core.clock import NS_PER_MS, Clock, MonotonicClock
from vla_robot.core.errors import PolicyError, TransportError, VlaError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.optional import require
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.interop.mapping import PeerMapping, Timeouts, nested
from vla_robot.serve.interop.msgpack_safe import MAX_MESSAGE_BYTES, limit_sending, not_this_computers
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.transport.sockets import is_loopback

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

CLOSE_TIMEOUT_S = 1.0

MAX_REASON_CHARS = 300


class OpenpiPolicy(Closeable):
    """The Policy port over a WebSocket.

    Attributes:
        metadata: what the server says of itself; the protocol prescribes nothing.
    """

    def __init__(
        self,
        address: str,
        mapping: PeerMapping,
        *,
        prompt: str = "prompt",
        token: str | None = None,
        timeouts: Timeouts | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connect and hear what the server says of itself.

        Args:
            address: e.g. "ws://127.0.0.1:8000".
            mapping: the server's words.
            prompt: what it calls the instruction.
            token: sent as an API key, where the server wants one.
            timeouts: how long it may take.
            clock: times the stages.

        Raises:
            TransportError: no server answers there, it is no openpi server, or it is another computer's address.
            MissingDependencyError: the package websockets is not installed.
        """
        require("websockets", "serve", "asking a server of openpi")
        self._host, self._port = _host_and_port(address)
        self._address = address
        self._mapping = mapping
        self._prompt = prompt
        self._token = token
        self._timeouts = timeouts or Timeouts()
        self._clock = clock or MonotonicClock()
        self._open = contextlib.ExitStack()
        self._connection: ClientConnection | None = None
        self._connect()

    def reset(self, seed: int) -> None:
        """Begin anew on a connection of this episode's own; the protocol has no other way to say so.

        Raises:
            TransportError: no answer came in time.
        """
        self._connect()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk per observation, one after the other: the protocol has no batches.

        Raises:
            PolicyError: the server has no answer, or none in time. The connection is given up until `reset`.
        """
        return [self._act(observation) for observation in observations]

    def close(self) -> None:
        self._connection = None
        self._open.close()

    def _connect(self) -> None:
        from websockets.exceptions import WebSocketException

        self.close()
        try:
            connection = self._open.enter_context(self._dial())
            self.metadata = unpack(_binary(connection.recv(self._timeouts.connect_s)))
            self._connection = connection
        except (OSError, EOFError, ValueError, WebSocketException, VlaError) as error:
            self.close()
            raise TransportError(
                f"no openpi server answers at {self._address}: {str(error) or type(error).__name__}. Start it there, "
                "e.g. openpi's scripts/serve_policy.py, or change 'address' in the recipe."
            ) from error

    def _dial(self) -> contextlib.AbstractContextManager[ClientConnection]:
        from websockets.sync.client import connect

        tcp = socket.create_connection((self._host, self._port), self._timeouts.connect_s)
        limit_sending(tcp, self._timeouts.answer_s)
        return connect(
            self._address,
            sock=tcp,  # and with it no proxy, and no redirection to another computer
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            additional_headers={"Authorization": f"Api-Key {self._token}"} if self._token else None,
            open_timeout=self._timeouts.connect_s,
            close_timeout=CLOSE_TIMEOUT_S,
            # openpi's server infers in the thread that would answer a ping; an answer has its own limit.
            ping_interval=None,
        )

    def _act(self, observation: Observation) -> ActionChunk:
        images, state = self._mapping.images(observation), self._mapping.state(observation)
        request = nested({**images, **state, self._prompt: observation.instruction})
        with self._giving_up() as connection:
            sent_ns = self._clock.now_ns()
            connection.send(pack(request))
            answer = unpack(_binary(connection.recv(self._timeouts.answer_s)))
            total_ms = (self._clock.now_ns() - sent_ns) / NS_PER_MS
            return self._mapping.chunk(answer, observation, _stages_ms(answer, total_ms))

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[ClientConnection]:
        """The connection; after any failure there is none until the next episode."""
        from websockets.exceptions import WebSocketException

        if self._connection is None:
            raise PolicyError(
                f"the connection to the openpi server at {self._address} was lost; the next episode makes a new one."
            )
        try:
            yield self._connection
        except TimeoutError as error:
            self.close()
            raise PolicyError(
                f"the openpi server at {self._address} did not answer within {self._timeouts.answer_s:g} s. There is "
                "no action of this answer. Where its first answer takes long, set peer.answer_timeout_s."
            ) from error
        except (OSError, EOFError, WebSocketException, VlaError) as error:
            self.close()
            raise PolicyError(f"the openpi server at {self._address} failed: {error}") from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Of an address of this computer.

    Raises:
        TransportError: it is none.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "ws" or not host or not port or parts.path not in ("", "/") or parts.query or parts.username:
        raise TransportError(f"'{address}' is not an address of an openpi server; one looks like ws://127.0.0.1:8000.")
    if not is_loopback(f"ws://{parts.netloc}"):
        raise not_this_computers(address, "openpi", host, port)
    return host, port


def _binary(frame: str | bytes) -> bytes:
    """A frame that is no error. An error is text: a traceback, of which the last line says what went wrong."""
    if isinstance(frame, bytes):
        return frame
    lines = frame.strip().splitlines() or ["it sent an empty text frame, and did not say why."]
    raise PolicyError(lines[-1][:MAX_REASON_CHARS])


def _stages_ms(answer: Mapping[str, Any], total_ms: float) -> dict[str, float]:
    """The server's own time, where it says so, and the rest."""
    timing = answer.get("server_timing")
    infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
    if not isinstance(infer_ms, int | float) or not 0 <= infer_ms <= total_ms:
        return {"server": total_ms}
    return {"inference": float(infer_ms), "transport": total_ms - infer_ms}
