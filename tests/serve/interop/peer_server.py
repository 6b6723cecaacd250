"""A server that speaks openpi's protocol as documented, and the recipe of a client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from vla_robot.recipe.peer import PeerImageRecipe, PeerNumbersRecipe, PeerRecipe
from vla_robot.serve.interop.openpi_wire import pack, unpack
from vla_robot.testing import toy_embodiment

ARM = toy_embodiment()
PEER = PeerRecipe(
    rate_hz=10.0,
    images=(PeerImageRecipe("observation/image", "front", size_px=224),),
    state=(PeerNumbersRecipe("observation/state", ("x",), scale=(1000.0,)),),
    action=(PeerNumbersRecipe("actions", ("dx", "gripper"), scale=(0.05, -0.5), offset=(0.0, 0.5)),),
)
AHEAD = {"actions": np.array([[0.4, -1.0]] * 3, np.float32)}

Infer = Callable[[Mapping[str, Any]], Mapping[str, Any] | str | None]


class PeerServer:
    """One that answers each observation with what `infer` gives: a map, the text of an error, or nothing at all."""

    def __init__(self, infer: Infer, port: int = 0, metadata: bytes = pack({"reset_pose": [0.0]})) -> None:
        self._infer = infer
        self._metadata = metadata
        self.connections = 0
        self.headers: list[str] = []
        self._server: Server = serve(self._serve, "127.0.0.1", port, compression=None, max_size=None)
        self.port = self._server.socket.getsockname()[1]
        self.address = f"ws://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _serve(self, connection: ServerConnection) -> None:
        self.connections += 1
        assert connection.request is not None
        self.headers.append(connection.request.headers.get("Authorization", ""))
        connection.send(self._metadata)
        with suppress(ConnectionClosed):
            while True:
                data = connection.recv()
                assert isinstance(data, bytes)
                answer = self._infer(unpack(data))
                if isinstance(answer, str):
                    connection.send(answer)
                    connection.close(1011, "Internal server error. Traceback included in previous frame.")
                elif answer is not None:
                    connection.send(pack(answer))
