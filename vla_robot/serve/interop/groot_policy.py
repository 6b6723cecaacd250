"""Client of GR00T's ZeroMQ protocol, as a Policy.

    request   {endpoint, data, api_token}     answer   the endpoint's result, or {error: text}

    N1.5      get_action {video.cam: (1, H, W, 3), state.arm: (1, N), ..}        {action.arm: (T, N)}
    N1.6 on   get_action {observation: {video: {cam: (1, 1, H, W, 3)}, ..}}      [{arm: (1, T, N)}, info]

The server's socket is a REP. Ours is a DEALER that numbers its requests in the envelope, which a REP sends back.
Unlike the REQ of GR00T's own client, it can continue after an unanswered request, and recognises a late answer.

Source: Isaac-GR00T, gr00t/eval/service.py (N1.5), gr00t/policy/server_client.py and gr00t_policy.py (N1.6, N1.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock
from vla_robot.core.errors import ContractError, PolicyError, TransportError, VlaError, unknown
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.serve.interop.groot_wire import Dialect, pack, unpack
from vla_robot.serve.interop.mapping import PeerMapping, Timeouts, nested
from vla_robot.serve.interop.msgpack_safe import not_this_computers
from vla_robot.transport.sockets import ClientSocket, is_loopback, require_address

Generation = Literal["n1.5", "n1.6", "n1.7"]

DIALECTS: dict[Generation, Dialect] = {"n1.5": "npy", "n1.6": "npy", "n1.7": "msgpack_numpy"}

MAX_REASON_CHARS = 300

MODALITIES = ("video", "state", "language")
"""Modalities of a request; a server needs all of them."""


class GrootPolicy(Closeable):
    """Policy over ZeroMQ, on a server of GR00T."""

    def __init__(
        self,
        address: str,
        mapping: PeerMapping,
        generation: Generation,
        *,
        prompt: str,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connect, and compare the server's modalities with the recipe's.

        Args:
            address: e.g. "tcp://127.0.0.1:5555".
            mapping: the server's names and units. From N1.6 on, a key "video.cam" is sent as entry "cam" of "video".
            generation: generation of the server.
            prompt: its key of the instruction, e.g. "annotation.human.task_description" (N1.5) or
                "language.annotation.human.task_description".
            token: API token sent with every request; None without.
            timeouts: time limits of its answers.
            clock: measures the stages.

        Raises:
            TransportError: no server answers there, or the address is another computer's.
            ContractError: the server was trained with other cameras, state or actions than the recipe names.
        """
        _require_loopback(address)
        self._address = address
        self._mapping = mapping
        self._is_flat = generation == "n1.5"
        self._dialect: Dialect = DIALECTS[generation]
        self._prompt = prompt
        self._token = token
        self._timeouts = timeouts or Timeouts()
        self._clock = clock or MonotonicClock()
        self._number = 0
        self._socket: ClientSocket | None = ClientSocket(address)
        try:
            self._ask("ping")
            self._check_modalities(self._ask("get_modality_config"))
        except PolicyError as error:
            self.close()
            raise TransportError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> None:
        """Check that the server answers; from N1.6 on, tell it that an episode begins.

        Raises:
            TransportError: no answer came in time.
        """
        try:
            if self._is_flat:
                self._ask("ping")
            else:
                self._ask("reset", {"options": None})
        except PolicyError as error:
            raise TransportError(str(error)) from error

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, requested one after the other.

        Raises:
            PolicyError: the server reports an error, or does not answer in time.
        """
        return [self._act(observation) for observation in observations]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _act(self, observation: Observation) -> ActionChunk:
        sent_ns = self._clock.now_ns()
        answer = self._ask("get_action", self._request(observation), self._timeouts.answer_s)
        total_ms = (self._clock.now_ns() - sent_ns) / NS_PER_MS
        return self._mapping.chunk(self._actions(answer), observation, {"server": total_ms})

    def _request(self, observation: Observation) -> dict[str, Any]:
        images, state = self._mapping.images(observation), self._mapping.state(observation)
        if self._is_flat:
            flat = {key: value[None] for key, value in {**images, **state}.items()}
            return {**flat, self._prompt: [observation.instruction]}
        video = {key: frame[None, None] for key, frame in images.items()}
        numbers = {key: row.astype(np.float32)[None, None] for key, row in state.items()}
        entries = nested({**video, **numbers, self._prompt: [[observation.instruction]]})
        return {"observation": {**{modality: {} for modality in MODALITIES}, **entries}, "options": None}

    def _actions(self, answer: Any) -> dict[str, Any]:
        """Return the answer's actions: key -> (T, N); from N1.6 on from (1, T, N)."""
        actions = answer
        if not self._is_flat:
            actions = answer[0] if isinstance(answer, list) and answer else None
        if not isinstance(actions, dict):
            raise PolicyError(f"the GR00T server at {self._address} sent an answer without a map of actions.")
        if self._is_flat:
            return actions
        return {
            key: value[0] if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == 1 else value
            for key, value in actions.items()
        }

    def _ask(self, endpoint: str, data: Mapping[str, Any] | None = None, timeout_s: float | None = None) -> Any:
        """Return the endpoint's result.

        Raises:
            PolicyError: the server reports an error, or does not answer in time.
        """
        timeout_s = self._timeouts.connect_s if timeout_s is None else timeout_s
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if self._token is not None:
            request["api_token"] = self._token
        try:
            answer = self._exchange(pack(request, self._dialect), timeout_s)
        except VlaError as error:
            raise PolicyError(f"the GR00T server at {self._address} failed: {error}") from error
        if isinstance(answer, dict) and "error" in answer:
            raise PolicyError(
                f"the GR00T server at {self._address} says of '{endpoint}': {str(answer['error'])[:MAX_REASON_CHARS]}"
            )
        return answer

    def _exchange(self, request: bytes, timeout_s: float) -> Any:
        if self._socket is None:
            raise TransportError("the connection is closed.")
        self._number += 1
        envelope = self._number.to_bytes(8, "big")
        self._socket.send([envelope, b"", request])
        deadline_ns = self._clock.now_ns() + round(timeout_s * NS_PER_S)
        while self._clock.now_ns() < deadline_ns:
            frames = self._socket.receive()
            if frames is not None and len(frames) == 3 and bytes(frames[0]) == envelope:
                return _read(bytes(frames[2]))
        raise TransportError(
            f"it did not answer within {timeout_s:g} s. Start it there, e.g. gr00t/eval/run_gr00t_server.py, or change "
            "'address' in the recipe."
        )

    def _check_modalities(self, config: Any) -> None:
        """Raise ContractError unless the recipe names all of the server's inputs, and only outputs that it gives."""
        if not isinstance(config, dict):
            raise TransportError(f"the GR00T server at {self._address} does not describe its modalities.")
        sent = [*self._mapping.sent_keys, self._prompt]
        wanted = [key for modality in MODALITIES for key in self._keys(config, modality)]
        problems = [unknown("key", key, wanted).rstrip(".") for key in sent if key not in wanted]
        problems += [f"nothing is sent as '{key}'" for key in wanted if key not in sent]
        given = self._keys(config, "action", "action." if self._is_flat else "")
        problems += [unknown("action", k, given).rstrip(".") for k in self._mapping.action_keys if k not in given]
        problems += [
            f"it wants {steps} moments of {modality}, and only the newest is sent"
            for modality in MODALITIES
            if (steps := len(_listed(config, modality, "delta_indices"))) > 1
        ]
        if problems:
            raise ContractError(f"the recipe does not fit the GR00T server at {self._address}: {'; '.join(problems)}.")

    def _keys(self, config: Mapping[str, Any], modality: str, prefix: str | None = None) -> list[str]:
        """Return the server's keys of one modality, as a recipe names them."""
        start = f"{modality}." if prefix is None else prefix
        keys = [str(key)[:80] for key in _listed(config, modality, "modality_keys")]
        if self._is_flat and modality == "language":
            return keys
        return [key if key.startswith(f"{modality}.") else start + key for key in keys]


def _listed(config: Mapping[str, Any], modality: str, field: str) -> list[Any]:
    table = config.get(modality)
    values = table.get(field) if isinstance(table, dict) else None
    return values if isinstance(values, list) else []


def _read(data: bytes) -> Any:
    if data == b"ERROR":
        raise TransportError("it answered ERROR without a reason; see its log.")
    return unpack(data)


def _require_loopback(address: str) -> None:
    require_address(address, keys=True)
    if not is_loopback(address):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        raise not_this_computers(address, "GR00T", host, port)
