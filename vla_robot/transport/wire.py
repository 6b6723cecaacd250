"""The wire format: plain data and arrays as the frames of one ZeroMQ message. No code in a message is executed.

    frame 0    "VLA" | format version (1 byte) | msgpack [kind, seq, body, arrays]
    frame 1..  the raw bytes of one array each, little endian, C order

    body    None, bool, int, float, str, lists and maps of these; an array is an ext value with its index
    arrays  [dtype, shape] of each array frame

Sizes, depth and types are checked before memory is allocated, and arrays are views of the frames that arrived:
a hostile message costs no memory but its own bytes.

>>> message = decode(encode(Message("step", 7, {"action": np.array([0.5, 1.0])})))
>>> message.kind, message.seq, message.body["action"].tolist()
('step', 7, [0.5, 1.0])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import TransportError

MAGIC = b"VLA"
FORMAT_VERSION = 1

UNNUMBERED = 0
"""Number of an answer to something that could not be read; requests begin at 1."""

MAX_HEADER_BYTES = 1 << 16
MAX_FRAME_BYTES = 1 << 26
"""Largest frame: 64 MiB; a frame of 4K video is 25 MB."""

MAX_ARRAYS = 64
MAX_DIMS = 8
MAX_DEPTH = 16
MAX_ITEMS = 4096
"""Most items of one list or map."""
MAX_VALUES = 1 << 14
"""Most values of a body. A header of empty maps would otherwise take a server 1 s."""

MAX_KIND_CHARS = 32

DTYPES = {
    name: np.dtype(name).itemsize
    for name in ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
}
"""Allowed types of arrays -> bytes per number. Only fixed widths: an object array would have to be pickled."""

Buffer = bytes | memoryview

Array = NDArray[Any]
"""Array of any dtype and shape. An alias, since writing it out in a cast costs microseconds."""

_PLAIN = frozenset({type(None), bool, int, float, str})

_SLOT = 1
"""Code of the ext value of an array; its one byte is the array's index."""


@dataclass(frozen=True)
class Message:
    """One request or answer.

    Attributes:
        kind: kind of request or answer, e.g. "step".
        seq: number of the request, which its answer repeats.
        body: str keys; values are plain data and arrays, nested in any way. Tuples arrive as lists.
    """

    kind: str
    seq: int
    body: Mapping[str, Any]


def encode(message: Message) -> list[Buffer]:
    """Return the frames of a message; array frames share memory with contiguous arrays.

    Raises:
        TransportError: the body holds a value that cannot be sent, or too much.
    """
    packer = _Packer()
    body = packer.table(message.body)
    specs = [[array.dtype.str, list(array.shape)] for array in packer.arrays]
    try:
        packed = msgpack.packb([message.kind, message.seq, body, specs])
    except (ValueError, TypeError, OverflowError) as error:
        raise TransportError(f"message '{message.kind}' cannot be packed: {error}.") from error
    header = MAGIC + bytes([FORMAT_VERSION]) + packed
    if len(header) > MAX_HEADER_BYTES:
        raise TransportError(
            f"the header of message '{message.kind}' has {len(header)} bytes, allowed are {MAX_HEADER_BYTES}. "
            "Send long lists of numbers as arrays."
        )
    return [header, *(_raw(array) for array in packer.arrays)]


def decode(frames: Sequence[Buffer]) -> Message:
    """Return the message in these frames; its arrays are read-only views of them.

    Raises:
        TransportError: the frames are not a valid message; the error says why.
    """
    if not frames:
        raise TransportError("empty message: there is no header frame.")
    kind, seq, body, specs = _header(memoryview(frames[0]))
    if len(specs) != len(frames) - 1:
        raise TransportError(f"the header announces {len(specs)} arrays, but {len(frames) - 1} frames follow it.")
    arrays = [read_array(spec, memoryview(frame)) for spec, frame in zip(specs, frames[1:], strict=True)]
    unpacker = _Unpacker(arrays)
    message = Message(kind, seq, unpacker.table(body))
    unpacker.check_all_used()
    return message


