"""Our policies over openpi's WebSocket protocol, so that its clients work unchanged. `OpenpiPolicy` is another client.

    ours      metadata          at once after the connection is made: what the actions and the cameras are
    client    observation       one binary frame, in the words of openpi's LIBERO, DROID, ALOHA or UR5 examples, or ours
    ours      {actions, policy_timing, server_timing}; or a text frame with the reason, and then the connection ends

Images are (H, W, 3) or (3, H, W), uint8 or floats from 0 to 1. Actions are those of the policy's own space, in metres,
radians and 1 for an open gripper; the metadata names them. What the policy has no camera for is passed over, as openpi
does. `GET /healthz` says OK. Only this computer can connect, and no web page: the protocol has no keys, so an SSH
tunnel goes between computers.

Source: openpi @15a9616, src/openpi/serving/websocket_policy_server.py and src/openpi/policies.
"""

from __future__ import annotations

import http
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, TransportError, VlaError, unknown
from vla_robot.core.image import check_image
from vla_robot.core.messages import ActionChunk, Image, Observation, Vector
from vla_robot.core.optional import require
from vla_robot.serve.batcher import Batcher
from vla_robot.serve.openpi_wire import pack, unpack
from vla_robot.serve.peer_wire import MAX_MESSAGE_BYTES, limit_sending

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import ServerConnection

HOST = "127.0.0.1"
MAX_CONNECTIONS = 64
SEND_TIMEOUT_S, CLOSE_TIMEOUT_S = 10.0, 1.0

