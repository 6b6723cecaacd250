"""Reads msgpack of other projects, without believing it: the common half of their dialects.

Each dialect writes an array as a map of its own (see openpi_wire.py and groot_wire.py). What all have in common is that
the bytes come from elsewhere: nothing in them is executed, sizes are compared before anything is built, and a message
costs little more than its own bytes.
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
"""128 MiB: four frames of full HD are 25 MB."""

MAX_TEXT_BYTES = 1 << 16

ReadMap = Callable[[Mapping[Any, Any]], Any]
"""A map as it came -> the array that it stands for, or the map itself."""


def unpack(data: Buffer, read_map: ReadMap) -> Any:
    """What a message holds. Keys are str or bytes; values plain data, bytes, lists, maps, and what `read_map` made.

    Raises:
        TransportError: it is no msgpack, too large, or an array in it is not what its map says.
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
    """The array as it may be sent: of one of the wire's types, little endian.

    Raises:
        TransportError: it holds something else than numbers.
    """
    little = array if array.dtype.str in DTYPES else array.astype(array.dtype.newbyteorder("<"))
    if little.dtype.str not in DTYPES:
        raise TransportError(f"an array of {array.dtype} cannot travel; allowed are {', '.join(DTYPES)}.")
    return np.asarray(little, order="C")


def limit_sending(tcp: socket.socket, seconds: float) -> None:
    """A peer that reads no more must not keep the sender: once the buffers are full, sending fails in time.

    Not `settimeout`: that would limit how long the other side may be silent as well.
    """
    whole = int(seconds)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, round((seconds - whole) * 1e6)))


class _Count:
    """How much a message holds, so far: many empty lists would cost far more memory than bytes."""

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
    """The refusal of an address elsewhere, with the tunnel that makes it one of here."""
    scheme = address.partition("://")[0]
    return TransportError(
        f"'{address}' is another computer's, and {project}'s protocol has no keys: anybody between the two could read "
        f"what is sent and command the arm. Make a tunnel, `ssh -N -L {port}:127.0.0.1:{port} {host}`, and use "
        f"{scheme}://127.0.0.1:{port}."
    )
