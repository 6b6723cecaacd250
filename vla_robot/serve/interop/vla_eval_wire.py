"""vla-eval's messages: msgpack, with a type, a payload and a number.

    message   {"type": "hello" | "episode_start" | "observation" | "action" | "episode_end" | "error",
               "payload": a map, "seq": number of the message that is answered, "timestamp": seconds since 1970}
    array     {"__ndarray__": true, "data": bytes in C order, "dtype": "<f4", "shape": [..]}
    image     {"__image__": true, "format": "png" | "jpeg" | "raw", "data": file or bytes, "shape": [H, W, 3]}

>>> message = unpack(pack("action", {"actions": np.zeros(7, np.float32)}, seq=3))
>>> message.type, message.seq, message.payload["actions"].shape
('action', 3, (7,))

Source: vla-eval 0.8.0, vla_eval/protocol.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, TransportError
from vla_robot.data.formats import png
from vla_robot.serve.interop.msgpack_safe import sendable
from vla_robot.serve.interop.msgpack_safe import unpack as unpack_with
from vla_robot.transport.jpeg import decode_jpeg
from vla_robot.transport.wire import Buffer, read_array

ARRAY, IMAGE = "__ndarray__", "__image__"


@dataclass(frozen=True)
class EvalMessage:
    """One message.

    Attributes:
        type: what it is, e.g. "observation".
        payload: its contents, with arrays and decoded images.
        seq: its number; an answer has the number of its request.
    """

    type: str
    payload: Mapping[str, Any]
    seq: int


def pack(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    """Pack one message, with arrays in vla-eval's format.

    Raises:
        TransportError: a value cannot be packed.
    """
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    try:
        return msgpack.packb(message, default=_pack_array)
    except (ValueError, TypeError, OverflowError) as error:
        raise TransportError(f"the message cannot be packed: {error}.") from error


def unpack(data: Buffer) -> EvalMessage:
    """Unpack one message.

    Raises:
        TransportError: it is no message of vla-eval, or an array or image in it is damaged or too large.
    """
    value = unpack_with(data, _read_map)
    if not isinstance(value, dict):
        raise TransportError(f"a message must be a map, got {type(value).__name__}.")
    kind, payload, seq = (value.get(key) for key in ("type", "payload", "seq"))
    if not (isinstance(kind, str) and isinstance(payload, dict) and isinstance(seq, int)):
        raise TransportError("a message has the text 'type', the map 'payload' and the whole number 'seq'.")
    return EvalMessage(kind, payload, seq)


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} cannot travel")
    array = sendable(value)
    return {ARRAY: True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def _read_map(table: Mapping[Any, Any]) -> Any:
    if IMAGE in table:
        return _read_image(table)
    if ARRAY in table:
        return read_array([table.get("dtype"), table.get("shape")], memoryview(_bytes(table)))
    return table


def _read_image(table: Mapping[Any, Any]) -> NDArray[Any]:
    data = _bytes(table)
    match table.get("format"):
        case "raw":
            return read_array([table.get("dtype"), table.get("shape")], memoryview(data))
        case "jpeg":
            return decode_jpeg(np.frombuffer(data, np.uint8))
        case "png":
            try:
                return png.decode(data)
            except DataError as error:
                raise TransportError(str(error)) from error
        case other:
            raise TransportError(f"an image has the format {str(other)[:32]!r}; allowed are png, jpeg and raw.")


def _bytes(table: Mapping[Any, Any]) -> bytes:
    data = table.get("data")
    if not isinstance(data, bytes):
        raise TransportError("an array comes without its data.")
    return data