TRY_LATER, INTERNAL_ERROR = 1013, 1011
"""WebSocket close codes."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """What one family of openpi's robots calls things.

    Attributes:
        images: the camera that looks at the scene, then those on the wrists; "images.cam_high" is an entry of a map.
        state: parts of the state, in order.
    """

    images: tuple[str, ...]
    state: tuple[str, ...]


LIBERO = Words(("observation/image", "observation/wrist_image"), ("observation/state",))
DROID = Words(
    ("observation/exterior_image_1_left", "observation/wrist_image_left"),
    ("observation/joint_position", "observation/gripper_position"),
)
ALOHA = Words(("images.cam_high", "images.cam_left_wrist", "images.cam_right_wrist", "images.cam_low"), ("state",))
UR5 = Words(("base_rgb", "wrist_rgb"), ("joints", "gripper"))
FAMILIES = (LIBERO, DROID, ALOHA, UR5)
PROMPT = "prompt"


class OpenpiServer:
    """Serves a batcher over WebSockets, with a thread for each connection."""

    def __init__(
        self, batcher: Batcher, name: str, cameras: Sequence[str], embodiment: Embodiment | None, port: int
    ) -> None:
        """
        Args:
            batcher: answers.
            name: of the policy.
            cameras: the policy's own, in its order; empty for a published checkpoint, which names none and has one.
            embodiment: what the policy was trained to drive, for the metadata.
            port: on the loopback interface; 0 means any free one.

        Raises:
            TransportError: the port is taken.
            MissingDependencyError: the package websockets is not installed.
        """
        require("websockets", "serve", "answering openpi's clients")
        from websockets.sync.server import serve

        self._batcher = batcher
        self._cameras = cameras or ("image",)
        self._metadata = pack(metadata(name, self._cameras, embodiment))
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            self._server = serve(
                self._talk,
                HOST,
                port,
                # A page in this computer's browser could connect as well; only browsers name an origin.
                origins=[None],
                process_request=_health,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                close_timeout=CLOSE_TIMEOUT_S,
            )
        except OSError as error:
            raise TransportError(
                f"cannot listen on {HOST}:{port}: {error.strerror}. Choose another --openpi."
            ) from error
        self.url = f"ws://{HOST}:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="openpi", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody. An answer that is being made is waited for."""
        self._server.shutdown()
        self._thread.join()

    def _talk(self, connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        if not self._room.acquire(blocking=False):
            connection.close(TRY_LATER, f"{MAX_CONNECTIONS} clients are connected already")
            return
        try:
            limit_sending(connection.socket, SEND_TIMEOUT_S)
            self._answer_all(connection)
        except ConnectionClosed:
            return
        except VlaError as error:
            _LOG.warning("openpi client: %s", error)
            _hang_up(connection, str(error))
        finally:
            self._room.release()

    def _answer_all(self, connection: ServerConnection) -> None:
        connection.send(self._metadata)
        timing: dict[str, float] = {}
        while True:
            frame = connection.recv()
            began_ns = time.monotonic_ns()
            if not isinstance(frame, bytes):
                raise TransportError("an observation is a binary frame of msgpack, and text came.")
            observation = read_observation(unpack(frame), self._cameras)
            chunk = self._batcher.ask(observation, client=connection)
            timing["infer_ms"] = _since_ms(began_ns)
            connection.send(pack(_answer(chunk, timing)))
            timing["prev_total_ms"] = _since_ms(began_ns)


def metadata(name: str, cameras: Sequence[str], embodiment: Embodiment | None) -> dict[str, Any]:
    """What a client is told first; the protocol prescribes nothing."""
    known: dict[str, Any] = {"server": "vla_robot", "policy": name, "cameras": list(cameras)}
    if embodiment is not None:
        known["rate_hz"] = embodiment.rate_hz
        known["action"] = [{"name": d.name, "unit": d.unit} for d in embodiment.action.dims]
        known["state"] = [{"name": d.name, "unit": d.unit} for d in embodiment.state]
    return known


def read_observation(request: Mapping[str, Any], cameras: Sequence[str]) -> Observation:
    """A client's observation, with the cameras named as the policy names them.

    Args:
        request: in the words of one of FAMILIES, or with the policy's own names of cameras and a "state".
        cameras: the policy's.

    Raises:
        TransportError: something is missing, or of the wrong type.
        ContractError: an image is none.
    """
    flat = _flat(request)
    words = _words(flat, cameras)
    prompt = flat.get(PROMPT)
    if not isinstance(prompt, str):
        raise TransportError(f"'{PROMPT}' is missing, or is no text; it is the instruction.")
    images: dict[str, Image] = {}
    for key, camera in zip(words.images, cameras, strict=False):
        if key not in flat:
            raise TransportError(f"the policy looks through its camera '{camera}', and there is no '{key}'.")
        images[camera] = _image(flat[key], key)
    if len(images) < len(cameras):
        raise TransportError(
            f"the policy has {len(cameras)} cameras, and this kind of robot only {len(images)}. Send them by their own "
            f"names: {', '.join(cameras)}."
        )
    state = [_numbers(flat[key], key) for key in words.state if key in flat]
    return Observation(images, np.concatenate(state or [np.zeros(0)]), prompt, stamp_ns=time.monotonic_ns(), step=0)


def _words(flat: Mapping[str, Any], cameras: Sequence[str]) -> Words:
    """The family whose images came."""
    families = (Words(tuple(cameras), ("state",)), *FAMILIES)
    for words in families:
        if any(key in flat for key in words.images):
            return words
    expected = [words.images[0] for words in families]
    came = sorted(key for key in flat if key != PROMPT)
    raise TransportError(f"there is no image. {unknown('key', came[0] if came else '', expected)}")


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """{"images": {"cam_high": x}} -> {"images.cam_high": x}, one level deep."""
    flat: dict[str, Any] = {}
    for key, value in request.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{key}.{name}" if name else str(key): below for name, below in inner}
    return flat


def _image(value: Any, key: str) -> Image:
    """(H, W, 3) uint8, whichever of the protocol's four forms came."""
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        raise ContractError(f"'{key}' must be an image of shape (H, W, 3) or (3, H, W).")
    image = value.transpose(1, 2, 0) if value.shape[0] == 3 and value.shape[2] != 3 else value
    if image.dtype.kind == "f":
        if not ((image >= 0) & (image <= 1)).all():
            raise ContractError(f"'{key}' is an image of {image.dtype}, whose values must be from 0 to 1.")
        image = (255 * image).astype(np.uint8)
    check_image(image, f"'{key}'")
    return np.ascontiguousarray(image)


def _numbers(value: Any, key: str) -> Vector:
    if isinstance(value, int | float):
        value = np.array([value])
    if not isinstance(value, np.ndarray) or value.ndim > 1 or value.dtype.kind not in "fiu":
        raise TransportError(f"'{key}' must be a row of numbers.")
    numbers: NDArray[np.float64] = np.atleast_1d(value).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise TransportError(f"'{key}' holds a number that is not finite.")
    return numbers


def _answer(chunk: ActionChunk, timing: Mapping[str, float]) -> dict[str, Any]:
    waited_ms = chunk.stages_ms.get("wait_for_batch", 0.0)
    policy_ms = sum(chunk.stages_ms.values()) - waited_ms
    return {"actions": chunk.actions, "policy_timing": {"infer_ms": policy_ms}, "server_timing": dict(timing)}


def _since_ms(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / NS_PER_MS


def _hang_up(connection: ServerConnection, reason: str) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        connection.send(reason)
    except ConnectionClosed:
        return
    connection.close(INTERNAL_ERROR, "Internal server error. The reason is in the previous frame.")


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
