"""Decodes and encodes tf.train.Example, the protobuf message of a record.

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }
    Feature  { oneof { BytesList = 1, FloatList = 2, Int64List = 3 } }      each list: repeated value = 1

The protobuf package is not used since it does not give the offset of a frame in a record, by which training reads one
frame without reading its episode. A record is parsed once for the places of its lists; only the wanted lists are
decoded, numbers as views of the record's bytes. docs/data.md has the times of both.

Source: tensorflow/tensorflow 2.21, tensorflow/core/example/{example,feature}.proto; the encoding is
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError

BYTES, FLOATS, INTS = 1, 2, 3
"""Field number of each kind of list in Feature."""
KIND_NAMES = {BYTES: "bytes", FLOATS: "floats", INTS: "integers"}

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types."""

MOST_VARINT_BYTES = 10
MAX_ENTRIES = 2**20
"""Largest number of entries of a list of bytes, or of numbers of a list that is not packed: each entry takes up to 250
bytes of memory for 2 bytes of the record."""
FIRST = 1
"""Number of the only field of Example, Features and each list; of the key in a map's entry."""
SECOND = 2
"""Number of the value in a map's entry."""


class Place(NamedTuple):
    """The place of a list in a record.

    Attributes:
        kind: BYTES, FLOATS or INTS; 0 for a Feature that holds no list.
        start: offset of its first byte.
        stop: offset after its last byte.
    """

    kind: int
    start: int
    stop: int


Item = tuple[int, int, int, int]
"""One field of a protobuf message: its number, its wire type, and the offsets of its value's begin and end."""


def places(record: bytes) -> dict[str, Place]:
    """Return name of each feature -> place of its list.

    Raises:
        DataError: the record is no tf.train.Example.
    """
    try:
        return dict(_feature_places(record))
    except UnicodeDecodeError as error:
        raise DataError(f"the record is no tf.train.Example: {error}.") from error


