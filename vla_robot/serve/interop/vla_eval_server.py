"""Serves our policies to vla-eval, the evaluation harness of AllenAI, over its WebSocket protocol.

    vla-eval  hello             ours  hello: versions, and the observations that the policy needs
    vla-eval  episode_start     no answer; the next action begins a new chunk
    vla-eval  observation       ours  action: one action; of a chunk, the next ones answer the next observations
    vla-eval  episode_end       no answer
                                ours  error: the observation has no action; the connection stays

Each connection is an episode after the other. Observations of several connections share a batch. `GET /health` answers
that the policy is ready.

    {"images": {"agentview": (H, W, 3) uint8, "wrist": ..}, "states": (8,), "task_description": text}
    {"actions": (7,) float32}

Source: vla-eval 0.8.0, vla_eval/connection.py, model_servers/serve.py and benchmarks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import TransportError, VlaError
from vla_robot.core.image import turned_back
from vla_robot.recipe.peer import PeerRecipe
from vla_robot.serve.interop.openpi_schema import PROMPT, ExampleWords, RecipeWords, Words
from vla_robot.serve.interop.vla_eval_wire import EvalMessage, pack, unpack
from vla_robot.serve.interop.websocket_server import Protocol, WebSocketServer
from vla_robot.serve.policy.batcher import Batcher

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

HARNESS_VERSION, PROTOCOL_VERSION = "0.8.0", 1
"""Version of vla-eval whose protocol this is, and of the protocol."""

TASK = "task_description"
STATES = ("states", "state")
"""Keys of an observation: the instruction, and the state, which some benchmarks call by its other name."""

LIBERO = {
    "observation/image": "images.agentview",
    "observation/wrist_image": "images.wrist",
    "observation/state": "states",
}
"""openpi's key -> vla-eval's, for a recipe of openpi's LIBERO: the numbers are the same."""

Rows = dict[str, NDArray[np.float64]]
"""Key -> (T, N) numbers of consecutive actions."""

_LOG = logging.getLogger(__name__)


