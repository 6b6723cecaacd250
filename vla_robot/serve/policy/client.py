"""A policy behind a socket that looks like any other policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import require_fit
from vla_robot.core.errors import ContractError, PolicyError, TransportError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.policy.server import MAX_ROWS, POLICY_PROTOCOL
from vla_robot.serve.requests import Requests
from vla_robot.transport.codec import (
    MessageReader,
    pack_observation,
    read_answer,
    unpack_action_chunk,
    unpack_embodiment,
)
from vla_robot.transport.keys import ClientSecurity
from vla_robot.transport.wire import Message

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0


class RemotePolicy(Closeable):
    """The Policy port over ZeroMQ. Errors of the policy are raised here as they were there.

    Attributes:
        embodiment: what it was trained to drive; None for a published checkpoint, which does not say.
        name: the policy's on the server.
        max_batch: rows that one inference of the server takes.
    """

    def __init__(
        self,
        address: str,
        *,
        security: ClientSecurity | None = None,
        statistics_key: str | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """Connect and learn what policy it is.

        Args:
            address: where a `vla serve` listens, e.g. "tcp://127.0.0.1:5580".
            security: this computer's key and the server's; needed off loopback.
            statistics_key: whose statistics un-normalise; None for the server's own choice.
            answer_timeout_s: how long an answer may take; the server drops a request whose deadline has passed.
            connect_timeout_s: how long the server may take to answer the first request.
            clock: times the stages.

        Raises:
            TransportError: no answer came in time, or the server speaks another version.
        """
        self._address = address
        self._key = statistics_key
        self._answer_timeout_s = answer_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock or MonotonicClock()
        self._requests = Requests(address, self._clock, security)
        try:
            self._hello()
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> None:
        """Look whether the server is there and holds the same policy. A served policy remembers nothing, so there is
        nothing to forget.

        Raises:
            TransportError: no answer came in time.
            ContractError: the server was started anew with a policy for another arm.
        """
        before = self.embodiment
        self._hello()
        if before is not None:
            if self.embodiment is None:
                raise ContractError(f"the server at {self._address} holds another policy now, '{self.name}'.")
            require_fit(self.embodiment, before)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk per observation, answered in one batch where the server has room.

        Raises:
            ContractError: an observation does not fit the policy.
            PolicyError: no valid action exists, or none came in time.
        """
        if not 0 < len(observations) <= MAX_ROWS:
            raise ContractError(f"one request holds 1 to {MAX_ROWS} observations, got {len(observations)}.")
        sent_ns = self._clock.now_ns()
        rows = {self._send_row(row, observation): row for row, observation in enumerate(observations)}
        chunks: list[ActionChunk | None] = [None] * len(observations)
        while rows:
            answer = self._await_answer(rows, sent_ns)
            chunks[rows.pop(answer.seq)] = self._chunk(answer, sent_ns)
        return [self._of(chunk, o) for chunk, o in zip(chunks, observations, strict=True) if chunk is not None]

    def status(self) -> Mapping[str, Any]:
        """Counts and quantiles of the server; it answers at once, whatever the model does.

        Raises:
            TransportError: no answer came in time.
        """
        return self._request("status", {}).fields

    def close(self) -> None:
        self._requests.close()

    def _hello(self) -> None:
        reader = self._request("hello", {"protocol": POLICY_PROTOCOL})
        self._session = reader.text("session")
        self.name = reader.text("name")
        self.max_batch = max(reader.integer("max_batch"), 1)
        embodiment = reader.table("embodiment")
        self.embodiment = unpack_embodiment(embodiment) if embodiment.names() else None

    def _send_row(self, row: int, observation: Observation) -> int:
        """The number of the request."""
        # The simulator's truth is never shown to a policy that learned, here or elsewhere.
        body = {
            "session": self._session,
            "row": row,
            "key": self._key or "",
            "budget_ms": self._answer_timeout_s * 1e3,
            "observation": pack_observation(replace(observation, privileged={})),
        }
        return self._requests.post("act", body)

    def _request(self, kind: str, body: Mapping[str, Any]) -> MessageReader:
        seq = self._requests.post(kind, body)
        end_ns = self._requests.ends_ns(self._connect_timeout_s)
        answer = self._requests.wait(lambda message: message.seq == seq, end_ns)
        if answer is None:
            raise TransportError(
                f"no policy server answers at {self._address}. Start one with `vla serve openvla_nano --bind "
                f"{self._address}`; or is it busy starting?"
            )
        return read_answer(answer, kind)

    def _await_answer(self, rows: Mapping[int, int], sent_ns: int) -> Message:
        """The next answer to one of these requests."""
        end_ns = sent_ns + round(self._answer_timeout_s * NS_PER_S)
        answer = self._requests.wait(lambda message: message.seq in rows, end_ns)
        if answer is None:
            raise PolicyError(
                f"the policy server at {self._address} did not answer within {self._answer_timeout_s:g} s. "
                "There is no action of this answer."
            )
        return answer

    def _chunk(self, answer: Message, sent_ns: int) -> ActionChunk:
        """The answer, with the time on the wire beside the server's own stages."""
        reader = read_answer(answer, "act")
        try:
            chunk = unpack_action_chunk(reader.table("chunk"))
        except TransportError as error:
            raise PolicyError(f"the policy server at {self._address} sent no valid chunk: {error}") from error
        if not np.isfinite(chunk.actions).all():
            raise PolicyError(f"the policy server at {self._address} sent an action that is not finite.")
        total_ms = (self._clock.now_ns() - sent_ns) / NS_PER_MS
        wire_ms = max(total_ms - sum(chunk.stages_ms.values()), 0.0)
        return replace(chunk, stages_ms={**chunk.stages_ms, "transport": wire_ms})

    def _of(self, chunk: ActionChunk, observation: Observation) -> ActionChunk:
        """The chunk, when it answers this observation."""
        if (chunk.stamp_ns, chunk.step) != (observation.stamp_ns, observation.step):
            raise PolicyError(f"the policy server at {self._address} answered another observation.")
        return chunk
