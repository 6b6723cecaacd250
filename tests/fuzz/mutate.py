"""Neighbours of valid inputs, structure kept where that reaches deeper. The same seed gives the same neighbours."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from msgpack.ext import Timestamp

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "x" * 300,
    "-1",
    "9" * 400,
    "nan",
    "../../etc/passwd",
    "/etc/passwd",
    "\x1b[2J",
    "\0",
    "\ud800",
    "{chunk_index.__class__}",
    "{",
    "float64",
    "S100000000",
    "O",
    "train",
    [],
    [[]],
    [0, 2**40, 2**40],
    [-1],
    [1] * 40,
    {},
    {"a": 1},
    {"": {"": {}}},
)
"""What a value is replaced with."""

TEXTS: tuple[bytes, ...] = (
    b"[" * 5000,
    b'{"a":' * 5000,
    b"1" * 5000,
    b"-" + b"9" * 4200,
    b"NaN",
    b"\xff\xfe",
    b"\x00" * 64,
    b"",
    b"[" + b"[]," * 3000 + b"[]]",
)
"""Whole inputs, or stretches of one."""


def scrambled(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with one to four stretches overwritten, left out, repeated, or counted up or down."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start, length = chance.randint(0, len(data)), chance.choice((1, 1, 2, 4, 8, 64))
        there = data[start : start + length]
        middle = chance.choice(
            (
                chance.randbytes(length),
                b"\xff" * length,
                b"\0" * length,
                b"",
                2 * there,
                bytes((byte + chance.choice((-1, 1, 16, 128))) % 256 for byte in there),
            )
        )
        data = data[:start] + middle + data[start + length :]
    return data


def changed(value: Any, chance: random.Random, values: Sequence[Any] = VALUES) -> Any:
    """The same plain data with one thing in it replaced, dropped, doubled, renamed, or put somewhere else."""
    if not isinstance(value, list | dict) or not value or chance.random() < 0.08:
        return chance.choice(values) if chance.random() < 0.8 else nested(value, chance.choice((1, 3, 40)), chance)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value = value.copy()
    what = chance.random()
    if what < 0.08:
        del value[key]
    elif what < 0.14:
        value = [*value, value[key]] if isinstance(value, list) else {**value, f"{key}_": value[key]}
    elif what < 0.2 and isinstance(value, dict):
        value[chance.choice(("", "../x", "\x1b", "x" * 300, "a/b", *map(str, value)))] = value.pop(key)
    else:
        value[key] = changed(value[key], chance, values)
    return value


def nested(value: Any, depth: int, chance: random.Random) -> Any:
    for _ in range(depth):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def repeatedly(change: Callable[[Any, random.Random], Any], value: Any, chance: random.Random) -> Any:
    """One change, often two, sometimes more."""
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        value = change(value, chance)
    return value


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """JSON near other JSON: mostly still JSON, sometimes only its bytes."""
    what = chance.random()
    if what < 0.02:
        return chance.choice(TEXTS)
    if what < 0.2:
        return scrambled(data, chance)
    text = json.dumps(repeatedly(changed, json.loads(data), chance)).encode()
    return text if what < 0.95 else text.replace(b'"', chance.choice(TEXTS), 1)


def mutated_msgpack(data: bytes, chance: random.Random) -> bytes:
    """As `mutated_json`, for msgpack with keys of text or bytes."""
    with contextlib.suppress(Exception):  # what cannot be packed, such as 10**400, is mutated as bytes
        if chance.random() < 0.75:
            value = msgpack.unpackb(data, strict_map_key=False)
            values = (*VALUES, b"", b"\x93NUMPY", b"x" * 300, msgpack.ExtType(1, b"\0"), Timestamp(1))
            packed = msgpack.packb(repeatedly(lambda v, c: changed(v, c, values), value, chance))
            assert packed is not None
            return packed
    return scrambled(data, chance)


def mutated_lines(data: bytes, chance: random.Random) -> bytes:
    """A text of lines such as TOML: a line dropped, doubled, moved, or with another value; or its bytes."""
    if chance.random() < 0.3:
        return scrambled(data, chance)
    lines = data.split(b"\n")
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(lines))
        name, equals, _ = lines[place].partition(b"=")
        what = chance.random()
        if equals and what < 0.7:
            lines[place] = name + b"= " + chance.choice(TOML_VALUES)
        elif what < 0.8:
            lines.insert(chance.randrange(len(lines)), lines[place])
        elif what < 0.9 and len(lines) > 1:
            del lines[place]
        else:
            lines[place] = chance.choice((b"[a.b]", b"[[cameras]]", b"[", b"[limits]", b"[robot]", b'base = "../x"'))
    return b"\n".join(lines)


TOML_VALUES: tuple[bytes, ...] = (
    b"0",
    b"-1",
    b"1e-300",
    b"1e400",
    b"inf",
    b"-inf",
    b"nan",
    b"9" * 400,
    b"1" * 5000,
    b"true",
    b'""',
    b'"../../etc/passwd"',
    b'"\\u001b[2J"',
    b'"\\u0000"',
    b'"lift"',
    b'"~nobody/x"',
    b'"' + b"x" * 5000 + b'"',
    b"[]",
    b"[[[]]]",
    b"[" * 5000,
    b"[" * 60 + b"]" * 60,
    b"{}",
    b"{ a = 1 }",
    b"[1, 2, 3]",
    b"[-1e9, 0, 0]",
    b"1979-05-27T07:32:00Z",
    b"0x7fffffffffffffffffff",
    b"'''\nx'''",
)
