"""Client of a policy server, as a Policy."""

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
    """Policy over ZeroMQ. Errors of the served policy are raised here with the same type.

    Attributes:
        embodiment: the arm it was trained for; None for a published checkpoint, which does not say.
        name: its name on the server.
        max_batch: most rows of one inference of the server.
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
        """Connect and get the policy's description.

        Args:
            address: address of a `vla serve`, e.g. "tcp://127.0.0.1:5580".
            security: this computer's key and the server's public key; required off loopback.
            statistics_key: dataset whose statistics un-normalise; None for the server's choice.
            answer_timeout_s: time limit of an answer; the server drops a request whose deadline passed.
            connect_timeout_s: time limit of the first answer.
            clock: measures the stages.

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
        """Check that the server answers and serves the same policy, which remembers no earlier observation.

        Raises:
            TransportError: no answer came in time.
            ContractError: the server was restarted with a policy for another arm.
        """
        before = self.embodiment
        self._hello()
        if before is not None:
            if self.embodiment is None:
                raise ContractError(f"the server at {self._address} holds another policy now, '{self.name}'.")
            require_fit(self.embodiment, before)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, computed in one batch if the server has room.

        Raises:
            ContractError: an observation does not fit the policy.
            PolicyError: the policy has no valid action, or did not answer in time.
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
        """Return counts and quantiles of the server, which answers without waiting for the model.

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
        """Send one row and return the number of the request."""
        # A learned policy never gets the simulator's privileged state.
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
        """Return the next answer to one of these requests."""
        end_ns = sent_ns + round(self._answer_timeout_s * NS_PER_S)
        answer = self._requests.wait(lambda message: message.seq in rows, end_ns)
        if answer is None:
            raise PolicyError(
                f"the policy server at {self._address} did not answer within {self._answer_timeout_s:g} s. "
                "This answer is lost."
            )
        return answer

    def _chunk(self, answer: Message, sent_ns: int) -> ActionChunk:
        """Return the answer's chunk, with the time on the wire added to the server's stages."""
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
        """Return the chunk if it answers this observation; raise PolicyError otherwise."""
        if (chunk.stamp_ns, chunk.step) != (observation.stamp_ns, observation.step):
            raise PolicyError(f"the policy server at {self._address} answered another observation.")
        return chunk
