"""Reads the fields of a protobuf message, which is what an ONNX file is; no schema and no other package is needed."""

from __future__ import annotations

from collections.abc import Iterator

type Field = tuple[int, int | memoryview]
"""Number of a field, and its value: a whole number, or the bytes of a text, an array or a message."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message. Raises ValueError for bytes that are none."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        size, at = varint(message, at) if kind == BYTES else ({FIXED64: 8, FIXED32: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(message):
            raise ValueError(f"a field of {size} bytes does not fit")
        yield number, message[at : at + size]
        at += size


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the whole number at a place, as unsigned 64 bits, and the place after it. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a number ends early")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), at
    raise ValueError("a number is too long")


def text(value: int | memoryview) -> str:
    """Return a field as text. Raises ValueError if it is none."""
    if isinstance(value, int):
        raise ValueError("a number stands for a text")
    return bytes(value).decode()


def message(value: int | memoryview) -> memoryview:
    """Return a field as a message. Raises ValueError for a number."""
    if isinstance(value, int):
        raise ValueError("a number stands for a message")
    return value


def numbers(value: int | memoryview) -> list[int]:
    """Return a field of one or several whole numbers. Raises ValueError."""
    if isinstance(value, int):
        return [value]
    found, at = list[int](), 0
    while at < len(value):
        number, at = varint(value, at)
        found.append(number)
    return found
