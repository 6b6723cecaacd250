"""Client of a world server, as a World."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from vla_robot.core.clock import NS_PER_MS, Clock, MonotonicClock
from vla_robot.core.errors import TransportError
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.seeds import require_seed
from vla_robot.safety.limits import require_action
from vla_robot.serve.requests import Requests
from vla_robot.serve.world.server import PROTOCOL
from vla_robot.transport.codec import (
    MessageReader,
    read_answer,
    unpack_embodiment,
    unpack_observation,
    unpack_step_result,
)
from vla_robot.transport.wire import UNNUMBERED, Message

CONNECT_TIMEOUT_S = 10.0
RESET_TIMEOUT_S = 60.0
"""Time limit of a reset [s]: robosuite's first one builds shaders and takes seconds on a slow computer."""
STEP_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 0.5


class RemoteWorld(Closeable):
    """World over ZeroMQ. Errors of the served world are raised here with the same type."""

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
        """Connect and get the world's embodiment and instruction.

        Args:
            address: address of a WorldServer, e.g. "tcp://127.0.0.1:5555".
            check_peer: called while waiting; raises an error when no answer can come.
            reset_timeout_s: time limit of a reset.
            step_timeout_s: time limit of a step.
            connect_timeout_s: time limit of the first answer.
            clock: measures the stages.

        Raises:
            TransportError: no answer came in time, or the server speaks another version or has a client already.
        """
        self._address = address
        self._check_peer = check_peer
        self._reset_timeout_s = reset_timeout_s
        self._step_timeout_s = step_timeout_s
        self._clock = clock or MonotonicClock()
        self._unsure = False
        self._stages_ms: dict[str, float] = {}
        self._requests = Requests(address, self._clock)
        try:
            answer = self._request("hello", {"protocol": PROTOCOL}, connect_timeout_s)
            self.embodiment = unpack_embodiment(answer.table("embodiment"))
            self.instruction = answer.text("instruction")
        except BaseException:
            self._requests.close()
            raise

    @property
    def last_stages_ms(self) -> Mapping[str, float]:
        """Times of the last reset or step [ms].

        transport_out, world_step, render and transport_back are consecutive; a reset has only the last two. They
        are valid if both sides share a clock, as processes of one computer do.
        """
        return self._stages_ms

    def reset(self, seed: int) -> Observation:
        answer = self._request("reset", {"seed": require_seed(seed)}, self._reset_timeout_s)
        observation = self._checked(unpack_observation(answer.table("observation")))
        self._unsure = False
        self.instruction = observation.instruction  # a task may draw one for each episode
        self._stages_ms = self._way_back_ms(observation, answer.integer("returned_ns"))
        return observation

    def step(self, action: Vector) -> StepResult:
        """Execute one control step.

        Raises:
            ContractError: the action has a wrong shape or a number that is not finite. The world did not move.
            TransportError: no answer came in time. Whether the world moved is unknown: `reset` before the next step.
        """
        return self._stepped(action, frames=True)

    def step_without_frames(self, action: Vector) -> StepResult:
        return self._stepped(action, frames=False)

    def close(self) -> None:
        """Disconnect, so that another client can have the world."""
        # A server that is busy or gone is not waited for: it notices that the connection ended.
        with contextlib.suppress(TransportError):
            self._request("close", {}, CLOSE_TIMEOUT_S)
        self._requests.close()

    def _stepped(self, action: Vector, frames: bool) -> StepResult:
        if self._unsure:
            raise TransportError(
                "an earlier step got no answer, so it is unknown whether the world moved. "
                "Reset it before the next step."
            )
        values = require_action(action, self.embodiment.action)
        sent_ns = self._clock.now_ns()
        self._unsure = True
        message = self._exchange("step", {"action": values, "frames": frames}, self._step_timeout_s)
        self._unsure = False
        answer = read_answer(message, "step")
        result = unpack_step_result(answer.table("result"))
        observation = self._checked(result.observation, frames)
        self._stages_ms = {
            "transport_out": (result.command_ns - sent_ns) / NS_PER_MS,
            "world_step": (observation.stamp_ns - result.command_ns) / NS_PER_MS,
            **self._way_back_ms(observation, answer.integer("returned_ns")),
        }
        return result

    def _request(self, kind: str, body: Mapping[str, Any], timeout_s: float) -> MessageReader:
        """Send a request and return the answer's body. Raises the server's error, or TransportError for no answer."""
        return read_answer(self._exchange(kind, body, timeout_s), kind)

    def _exchange(self, kind: str, body: Mapping[str, Any], timeout_s: float) -> Message:
        """Send a request and return the answer, which may be an error."""
        seq = self._requests.post(kind, body)

        def is_answer(message: Message) -> bool:
            return message.seq == seq or (message.seq == UNNUMBERED and message.kind == "error")  # and not its probe

        answer = self._requests.wait(is_answer, self._requests.ends_ns(timeout_s), self._check_peer)
        if answer is not None:
            return answer
        raise TransportError(
            f"the world at {self._address} did not answer '{kind}' within {timeout_s:g} s. "
            "Check that its server runs there, and that the computer is not overloaded."
        )

    def _checked(self, observation: Observation, frames: bool = True) -> Observation:
        if frames or observation.images:
            self.embodiment.check(observation)
        else:
            self.embodiment.check_state(observation)
        return observation

    def _way_back_ms(self, observation: Observation, returned_ns: int) -> dict[str, float]:
        return {
            "render": (returned_ns - observation.stamp_ns) / NS_PER_MS,
            "transport_back": (self._clock.now_ns() - returned_ns) / NS_PER_MS,
        }
