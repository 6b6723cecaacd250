"""Client of openpi's WebSocket protocol, as a Policy.

    server    metadata          as soon as the connection is made
    client    observation       one binary frame
    server    answer            one binary frame; or a text frame with an error, after which it disconnects

Messages have no numbers: a late answer could not be told from the next one. So a connection is closed
after the first failure, and every episode makes a new one.

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
    """Policy over a WebSocket.

    Attributes:
        metadata: the server's metadata; the protocol prescribes none.
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
        """Connect and read the server's metadata.

        Args:
            address: e.g. "ws://127.0.0.1:8000".
            mapping: names and units of the server.
            prompt: its key of the instruction.
            token: API key to send; None without.
            timeouts: time limits of its answers.
            clock: measures the stages.

        Raises:
            TransportError: no openpi server answers there, or the address is another computer's.
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
        """Make a new connection, since the protocol has no other way to begin an episode.

        Raises:
            TransportError: no answer came in time.
        """
        self._connect()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, requested one after the other: the protocol has no batches.

        Raises:
            PolicyError: the server reports an error, or does not answer in time. The connection is closed then.
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
            sock=tcp,  # so that no proxy and no redirection to another computer is used
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
        """Yield the connection, and close it after any failure, until the next episode."""
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
                f"the openpi server at {self._address} did not answer within {self._timeouts.answer_s:g} s. This "
                "answer is lost. If its first answer takes long, set peer.answer_timeout_s."
            ) from error
        except (OSError, EOFError, WebSocketException, VlaError) as error:
            self.close()
            raise PolicyError(f"the openpi server at {self._address} failed: {error}") from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address on this computer.

    Raises:
        TransportError: it is not such an address.
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
    """Return a binary frame. A text frame is an error: a traceback, whose last line is the reason."""
    if isinstance(frame, bytes):
        return frame
    lines = frame.strip().splitlines() or ["it sent an empty text frame without a reason."]
    raise PolicyError(lines[-1][:MAX_REASON_CHARS])


def _stages_ms(answer: Mapping[str, Any], total_ms: float) -> dict[str, float]:
    """Return the server's own time, if it reports one, and the rest [ms]."""
    timing = answer.get("server_timing")
    infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
    if not isinstance(infer_ms, int | float) or not 0 <= infer_ms <= total_ms:
        return {"server": total_ms}
    return {"inference": float(infer_ms), "transport": total_ms - infer_ms}
