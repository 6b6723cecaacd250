"""A REP server that speaks GR00T's protocol as its generation does, and the recipe of a client of each."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import zmq

from vla_robot.recipe.peer import GrootPeerRecipe, PeerImageRecipe, PeerNumbersRecipe
from vla_robot.serve.interop.groot_policy import Generation
from vla_robot.serve.interop.groot_wire import unpack
from vla_robot.testing import toy_embodiment

ARM = toy_embodiment()
FLAT = GrootPeerRecipe(
    rate_hz=10.0,
    images=(PeerImageRecipe("video.front", "front"),),
    state=(PeerNumbersRecipe("state.arm", ("x",)),),
    action=(PeerNumbersRecipe("action.arm", ("dx",), scale=(0.05,)), PeerNumbersRecipe("action.grip", ("gripper",))),
    prompt="annotation.human.task_description",
    generation="n1.5",
)
NESTED = replace(
    FLAT,
    action=(PeerNumbersRecipe("arm", ("dx",), scale=(0.05,)), PeerNumbersRecipe("grip", ("gripper",))),
    prompt="language.annotation.human.task_description",
    generation="n1.7",
)
PEERS: dict[Generation, GrootPeerRecipe] = {"n1.5": FLAT, "n1.6": replace(NESTED, generation="n1.6"), "n1.7": NESTED}
KEYS = {
    "video": ["front"],
    "state": ["arm"],
    "action": ["arm", "grip"],
    "language": ["annotation.human.task_description"],
}


class GrootServer:
    """Answers as the servers of that generation do, packing with their code's own layout.

    `get_action`, when given, is asked instead: it gives an answer, raw bytes, or None to stay silent.
    """

    def __init__(
        self,
        generation: Generation,
        port: int = 0,
        keys: Mapping[str, list[str]] = KEYS,
        history: int = 1,
        token: str | None = None,
        get_action: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> None:
        self._generation = generation
        self._keys = keys
        self._history = history
        self._token = token
        self._get_action = get_action or (lambda _: self._ahead())
        self.requests: list[Mapping[str, Any]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.address.rpartition(":")[2])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def asked(self, endpoint: str) -> list[Mapping[str, Any]]:
        return [request for request in self.requests if request["endpoint"] == endpoint]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(10):
                request = unpack(self._socket.recv())
                self.requests.append(request)
                answer = self._answer(request)
                while answer is None and not self._stop.is_set():
                    self._stop.wait(0.01)  # a REP that does not answer cannot go on either
                if answer is not None:
                    self._socket.send(
                        answer if isinstance(answer, bytes) else msgpack.packb(answer, default=self._pack)
                    )

    def _answer(self, request: Mapping[str, Any]) -> Any:
        if request.get("api_token") != self._token:
            return {"error": "Unauthorized: Invalid API token"}
        endpoints: dict[str, Callable[[], Any]] = {
            "ping": lambda: {"status": "ok", "message": "Server is running"},
            "get_modality_config": self._config,
            "reset": lambda: {},
            "get_action": lambda: self._get_action(request["data"]),
        }
        return endpoints[request["endpoint"]]()

    def _ahead(self) -> Any:
        arm, grip = np.full((3, 1), 0.4, np.float32), np.ones((3, 1), np.float32)
        if self._generation == "n1.5":
            return {"action.arm": arm, "action.grip": grip[:, 0]}
        return [{"arm": arm[None], "grip": grip[None]}, {"info": None}]

    def _config(self) -> Any:
        flat = self._generation == "n1.5"
        mark = "__ModalityConfig__" if self._generation == "n1.7" else "__ModalityConfig_class__"

        def entry(modality: str, keys: list[str]) -> Any:
            names = [f"{modality}.{key}" if flat and modality != "language" else key for key in keys]
            config = {"delta_indices": list(range(self._history)), "modality_keys": names}
            return {mark: True, "as_json": json.dumps(config) if flat else config}

        return {modality: entry(modality, keys) for modality, keys in self._keys.items()}

    def _pack(self, array: np.ndarray) -> Any:
        if self._generation == "n1.7":
            return {
                b"nd": True,
                b"type": array.dtype.str,
                b"kind": b"",
                b"shape": array.shape,
                b"data": array.tobytes(),
            }
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