def floats(record: bytes, place: Place) -> NDArray[np.float32]:
    """Return the numbers of a FloatList, (N,); a view of the record where they are packed, as is usual."""
    parts: list[NDArray[np.float32]] = []
    for number, wire, start, stop in _items(record, place.start, place.stop):
        _require(number, wire, LENGTH_DELIMITED, FIXED32)
        if (stop - start) % 4:
            raise DataError("a list of floats has a size that is no multiple of 4 bytes.")
        parts.append(np.frombuffer(record, "<f4", (stop - start) // 4, start))
    return _one(parts, np.float32)


def ints(record: bytes, place: Place) -> NDArray[np.int64]:
    """Return the numbers of an Int64List, (N,), packed or not."""
    parts: list[NDArray[np.int64]] = []
    for number, wire, start, stop in _items(record, place.start, place.stop):
        _require(number, wire, LENGTH_DELIMITED, VARINT)
        parts.append(_varints(np.frombuffer(record, np.uint8, stop - start, start)))
    return _one(parts, np.int64)


def byte_places(record: bytes, place: Place) -> list[tuple[int, int]]:
    """Return (offset, size) of each entry of a BytesList, counted from the record's first byte."""
    found: list[tuple[int, int]] = []
    for number, wire, start, stop in _items(record, place.start, place.stop):
        _require(number, wire, LENGTH_DELIMITED)
        found.append((start, stop - start))
    return found


def count(record: bytes, place: Place) -> int:
    """Return the number of a list's values."""
    if place.kind == BYTES:
        return len(byte_places(record, place))
    return len(floats(record, place) if place.kind == FLOATS else ints(record, place))


def encode(features: Mapping[str, NDArray[Any] | Sequence[bytes]]) -> bytes:
    """Encode a tf.train.Example.

    Args:
        features: name -> float32 or int64 array of any shape, stored row by row, or entries of bytes.
    """
    entries = (
        _delimited(FIRST, _delimited(FIRST, name.encode()) + _delimited(SECOND, _feature(values)))
        for name, values in sorted(features.items())
    )
    return _delimited(FIRST, b"".join(entries))


def _feature_places(record: bytes) -> Iterator[tuple[str, Place]]:
    for number, _, start, stop in _items(record, 0, len(record)):
        if number == FIRST:
            for inner, _, first, last in _items(record, start, stop):
                if inner == FIRST:
                    yield _entry(record, first, last)


def _entry(record: bytes, start: int, stop: int) -> tuple[str, Place]:
    name, place = "", Place(0, 0, 0)
    for part, _, first, last in _items(record, start, stop):
        if part == FIRST:
            name = record[first:last].decode()
        elif part == SECOND:
            for kind, wire, begin, end in _items(record, first, last):
                if kind in KIND_NAMES and wire == LENGTH_DELIMITED:
                    place = Place(kind, begin, end)
    return name, place


def _items(record: bytes, position: int, stop: int) -> Iterator[Item]:
    """Yield the fields of the message in record[position:stop]."""
    for _ in range(MAX_ENTRIES):
        if position >= stop:
            return
        tag = record[position]
        position += 1
        if tag >= 0x80:  # a field number above 15, which these messages do not have
            tag, position = _varint(record, position - 1, stop)
        wire = tag & 7
        if wire == LENGTH_DELIMITED:
            # Lengths of one and two bytes are read inline, since a call would double the time of the loop.
            if position + 1 < stop and record[position] < 0x80:
                size, position = record[position], position + 1
            elif position + 1 < stop and record[position + 1] < 0x80:
                size, position = record[position] & 0x7F | record[position + 1] << 7, position + 2
            else:
                size, position = _varint(record, position, stop)
            end = position + size
        elif wire == VARINT:
            _, end = _varint(record, position, stop)
        elif wire in (FIXED32, FIXED64):
            end = position + (4 if wire == FIXED32 else 8)
        else:
            raise DataError(f"the record is no tf.train.Example: wire type {wire} at byte {position}.")
        if end > stop:
            raise DataError(f"the record is no tf.train.Example: a field ends at byte {end}, its message at {stop}.")
        yield tag >> 3, wire, position, end
        position = end
    if position < stop:
        raise DataError(f"the record is no tf.train.Example: a message has more than {MAX_ENTRIES} fields.")


def _varint(record: bytes, position: int, stop: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    value = shift = 0
    while True:
        if position >= stop:
            raise DataError(f"the record is no tf.train.Example: a number is cut off at byte {position}.")
        byte = record[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 7 * MOST_VARINT_BYTES:
            raise DataError(f"the record is no tf.train.Example: an endless number before byte {position}.")


def _varints(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Decode consecutive varints: 7 bits a byte, lowest first; the last byte of each is below 128."""
    is_last = raw < 0x80
    if is_last.all():  # bools and small counts, which are most values
        return raw.astype(np.int64)
    stops = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], stops[:-1]])
    lengths = stops - starts
    if not is_last[-1] or lengths.max() > MOST_VARINT_BYTES:
        raise DataError("a list of integers is cut off or holds a number of more than 64 bits.")
    shifts = 7 * (np.arange(len(raw)) - np.repeat(starts, lengths)).astype(np.uint64)
    return np.bitwise_or.reduceat((raw & 0x7F).astype(np.uint64) << shifts, starts).view(np.int64)


def _one(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _require(number: int, wire: int, *allowed: int) -> None:
    if number != FIRST or wire not in allowed:
        raise DataError(f"a list holds field {number} of wire type {wire}, which no list of its kind has.")


def _feature(values: NDArray[Any] | Sequence[bytes]) -> bytes:
    if not isinstance(values, np.ndarray):
        return _delimited(BYTES, b"".join(_delimited(FIRST, value) for value in values))
    if values.dtype == np.float32:
        return _delimited(FLOATS, _delimited(FIRST, values.astype("<f4").tobytes()))
    return _delimited(INTS, _delimited(FIRST, _encode_varints(values.ravel())))


def _delimited(number: int, content: bytes) -> bytes:
    head, size = bytearray([number << 3 | LENGTH_DELIMITED]), len(content)
    while size >= 0x80:  # `_encode_varints` would be slower for one number
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + content


def _encode_varints(values: NDArray[Any]) -> bytes:
    """Encode numbers as varints, the inverse of `_varints`; negative ones take ten bytes, as two's complement."""
    unsigned = values.astype(np.int64).view(np.uint64)
    groups = unsigned[:, None] >> np.arange(0, 7 * MOST_VARINT_BYTES, 7, dtype=np.uint64)  # (N, 10)
    lengths = np.maximum((groups != 0).sum(axis=1), 1)[:, None]
    column = np.arange(MOST_VARINT_BYTES)
    raw = (groups & np.uint64(0x7F)).astype(np.uint8) | np.where(column < lengths - 1, 0x80, 0).astype(np.uint8)
    return raw[column < lengths].tobytes()
