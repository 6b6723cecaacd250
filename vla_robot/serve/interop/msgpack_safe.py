"""Reads msgpack of other projects safely: the common part of their dialects.

Each dialect writes an array as a map of its own (see openpi_wire.py and groot_wire.py). For all of them,
no code in the bytes is executed, sizes are checked before memory is allocated, and a message
takes little more memory than its own bytes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from vla_robot.core.errors import TransportError
from vla_robot.transport.wire import DTYPES, MAX_FRAME_BYTES, MAX_ITEMS, MAX_VALUES, Array, Buffer

MAX_MESSAGE_BYTES = 2 * MAX_FRAME_BYTES
"""Largest message: 128 MiB; four frames of full HD are 25 MB."""

MAX_TEXT_BYTES = 1 << 16

ReadMap = Callable[[Mapping[Any, Any]], Any]
"""Converts a map to the array that it describes, or returns the map."""


def unpack(data: Buffer, read_map: ReadMap) -> Any:
    """Unpack a message. Keys are str or bytes; values are plain data, bytes, lists, maps, and results of `read_map`.

    Raises:
        TransportError: it is not msgpack, too large, or an array in it does not fit its map.
    """
    size = memoryview(data).nbytes
    if size > MAX_MESSAGE_BYTES:
        raise TransportError(f"the message has {size} bytes, allowed are {MAX_MESSAGE_BYTES}.")
    count = _Count()
    try:
        return msgpack.unpackb(
            data,
            object_hook=lambda table: read_map(count.of(table)),
            list_hook=count.of,
            ext_hook=_no_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise TransportError(f"the message is not valid msgpack: {error}.") from error


def sendable(array: Array) -> Array:
    """Return the array in one of the wire's types, little endian.

    Raises:
        TransportError: it is not an array of such numbers.
    """
    little = array if array.dtype.str in DTYPES else array.astype(array.dtype.newbyteorder("<"))
    if little.dtype.str not in DTYPES:
        raise TransportError(f"an array of {array.dtype} cannot travel; allowed are {', '.join(DTYPES)}.")
    return np.asarray(little, order="C")


def limit_sending(tcp: socket.socket, seconds: float) -> None:
    """Limit the time of sending [s], so that a peer that stopped reading does not block the sender.

    `settimeout` would also limit the peer's silence.
    """
    whole = int(seconds)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, round((seconds - whole) * 1e6)))


class _Count:
    """Counts the values of a message: many empty lists would take far more memory than bytes."""

    def __init__(self) -> None:
        self._values = 0

    def of[T: (list[Any], dict[Any, Any])](self, value: T) -> T:
        self._values += len(value) + 1
        if self._values > MAX_VALUES:
            raise TransportError(f"the message holds more than {MAX_VALUES} values.")
        return value


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"ext value {code}")


def not_this_computers(address: str, project: str, host: str, port: int | str) -> TransportError:
    """Return the error for an address on another computer; it describes an SSH tunnel."""
    scheme = address.partition("://")[0]
    return TransportError(
        f"'{address}' is another computer's, and {project}'s protocol has no keys: any computer between could read "
        f"the messages and command the arm. Make a tunnel, `ssh -N -L {port}:127.0.0.1:{port} {host}`, and use "
        f"{scheme}://127.0.0.1:{port}."
    )
