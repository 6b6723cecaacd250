"""Serves one policy to many clients. `RemotePolicy` is the client, `vla serve` the program.

    request   hello {protocol}                                   answer   ok {protocol, session, name, embodiment, ...}
              act {session, row, observation, key, budget_ms}             ok {chunk}
              status {}                                                   ok {waiting, counts, batches, ...}
                                                                    or    error {error: class name, message}

An answer has the number of its request, and answers may overtake each other: a batch holds requests of many clients.
`row` distinguishes the requests that one client sends at once; of the same row, the newest request wins. `budget_ms` is
the time that the client will wait from the arrival on, so that the clocks of two computers need not agree.

One thread uses the network and one runs the model. What a slow client does not read is dropped at its own
connection, without delay for the others.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vla_robot.core.clock import NS_PER_MS, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError, SessionError, TransportError, VlaError, in_words, unknown
from vla_robot.serve.policy.batcher import Batcher, Request
from vla_robot.serve.policy.tally import Answer
from vla_robot.transport.codec import (
    MessageReader,
    pack_action_chunk,
    pack_embodiment,
    pack_error,
    require_protocol,
    unpack_observation,
)
from vla_robot.transport.limits import RateLimit
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake
from vla_robot.transport.wire import UNNUMBERED, Buffer, Message, decode, encode

POLICY_PROTOCOL = 1

MAX_ROWS = 64
"""Most observations that one client may send at once."""

_LOG = logging.getLogger(__name__)

REQUESTS_PER_S, BURST = 2000.0, 256
"""Rate limit of one client: far above a robot's rate, far below what would keep the network's thread busy."""


@dataclass(frozen=True)
class Served:
    """Description of a served policy.

    Attributes:
        name: its name in tables and reports.
        embodiment: the arm it was trained for; None for a published checkpoint, which does not say.
        max_batch: most rows of one inference.
    """

    name: str
    embodiment: Embodiment | None
    max_batch: int


class PolicyServer:
    """Passes requests to a batcher and its answers back, in the thread that calls `serve`."""

    def __init__(
        self, served: Served, batcher: Batcher, socket: ServerSocket, wake: Wake, clock: Clock | None = None
    ) -> None:
        """
        Args:
            served: description of the policy.
            batcher: answers the requests; the caller starts and ends its `run`.
            socket: bound with `wake`; the caller closes it.
            wake: rings when an answer is ready.
            clock: the batcher's clock.
        """
        self._served = served
        self._batcher = batcher
        self._socket = socket
        self._wake = wake
        self._clock = clock or MonotonicClock()
        self._limit = RateLimit(REQUESTS_PER_S, BURST, self._clock)
        # A restarted server may serve another policy: its clients must say hello again.
        self._session = secrets.token_hex(8)
        self._outgoing: deque[tuple[bytes, int, Answer]] = deque()
        self._handlers: dict[str, Callable[[MessageReader], dict[str, Any]]] = {
            "hello": self._hello,
            "status": self._status,
        }

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer until `should_stop`, which is called at least 20 times a second."""
        while not should_stop():
            received = self._socket.receive()
            if received is not None:
                peer, frames = received
                answer = self._answer(peer, frames)
                if answer is not None:
                    self._socket.send(peer, answer)
            self._send_answers()

    def _answer(self, peer: bytes, frames: Sequence[Buffer]) -> list[Buffer] | None:
        """Return the answer; None if the model must give it."""
        seq = UNNUMBERED
        try:
            request = decode(frames)
            seq = request.seq
            self._limit.admit(self._socket.user_of(peer) or peer.hex(), request.kind)
            reader = MessageReader(request.body, request.kind)
            if request.kind == "act":
                self._submit(peer, seq, reader)
                return None
            if request.kind not in self._handlers:
                raise TransportError(unknown("request", request.kind, ["act", *self._handlers]))
            return encode(Message("ok", seq, self._handlers[request.kind](reader)))
        except VlaError as error:
            return encode(Message("error", seq, pack_error(error)))
        except Exception as error:  # one bad request must not end the server for all robots
            _LOG.exception("a request could not be answered")
            return encode(Message("error", seq, pack_error(PolicyError(f"the server failed: {in_words(error)}."))))

    def _submit(self, peer: bytes, seq: int, reader: MessageReader) -> None:
        if reader.text("session") != self._session:
            raise SessionError("the policy server was started anew during an episode.")
        row, budget_ms, key = reader.integer("row"), reader.number("budget_ms"), reader.text("key")
        if not 0 <= row < MAX_ROWS:
            raise TransportError(f"row {row} is outside of 0 to {MAX_ROWS - 1}, the rows of one client.")
        if not 0 < budget_ms <= 1e7:
            raise TransportError(f"budget_ms {budget_ms:g} is out of range; it must be above 0 and at most 1e7 ms.")
        self._batcher.submit(
            Request(
                client=(peer, row),
                observation=unpack_observation(reader.table("observation")),
                answer=partial(self._answered, peer, seq),
                statistics_key=key or None,
                deadline_ns=self._clock.now_ns() + round(budget_ms * NS_PER_MS),
            )
        )

    def _answered(self, peer: bytes, seq: int, answer: Answer) -> None:
        """Queue an answer for sending; thread-safe."""
        self._outgoing.append((peer, seq, answer))
        self._wake.ring()

    def _send_answers(self) -> None:
        while self._outgoing:
            peer, seq, answer = self._outgoing.popleft()
            self._socket.send(peer, _packed(seq, answer))

    def _hello(self, reader: MessageReader) -> dict[str, Any]:
        require_protocol(reader, POLICY_PROTOCOL, "the client", "the policy server")
        embodiment = self._served.embodiment
        return {
            "protocol": POLICY_PROTOCOL,
            "session": self._session,
            "name": self._served.name,
            "embodiment": {} if embodiment is None else pack_embodiment(embodiment),
            "max_batch": self._served.max_batch,
        }

    def _status(self, _: MessageReader) -> dict[str, Any]:
        return self._batcher.status()


def answering(batcher: Batcher) -> threading.Thread:
    """Start and return the thread that runs the model; `batcher.close` ends it."""
    thread = threading.Thread(target=batcher.run, name="inference", daemon=True)
    thread.start()
    return thread


def _packed(seq: int, answer: Answer) -> list[Buffer]:
    """Encode an answer; one that cannot be sent becomes an error."""
    if not isinstance(answer, VlaError):
        try:
            return encode(Message("ok", seq, {"chunk": pack_action_chunk(answer)}))
        except TransportError as error:
            answer = PolicyError(f"the policy's answer cannot be sent: {error}")
    return encode(Message("error", seq, pack_error(answer)))
