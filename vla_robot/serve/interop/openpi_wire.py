"""openpi's msgpack: an array is a map with bytes for keys.

    array     {b"__ndarray__": true, b"data": bytes in C order, b"dtype": "<f4", b"shape": [..]}
    scalar    {b"__npgeneric__": true, b"data": number, b"dtype": "<f4"}

>>> unpack(pack({"actions": np.zeros((10, 7), np.float32)}))["actions"].shape
(10, 7)

Source: openpi @15a9616, packages/openpi-client/src/openpi_client/msgpack_numpy.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from vla_robot.core.errors import TransportError
from vla_robot.serve.interop.msgpack_safe import sendable
from vla_robot.serve.interop.msgpack_safe import unpack as unpack_with
from vla_robot.transport.wire import Buffer, read_array


def pack(value: Mapping[str, Any]) -> bytes:
    """Pack one message, with arrays in openpi's format.

    Raises:
        TransportError: a value cannot be packed.
    """
    try:
        return msgpack.packb(value, default=_pack_array)
    except (ValueError, TypeError, OverflowError) as error:
        raise TransportError(f"the message cannot be packed: {error}.") from error


def unpack(data: Buffer) -> Mapping[str, Any]:
    """Unpack one message; its arrays are read-only views of `data`.

    Raises:
        TransportError: it is not a map in openpi's msgpack.
    """
    value = unpack_with(data, _read_map)
    if not isinstance(value, dict):
        raise TransportError(f"a message must be a map, got {type(value).__name__}.")
    return value


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} cannot travel")
    array = sendable(value)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def _read_map(table: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in table:
        data = table.get(b"data")
        if not isinstance(data, bytes):
            raise TransportError("an array comes without its data.")
        return read_array([table.get(b"dtype"), table.get(b"shape")], memoryview(data))
    if b"__npgeneric__" in table:
        number = table.get(b"data")
        if not isinstance(number, bool | int | float):
            raise TransportError(f"a NumPy scalar holds {type(number).__name__}, not a number.")
        return number
    return table
