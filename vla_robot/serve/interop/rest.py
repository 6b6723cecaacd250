"""Serves `POST /act` as OpenVLA's and OpenVLA-OFT's deployment scripts do, to their clients.

    request    {"image": ARRAY, "instruction": TEXT, "unnorm_key": NAME or absent}                       OpenVLA
               {"full_image": ARRAY, "wrist_image": ARRAY, "state": ARRAY, "instruction": TEXT}          OpenVLA-OFT
               {"encoded": the same, as a string of JSON}                                                double-encoded
    answer     ARRAY of one action, a list of ARRAYs for a chunk, or either as a string of JSON where the request was
    ARRAY      {"__numpy__": base64 of the bytes, "dtype": "<f8" or "|u1", "shape": [..]}

As in those scripts, a request that fails is answered with status 200 and the body "error"; the reason is in the
header X-VLA-Error and in the log. `GET /health` returns the status. Only programs on this computer can connect: the
protocol has no keys, so use an SSH tunnel between computers. A page in this computer's browser is refused.

Source: `vla-scripts/deploy.py` of the two projects.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError, TransportError, VlaError, unknown
from vla_robot.core.image import turned_back
from vla_robot.core.messages import ActionChunk, Image, Observation
from vla_robot.serve.policy.batcher import Batcher
from vla_robot.transport.wire import DTYPES, MAX_DIMS
from vla_robot.web.http_json import BoundedServer, JsonHandler, Serving, parse_object

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "[::1]")
"""Host names that a client may use; a page whose site was rebound to this computer uses another one."""

MAX_BODY_BYTES = 1 << 26
"""Largest request: 64 MiB; three frames of full HD in base64 are 25 MB."""

SOCKET_TIMEOUT_S = 10.0
"""A client that is silent, or does not read its answer, for this long is disconnected [s]."""

REQUEST_S = 30.0
"""Time limit for receiving a request [s]; 25 MB take 20 s at 10 Mbit/s."""

POLL_S = 0.05
"""Period at which the server checks whether it is closed [s]."""

MAX_HEADER_CHARS = 500
IMAGES = ("full_image", "wrist_image", "left_wrist_image", "right_wrist_image")
"""The scripts' camera keys, in the order of a policy's cameras; "image" is the only camera of OpenVLA."""

_PLACES = "the images, 'state', 'instruction' and 'unnorm_key'"
_LOG = logging.getLogger(__name__)


class RestServer:
    """Serves a batcher over HTTP, in threads of its own."""

    def __init__(self, batcher: Batcher, name: str, cameras: Sequence[str], port: int, mirror: bool = False) -> None:
        """
        Args:
            batcher: answers the requests.
            name: name of the policy, for /health.
            cameras: the policy's cameras, in its order; empty for a published checkpoint, which names none and has one.
            port: on the loopback interface; 0 means any free one.
            mirror: whether the policy's recipe mirrors frames. Clients of those scripts send mirrored ones already.

        Raises:
            TransportError: the port is taken.
        """
        try:
            self._http = _Server(batcher, name, cameras, port, mirror)
        except OSError as error:
            raise TransportError(f"cannot listen on {HOST}:{port}: {error.strerror}. Choose another --rest.") from error
        self.url = f"http://{HOST}:{self._http.server_port}/act"
        self._serving = Serving(self._http, "rest", POLL_S)

    def close(self) -> None:
        self._serving.close()


class _Server(BoundedServer):
    def __init__(self, batcher: Batcher, name: str, cameras: Sequence[str], port: int, mirror: bool) -> None:
        self.mirror = mirror
        self.batcher = batcher
        self.name = name
        self.cameras = cameras
        super().__init__(HOST, port, _Handler)


class _Handler(JsonHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = SOCKET_TIMEOUT_S
    request_s = REQUEST_S
    answers_long = True

    def do_POST(self) -> None:  # noqa: N802
        if not self._is_a_programs():
            return
        if self.path != "/act":
            self._reply(404, {"detail": "Not Found. The policy answers POST /act."})
            return
        try:
            self._reply(200, self._act(self.read_object(MAX_BODY_BYTES)))
        except VlaError as error:
            _LOG.warning("POST /act: %s", error)
            self._reply(200, "error", {"X-VLA-Error": _header(str(error))})

    def do_GET(self) -> None:  # noqa: N802
        if not self._is_a_programs():
            return
        if self.path != "/health":
            self._reply(404, {"detail": "Not Found. GET /health, POST /act."})
            return
        self._reply(200, {"status": "ok", "policy": self.server.name, **self.server.batcher.status()})

    def _is_a_programs(self) -> bool:
        """Return whether the client is a program; a page of a browser gets status 403."""
        if not self.is_foreign(NAMES, any_port=True):
            return True
        self._reply(403, {"detail": "This server answers programs on this computer, and no page of a browser."})
        return False

    def _act(self, payload: Mapping[str, Any]) -> Any:
        encoded = "encoded" in payload
        if encoded:
            if len(payload) != 1 or not isinstance(payload["encoded"], str):
                raise TransportError("a double-encoded request has 'encoded' as its only key, a string of JSON.")
            payload = parse_object(payload["encoded"])
        key = payload.get("unnorm_key")
        if key is not None and not isinstance(key, str):
            raise TransportError(f"'unnorm_key' must be text, got {type(key).__name__}.")
        observation = read_observation(payload, self.server.cameras, self.server.mirror)
        chunk = self.server.batcher.ask(observation, key, client=("rest", *self.client_address))
        answer = pack_answer(chunk)
        return json.dumps(answer) if encoded else answer

    def _reply(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.reply(status, json.dumps(body).encode(), "application/json", headers)


def read_observation(payload: Mapping[str, Any], cameras: Sequence[str], mirror: bool = False) -> Observation:
    """Convert a request to an observation with the policy's camera names.

    Args:
        payload: the request.
        cameras: the policy's cameras, in its order.
        mirror: exchange left and right of the frames, to undo what the client did.

    Raises:
        TransportError: an entry is missing, of the wrong type, or unknown.
        ContractError: an image is not (H, W, 3) uint8.
    """
    names = _names(cameras)
    known = {*names, "state", "instruction", "unnorm_key"}
    for field in payload:
        if field not in known:
            raise TransportError(f"{unknown('field', field[:40], known)} A request holds {_PLACES}.")
    instruction = payload.get("instruction")
    if not isinstance(instruction, str):
        raise TransportError("'instruction' is missing or is not text.")
    state = unpack_array(payload["state"], "state").astype(np.float64).ravel() if "state" in payload else np.zeros(0)
    frames = {names[field]: _image(payload[field], field) for field in payload if field in names}
    images = {name: turned_back(frame, 0, mirror) for name, frame in frames.items()}
    if not images:
        raise TransportError(f"there is no image; the policy's cameras are called {', '.join(names)} here.")
    return Observation(images, state, instruction, stamp_ns=time.monotonic_ns(), step=0)


def pack_answer(chunk: ActionChunk) -> Any:
    """Return one action as an array, several as a list of arrays."""
    rows = [pack_array(row) for row in chunk.actions]
    return rows[0] if len(rows) == 1 else rows


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """Encode an array as json_numpy does.

    >>> pack_array(np.array([1, 2], dtype=np.uint8))
    {'__numpy__': 'AQI=', 'dtype': '|u1', 'shape': [2]}
    """
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def unpack_array(value: Any, field: str) -> NDArray[Any]:
    """Decode an array of json_numpy, or nested lists of numbers. Only numbers of fixed width are accepted.

    Raises:
        TransportError: it is not an array, or its size does not fit its shape.
    """
    if isinstance(value, list):
        try:
            return np.asarray(cast("Sequence[Any]", value), dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise TransportError(f"'{field}': not a list of numbers.") from error
    if not isinstance(value, dict) or set(cast("dict[str, Any]", value)) != {"__numpy__", "dtype", "shape"}:
        raise TransportError(f"'{field}' must be an array as json_numpy writes it: __numpy__, dtype and shape.")
    spec = cast("dict[str, Any]", value)
    dtype, shape = _dtype(spec["dtype"], field), _shape(spec["shape"], field)
    try:
        data = base64.b64decode(spec["__numpy__"], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise TransportError(f"'{field}': __numpy__ is not base64.") from error
    if len(data) != dtype.itemsize * math.prod(shape):
        raise TransportError(f"'{field}': {len(data)} bytes do not make an array of {dtype} and shape {list(shape)}.")
    return np.frombuffer(data, dtype).reshape(shape)


def _names(cameras: Sequence[str]) -> dict[str, str]:
    """Return the request's field -> the policy's camera: the scripts' keys in order, or the policy's own names."""
    if len(cameras) <= 1:
        only = cameras[0] if cameras else "image"
        return {"image": only, "full_image": only, only: only}
    return {**dict(zip(IMAGES, cameras, strict=False)), **{name: name for name in cameras}}


def _image(value: Any, field: str) -> Image:
    array = unpack_array(value, field)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ContractError(f"'{field}' must be (H, W, 3) uint8, RGB, got {array.dtype} of shape {list(array.shape)}.")
    return array


def _dtype(value: Any, field: str) -> np.dtype[Any]:
    """Return one of the wire's dtypes, written '<f8' or 'float64': versions of json_numpy differ."""
    try:
        dtype = np.dtype(value) if isinstance(value, str) and len(value) < 16 else None
    except (TypeError, ValueError, SyntaxError):  # numpy reads "2,3f4" and the like with a parser of its own
        dtype = None
    if dtype is None or dtype.str not in DTYPES:
        raise TransportError(f"'{field}': dtype {str(value)[:40]!r} is none of {', '.join(DTYPES)}.")
    return dtype


def _shape(value: Any, field: str) -> tuple[int, ...]:
    sizes = cast("list[Any]", value) if isinstance(value, list) else None
    if sizes is None or len(sizes) > MAX_DIMS or not all(type(n) is int and 0 <= n <= MAX_BODY_BYTES for n in sizes):
        raise TransportError(f"'{field}': shape must be up to {MAX_DIMS} sizes, got {str(value)[:80]}.")
    return tuple(sizes)


def _header(text: str) -> str:
    """Return the text as an HTTP header value: printable ASCII on one line."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:MAX_HEADER_CHARS]
