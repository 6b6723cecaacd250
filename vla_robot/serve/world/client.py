"""A world behind a socket that looks like any other world."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Self

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.seeds import require_seed
from vla_robot.safety.limits import require_action
from vla_robot.serve.world.server import PROTOCOL, UNNUMBERED
from vla_robot.transport.codec import (
    MessageReader,
    unpack_embodiment,
    unpack_error,
    unpack_observation,
    unpack_step_result,
)
from vla_robot.transport.sockets import ClientSocket
from vla_robot.transport.wire import Message, decode, encode

CONNECT_TIMEOUT_S = 10.0
RESET_TIMEOUT_S = 60.0
"""robosuite's first reset builds shaders and takes seconds on a slow computer."""
STEP_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 0.5


class RemoteWorld:
    """The World port over ZeroMQ. Errors of the world are raised here as they were there."""

    def __init__(
        self,
        address: str,
        *,
        check_peer: Callable[[], None] = lambda: None,
        reset_timeout_s: float = RESET_TIMEOUT_S,
        step_timeout_s: float = STEP_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """Connect and learn what world it is.

        Args:
            address: where a WorldServer listens, e.g. "tcp://127.0.0.1:5555".
            check_peer: called while waiting; raises when it knows that no answer will come.
            reset_timeout_s: how long a reset may take.
            step_timeout_s: how long a step may take.
            connect_timeout_s: how long the server may take to answer the first request.
            clock: times the stages.

        Raises:
            TransportError: no answer came in time, or the server speaks another version or has a client already.
        """
        self._address = address
        self._check_peer = check_peer
        self._reset_timeout_s = reset_timeout_s
        self._step_timeout_s = step_timeout_s
        self._clock = clock or MonotonicClock()
        self._seq = UNNUMBERED
        self._unsure = False
        self._stages_ms: dict[str, float] = {}
        self._socket: ClientSocket | None = ClientSocket(address)
        try:
            answer = self._request("hello", {"protocol": PROTOCOL}, connect_timeout_s)
            self._embodiment = unpack_embodiment(answer.table("embodiment"))
            self._instruction = answer.text("instruction")
        except BaseException:
            self._disconnect()
            raise

    @property
    def embodiment(self) -> Embodiment:
        return self._embodiment

    @property
    def instruction(self) -> str:
        return self._instruction

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        """Where the last reset or step spent its time, in milliseconds.

        transport_out, world_step, render and transport_back follow each other; a reset has the last two only. They
        are right when both sides share a clock, as processes of one computer do.
        """
        return self._stages_ms

    def reset(self, seed: int) -> Observation:
        answer = self._request("reset", {"seed": require_seed(seed)}, self._reset_timeout_s)
        observation = self._checked(unpack_observation(answer.table("observation")))
        self._unsure = False
        self._instruction = observation.instruction  # a task may draw one for each episode
        self._stages_ms = self._way_back_ms(observation, answer.integer("returned_ns"))
        return observation

    def step(self, action: Vector) -> StepResult:
        """One control step.

        Raises:
            ContractError: wrong shape, or a number that is not finite. Nothing moved.
            TransportError: no answer in time. Whether the world moved is unknown: `reset` before the next step.
        """
        if self._unsure:
            raise TransportError(
                "an earlier step got no answer, so it is unknown whether the world moved. "
                "Reset it before the next step."
            )
        values = require_action(action, self._embodiment.action)
        sent_ns = self._clock.now_ns()
        self._unsure = True
        message = self._exchange("step", {"action": values}, self._step_timeout_s)
        self._unsure = False
        answer = _result(message, "step")
        result = unpack_step_result(answer.table("result"))
        observation = self._checked(result.observation)
        self._stages_ms = {
            "transport_out": (result.command_ns - sent_ns) / NS_PER_MS,
            "world_step": (observation.stamp_ns - result.command_ns) / NS_PER_MS,
            **self._way_back_ms(observation, answer.integer("returned_ns")),
        }
        return result

    def close(self) -> None:
        """Let another client have the world."""
        if self._socket is None:
            return
        # A server that is busy or gone need not hold us up: it notices that the connection has ended.
        with contextlib.suppress(TransportError):
            self._request("close", {}, CLOSE_TIMEOUT_S)
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, kind: str, body: Mapping[str, Any], timeout_s: float) -> MessageReader:
        """The body of the answer. Raises what the server reports, or TransportError when it does not answer."""
        return _result(self._exchange(kind, body, timeout_s), kind)

    def _exchange(self, kind: str, body: Mapping[str, Any], timeout_s: float) -> Message:
        """Whatever the server answers."""
        if self._socket is None:
            raise TransportError("the connection to the world was closed; connect again.")
        self._seq += 1
        self._socket.send(encode(Message(kind, self._seq, body)))
        return self._await_answer(self._socket, kind, timeout_s)

    def _await_answer(self, socket: ClientSocket, kind: str, timeout_s: float) -> Message:
        deadline_ns = self._clock.now_ns() + round(timeout_s * NS_PER_S)
        while self._clock.now_ns() < deadline_ns:
            frames = socket.receive()
            if frames is None:
                self._check_peer()
                continue
            answer = decode(frames)
            # Anything else is a late answer to a request that was given up, or the server's probe.
            if answer.seq == self._seq or (answer.seq == UNNUMBERED and answer.kind == "error"):
                return answer
        raise TransportError(
            f"the world at {self._address} did not answer '{kind}' within {timeout_s:g} s. "
            "Is its server running there, and is the computer not overloaded?"
        )

    def _checked(self, observation: Observation) -> Observation:
        self._embodiment.check(observation)
        return observation

    def _way_back_ms(self, observation: Observation, returned_ns: int) -> dict[str, float]:
        return {
            "render": (returned_ns - observation.stamp_ns) / NS_PER_MS,
            "transport_back": (self._clock.now_ns() - returned_ns) / NS_PER_MS,
        }

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _result(answer: Message, kind: str) -> MessageReader:
    reader = MessageReader(answer.body, f"answer to {kind}")
    if answer.kind == "error":
        raise unpack_error(reader)
    return reader