class EvalSchema:
    """Converts vla-eval's observations to a policy's, and chunks to its actions."""

    def __init__(
        self,
        cameras: Sequence[str],
        embodiment: Embodiment | None,
        peer: PeerRecipe | None = None,
        mirror: bool = False,
    ) -> None:
        """
        Args:
            cameras: the policy's cameras, in its order; empty for a published checkpoint, which names none and has one.
            embodiment: the policy's; None if unknown.
            peer: the benchmark's names and units; None for the policy's own.
            mirror: whether the policy's recipe mirrors frames. The benchmark LIBERO sends mirrored ones already.

        Raises:
            ContractError: the recipe does not fit the policy.
        """
        self._cameras = tuple(cameras) or ("image",)
        self._embodiment = embodiment
        self._peer = peer
        self._mirror = mirror and peer is None  # a recipe says itself what its frames are
        words: Words = ExampleWords(self._cameras, embodiment)
        if peer is not None:
            assert embodiment is not None  # the command refuses a recipe without it
            words = RecipeWords(peer, embodiment)
        self._words = words

    def hello(self) -> dict[str, Any]:
        """Return what the server says of itself: versions, and options of a benchmark that send what is needed."""
        wants = {"send_wrist_image": len(self._cameras) > 1, "send_state": self._reads_state}
        said: dict[str, Any] = {
            "harness_version": HARNESS_VERSION,
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "vla_robot",
            "capabilities": {},
            "observation_params": {key: True for key, wanted in wants.items() if wanted},
        }
        if self._peer is None and self._embodiment is not None:
            # No benchmark has this key: vla-eval warns that the units differ, unless a recipe converts them.
            names = " ".join(f"{dim.name}[{dim.unit}]" for dim in self._embodiment.action.dims)
            said["action_spec"] = {"vla_robot": {"name": "vla_robot", "dims": len(names.split()), "format": names}}
        return said

    def ask(self, payload: Mapping[str, Any], batcher: Batcher, client: object) -> Rows:
        """Return the actions of one observation.

        Raises:
            VlaError: an entry is missing or wrong, or the policy has no action.
        """
        observation = self._words.read(self._request(payload))
        images = {name: turned_back(image, 0, self._mirror) for name, image in observation.images.items()}
        observation = replace(observation, images=images)
        chunk = batcher.ask(observation, client=client)
        return {key: numbers[: chunk.rows] for key, numbers in self._words.write(chunk).items()}

    @property
    def _reads_state(self) -> bool:
        return bool(self._embodiment and self._embodiment.state)

    def _request(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return an observation with the keys of the words: a recipe's, or the policy's own names."""
        images = payload.get("images")
        if not isinstance(images, Mapping):
            raise TransportError("an observation of vla-eval has a map 'images'; this one has none.")
        if self._peer is None:
            return self._own_names(payload, images)
        theirs = {f"images.{name}": image for name, image in images.items()} | dict(payload)
        keys = [entry.key for entry in (*self._peer.images, *self._peer.state)]
        found = {key: theirs[name] for key in keys if (name := LIBERO.get(key, key)) in theirs}
        return found | {self._peer.prompt: payload.get(TASK)}

    def _own_names(self, payload: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
        """Take cameras by the policy's names if the benchmark has them, and else in the benchmark's order."""
        names = self._cameras if set(self._cameras) <= set(images) else tuple(images)
        if len(names) < len(self._cameras):
            raise TransportError(
                f"the policy has the cameras {', '.join(self._cameras)}, but the benchmark sends "
                f"{', '.join(map(str, images)) or 'none'}."
            )
        request = {camera: images[name] for camera, name in zip(self._cameras, names, strict=False)}
        state = next((payload[key] for key in STATES if key in payload), None)
        if state is not None and self._reads_state:
            request["state"] = state
        return request | {PROMPT: payload.get(TASK)}


class EvalServer(WebSocketServer):
    """Serves a batcher to vla-eval, with one thread per connection."""

    def __init__(self, batcher: Batcher, schema: EvalSchema, port: int) -> None:
        """
        Args:
            batcher: answers the observations.
            schema: converts observations and actions.
            port: on the loopback interface; 0 means any free one.

        Raises:
            TransportError: the port is taken.
            MissingDependencyError: the package websockets is not installed.
        """
        self._batcher = batcher
        self._schema = schema
        ready = '{"status": "ok"}\n'
        super().__init__(Protocol("vla-eval", "--vla-eval", self._answer_all, _farewell, "/health", ready), port)

    def _answer_all(self, connection: ServerConnection) -> None:
        episode = _Episode(self._schema, self._batcher, connection)
        while True:
            frame = connection.recv()
            if not isinstance(frame, bytes):
                raise TransportError("a message of vla-eval is a binary frame of msgpack, got text.")
            answer = episode.answer(unpack(frame))
            if answer is not None:
                connection.send(answer)


class _Episode:
    """One connection: the actions of a chunk that are still due."""

    def __init__(self, schema: EvalSchema, batcher: Batcher, client: object) -> None:
        self._schema, self._batcher, self._client = schema, batcher, client
        self._due: list[dict[str, NDArray[np.float32]]] = []

    def answer(self, message: EvalMessage) -> bytes | None:
        """Return the answer to a message; None if it gets none."""
        match message.type:
            case "hello":
                return pack("hello", self._schema.hello(), message.seq)
            case "observation":
                return self._act(message)
            case "episode_start" | "episode_end":
                self._due.clear()
            case "error":
                _LOG.warning("vla-eval reports: %.500s", message.payload)
            case other:
                return pack("error", {"error": f"unknown type of message {other[:40]!r}"}, message.seq)
        return None

    def _act(self, message: EvalMessage) -> bytes:
        try:
            if not self._due:
                rows = self._schema.ask(message.payload, self._batcher, self._client)
                singles = zip(*(numbers.astype(np.float32) for numbers in rows.values()), strict=True)
                self._due = [dict(zip(rows, numbers, strict=True)) for numbers in singles]
            return pack("action", self._due.pop(0), message.seq)
        except VlaError as error:
            _LOG.warning("vla-eval client: %s", error)
            return pack("error", {"error": f"observation_failed: {error}"}, message.seq)


def _farewell(reason: str) -> bytes:
    return pack("error", {"error": reason}, 0)