def read_array(spec: Any, frame: memoryview) -> Array:
    """Return one array, after checking its announced size against the bytes.

    Args:
        spec: [dtype, shape] as received; dtype is one of DTYPES.
        frame: the bytes; the array is a read-only view of them.

    Raises:
        TransportError: the bytes are not such an array.
    """
    if not isinstance(spec, list) or len(cast(list[Any], spec)) != 2:
        raise TransportError("an array is not announced as [dtype, shape].")
    dtype, shape = cast(list[Any], spec)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TransportError(f"an array of {str(dtype)[:32]!r} is announced; allowed are {', '.join(DTYPES)}.")
    dims = _dims(shape)
    expected = math.prod(dims) * DTYPES[dtype]
    if expected != frame.nbytes or expected > MAX_FRAME_BYTES:
        raise TransportError(
            f"an array of {dtype} and shape {dims} has {expected} bytes, its frame {frame.nbytes}; "
            f"allowed are {MAX_FRAME_BYTES}."
        )
    array: Array = np.ndarray(dims, dtype, buffer=frame)
    if dtype == "|b1" and (array.view(np.uint8) > 1).any():
        raise TransportError("an array of bool holds bytes other than 0 and 1.")
    array.flags.writeable = False
    return array


class _Packer:
    """Replaces arrays by slots and collects them."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._extent = _Extent()

    def table(self, table: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
        if not all(isinstance(key, str) for key in table):
            raise TransportError(f"keys must be str, got {[k for k in table if not isinstance(k, str)][:3]!r}.")
        self._extent.check(len(table), depth)
        return {key: self._value(value, depth + 1) for key, value in table.items()}

    def _value(self, value: Any, depth: int) -> Any:
        if type(value) in _PLAIN or isinstance(value, int | float | str):  # np.float64 is a float
            return value
        if isinstance(value, np.ndarray):
            return self._slot(cast(Array, value))
        if isinstance(value, Mapping):
            return self.table(cast(Mapping[Any, Any], value), depth)
        if isinstance(value, list | tuple):
            items = cast(Sequence[Any], value)
            self._extent.check(len(items), depth)
            return [self._value(item, depth + 1) for item in items]
        raise TransportError(
            f"a {type(value).__name__} cannot travel; None, bool, int, float, str, lists, maps and numeric arrays can."
        )

    def _slot(self, array: Array) -> msgpack.ExtType:
        little = array if array.dtype.str in DTYPES else array.astype(array.dtype.newbyteorder("<"))
        if little.dtype.str not in DTYPES:
            raise TransportError(f"an array of {array.dtype} cannot travel; allowed are {', '.join(DTYPES)}.")
        if little.ndim > MAX_DIMS or little.nbytes > MAX_FRAME_BYTES or len(self.arrays) == MAX_ARRAYS:
            raise TransportError(
                f"array {len(self.arrays)} has shape {array.shape} and {little.nbytes} bytes; allowed are "
                f"{MAX_DIMS} dimensions, {MAX_FRAME_BYTES} bytes and {MAX_ARRAYS} arrays in a message."
            )
        self.arrays.append(little)
        return msgpack.ExtType(_SLOT, bytes([len(self.arrays) - 1]))


class _Unpacker:
    """Replaces slots by arrays, and refuses types that the format does not have."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._used: set[int] = set()
        self._extent = _Extent()

    def table(self, table: Any, depth: int = 0) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise TransportError(f"the body must be a map, got {type(table).__name__}.")
        entries = cast(dict[Any, Any], table)
        if not all(isinstance(key, str) for key in entries):
            raise TransportError("a key is not a str.")
        self._extent.check(len(entries), depth)
        return {key: self._value(value, depth + 1) for key, value in entries.items()}

    def check_all_used(self) -> None:
        if len(self._used) != len(self._arrays):
            raise TransportError(f"{len(self._arrays)} arrays came, but the body refers to {len(self._used)} of them.")

    def _value(self, value: Any, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, _Slot):
            return self._array(value.index)
        if isinstance(value, list):
            items = cast(list[Any], value)
            self._extent.check(len(items), depth)
            return [self._value(item, depth + 1) for item in items]
        return self.table(value, depth)

    def _array(self, index: int) -> Array:
        if index >= len(self._arrays) or index in self._used:
            raise TransportError(f"the body refers to array {index} twice, or there is none: {len(self._arrays)} came.")
        self._used.add(index)
        return self._arrays[index]


