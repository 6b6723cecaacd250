"""The wire format: what goes in comes out, and whatever arrives, only TransportError comes of it."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vla_robot.core.errors import TransportError
from vla_robot.transport import wire
from vla_robot.transport.wire import DTYPES, MAGIC, Buffer, Message, decode, encode

any_array = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
plain = st.recursive(
    scalar | any_array,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
messages = st.builds(
    Message, st.text(max_size=16), st.integers(0, 2**63), st.dictionaries(st.text(max_size=4), plain, max_size=4)
)

EXAMPLE = Message("step", 3, {"action": np.arange(7.0), "images": {"front": np.zeros((4, 5, 3), np.uint8)}, "n": 1})


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type; NaN equals NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def bytes_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def frames_of(fields: Any, *arrays: bytes, version: int = wire.FORMAT_VERSION) -> list[Buffer]:
    """A message made by hand."""
    return [MAGIC + bytes([version]) + msgpack.packb(fields), *arrays]


def slot(index: int) -> msgpack.ExtType:
    return msgpack.ExtType(1, bytes([index]))


@given(messages)
def test_what_goes_in_comes_out(message: Message) -> None:
    decoded = decode(bytes_of(message))
    assert (decoded.kind, decoded.seq) == (message.kind, message.seq)
    assert same(decoded.body, dict(message.body))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(10)[::-2],
        np.arange(5, dtype=">i4"),
        np.array(3.5),
        np.empty((0, 7)),
        np.asfortranarray(np.ones((2, 3), np.float32)),
    ],
    ids=["transposed", "strided backwards", "big endian", "no dimension", "empty", "Fortran order"],
)
def test_an_array_of_any_layout_arrives_with_its_values(array: np.ndarray) -> None:
    arrived = decode(bytes_of(Message("x", 1, {"a": array}))).body["a"]
    assert arrived.shape == array.shape
    assert arrived.dtype == array.dtype.newbyteorder("<")
    assert np.array_equal(arrived, array)


def test_tuples_arrive_as_lists() -> None:
    assert decode(bytes_of(Message("x", 1, {"a": (1, (2, 3))}))).body["a"] == [1, [2, 3]]


def test_arrays_are_views_of_the_frames_and_cannot_be_written() -> None:
    frames = bytes_of(EXAMPLE)
    image = decode(frames).body["images"]["front"]
    assert np.shares_memory(image, np.frombuffer(frames[2], np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 1


def test_a_writable_buffer_does_not_make_arrays_writable() -> None:
    frames: list[Buffer] = [memoryview(bytearray(frame)) for frame in bytes_of(EXAMPLE)]
    assert not decode(frames).body["action"].flags.writeable


def test_encoding_copies_no_contiguous_array() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert np.shares_memory(np.asarray(encode(Message("x", 1, {"a": image}))[1]), image)


@given(st.lists(st.binary(max_size=64), max_size=4))
@example([MAGIC + b"\x01" + b"\x91" * 5000])
@example([MAGIC + b"\x01\xdd\xff\xff\xff\xff"])
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(TransportError):
        decode(frames)


@settings(max_examples=500)
@given(st.binary(max_size=64))
def test_random_headers_behind_a_valid_beginning_are_refused(junk: bytes) -> None:
    with contextlib.suppress(TransportError):  # a few bytes may happen to be a message
        decode([MAGIC + bytes([wire.FORMAT_VERSION]) + junk])


@given(messages, st.data())
def test_a_mutated_message_is_refused_or_read_but_never_worse(message: Message, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in bytes_of(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TransportError):
        decode([bytes(frame) for frame in frames])


@given(messages, st.data())
def test_a_message_cut_short_is_refused(message: Message, data: st.DataObject) -> None:
    frames = bytes_of(message)
    index = data.draw(st.integers(0, len(frames) - 1))
    if frames[index]:
        frames[index] = frames[index][: data.draw(st.integers(0, len(frames[index]) - 1))]
    else:
        frames.pop(index)
    with pytest.raises(TransportError):
        decode(frames)


def test_a_stranger_is_told_apart() -> None:
    with pytest.raises(TransportError, match=r"not a message of vla_robot: it begins with b'GET '. Check the port"):
        decode([b"GET / HTTP/1.1"])


def test_another_version_is_refused_with_both_named() -> None:
    with pytest.raises(TransportError, match="speaks wire format 9, this side 1"):
        decode(frames_of(["x", 1, {}, []], version=9))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no header frame"),
        (frames_of(["x", 1, {}]), "not a list of kind, seq, body"),
        (frames_of([1, 1, {}, []]), "kind is not a short str"),
        (frames_of(["x" * 99, 1, {}, []]), "kind is not a short str"),
        (frames_of(["x", -1, {}, []]), "seq is not a number"),
        (frames_of(["x", True, {}, []]), "seq is not a number"),
        (frames_of(["x", 1, [], []]), "body must be a map, got list"),
        (frames_of(["x", 1, {}, {}]), "arrays are not a list"),
        (frames_of(["x", 1, {1: 2}, []]), "not valid msgpack"),
        (frames_of(["x", 1, {"a": b"raw"}, []]), "not valid msgpack"),
        (frames_of(["x", 1, {"a": msgpack.ExtType(5, b"1")}, []]), "unknown ext value 5"),
        (frames_of(["x", 1, {"a": slot(0)}, []]), "array 0 twice, or there is none"),
        (frames_of(["x", 1, {}, [["<f8", [1]]]], b"12345678"), "1 arrays came, but the body refers to 0"),
        (frames_of(["x", 1, {}, []], b"12345678"), "announces 0 arrays, but 1 frames follow"),
        (frames_of(["x", 1, {"a": slot(0)}, [["<f8", [2]]]], b"12345678"), "has 16 bytes, its frame 8"),
        (frames_of(["x", 1, {"a": slot(0)}, [["<f8", [-1]]]], b"12345678"), "dimensions of an array"),
        (frames_of(["x", 1, {"a": slot(0)}, [["<f8", [2**40, 0]]]], b""), "dimensions of an array"),
        (frames_of(["x", 1, {"a": slot(0)}, [["<f8", [0, 2**26, 2**26, 2**26]]]], b""), "or overflow"),
        (frames_of(["x", 1, {"a": slot(0)}, [["|u1", [1] * 9]]], b"1"), "shape of an array"),
        (frames_of(["x", 1, {"a": slot(0)}, [["|O", [1]]]], b"12345678"), r"array of '\|O' is announced"),
        (frames_of(["x", 1, {"a": slot(0)}, [["<M8[s]", [1]]]], b"12345678"), "allowed are"),
        (frames_of(["x", 1, {"a": slot(0)}, [["|b1", [1]]]], b"\x02"), "bytes other than 0 and 1"),
        (
            frames_of(["x", 1, {"a": slot(0), "b": slot(0)}, [["|u1", [1]]]], b"1"),
            "array 0 twice",
        ),
    ],
)
def test_a_forged_message_is_refused_with_the_reason(frames: list[Buffer], reason: str) -> None:
    with pytest.raises(TransportError, match=reason):
        decode(frames)


def test_a_huge_announcement_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(TransportError, match=r"has 4503599627370496 bytes, its frame 1"):
        decode(frames_of(["x", 1, {"a": slot(0)}, [["|u1", [2**26, 2**26]]]], b"1"))


def test_many_small_values_are_refused_on_both_sides_before_they_cost_time() -> None:
    body = {"a": [[{}] * 4000] * 5}
    with pytest.raises(TransportError, match=f"20006 values so far; allowed are .* {wire.MAX_VALUES} values"):
        encode(Message("x", 1, body))
    with pytest.raises(TransportError, match=f"20006 values so far; allowed are .* {wire.MAX_VALUES} values"):
        decode(frames_of(["x", 1, body, []]))


def test_a_deep_body_is_refused_on_both_sides() -> None:
    body: dict[str, Any] = {}
    for _ in range(wire.MAX_DEPTH + 1):
        body = {"a": body}
    with pytest.raises(TransportError, match="depth"):
        encode(Message("x", 1, body))
    with pytest.raises(TransportError, match="depth"):
        decode(frames_of(["x", 1, body, []]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"raw", "a bytes cannot travel"),
        (object(), "a object cannot travel"),
        ({1: 2}, "keys must be str"),
        (np.array([object()]), "array of object cannot travel"),
        (np.array(["text"]), "cannot travel"),
        (np.array([1 + 2j]), "complex128 cannot travel"),
        (2**70, "cannot be packed"),
        ([0] * (wire.MAX_ITEMS + 1), "4097 items"),
        ("x" * (wire.MAX_HEADER_BYTES + 1), "Send long lists of numbers as arrays"),
        ([np.zeros(1)] * (wire.MAX_ARRAYS + 1), "64 arrays in a message"),
    ],
)
def test_what_cannot_travel_is_refused_before_it_leaves(value: Any, reason: str) -> None:
    with pytest.raises(TransportError, match=reason):
        encode(Message("x", 1, {"a": value}))