@dataclass(frozen=True)
class _Slot:
    index: int


def _slot(code: int, data: bytes) -> _Slot:
    if code != _SLOT or len(data) != 1:
        raise ValueError(f"unknown ext value {code}")
    return _Slot(data[0])


class _Extent:
    """Counts the width, depth and size of a body."""

    def __init__(self) -> None:
        self._values = 0

    def check(self, length: int, depth: int) -> None:
        """Count a list or map; raise TransportError if it, or the whole body, is too large."""
        self._values += length
        if length > MAX_ITEMS or depth > MAX_DEPTH or self._values > MAX_VALUES:
            raise TransportError(
                f"the body holds {length} items at depth {depth}, and {self._values} values so far; allowed are "
                f"{MAX_ITEMS} items, depth {MAX_DEPTH} and {MAX_VALUES} values."
            )


def _header(frame: memoryview) -> tuple[str, int, Any, list[Any]]:
    """Return kind, seq, body with slots, and array specs."""
    if frame.nbytes > MAX_HEADER_BYTES:
        raise TransportError(f"the header has {frame.nbytes} bytes, allowed are {MAX_HEADER_BYTES}.")
    data = bytes(frame)
    if len(data) <= len(MAGIC) or not data.startswith(MAGIC):
        raise TransportError(f"this is not a message of vla_robot: it begins with {data[:4]!r}. Check the port.")
    if data[len(MAGIC)] != FORMAT_VERSION:
        raise TransportError(
            f"the peer speaks wire format {data[len(MAGIC)]}, this side {FORMAT_VERSION}. Install the same version of "
            "vla_robot on both sides."
        )
    fields = _unpack(data[len(MAGIC) + 1 :])
    if not isinstance(fields, list) or len(cast(list[Any], fields)) != 4:
        raise TransportError("the header is not a list of kind, seq, body and arrays.")
    kind, seq, body, specs = cast(list[Any], fields)
    if not isinstance(kind, str) or len(kind) > MAX_KIND_CHARS:
        raise TransportError("the header's kind is not a short str.")
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
        raise TransportError("the header's seq is not a number from 0.")
    if not isinstance(specs, list) or len(cast(list[Any], specs)) > MAX_ARRAYS:
        raise TransportError(f"the header's arrays are not a list of at most {MAX_ARRAYS}.")
    return kind, seq, body, cast(list[Any], specs)


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data,
            ext_hook=_slot,
            max_str_len=MAX_HEADER_BYTES,
            max_bin_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=1,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise TransportError(f"the header is not valid msgpack: {error}.") from error


def _dims(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(cast(list[Any], shape)) > MAX_DIMS:
        raise TransportError(f"the shape of an array is not a list of at most {MAX_DIMS} numbers.")
    dims = cast(list[Any], shape)
    # An empty array needs no bytes for any other dimensions, but numpy fails if their product overflows.
    if not all(type(dim) is int and 0 <= dim <= MAX_FRAME_BYTES for dim in dims) or (
        0 in dims and math.prod(dim for dim in dims if dim) > MAX_FRAME_BYTES
    ):
        raise TransportError(f"the dimensions of an array are not numbers from 0 to {MAX_FRAME_BYTES}, or overflow.")
    return tuple(dims)


def _raw(array: Array) -> Buffer:
    """Return the bytes of an array, without a copy if it is contiguous."""
    if array.flags.c_contiguous and array.size:
        return array.data.cast("B")
    return array.tobytes()
