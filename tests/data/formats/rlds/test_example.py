"""Tests of our decoder of tf.train.Example against the protobuf package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import DataError
from vla_robot.data.formats.rlds.example import (
    BYTES,
    FLOATS,
    INTS,
    byte_places,
    count,
    encode,
    floats,
    ints,
    places,
)


def example_class(packed: bool = True) -> Any:
    """Return protobuf's own class tf.train.Example, built from a description of example.proto."""
    file = descriptor_pb2.FileDescriptorProto(name=f"example_{packed}.proto", package=f"p{packed}", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        values = file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
        if kind != field.TYPE_BYTES:
            values.options.packed = packed
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        feature.field.add(
            name=name.lower(), number=number, label=1, type=11, type_name=f".p{packed}.{name}", oneof_index=0
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=f".p{packed}.Feature")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=f".p{packed}.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, label=1, type=11, type_name=f".p{packed}.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"p{packed}.Example"))


EXAMPLES = {packed: example_class(packed) for packed in (True, False)}

INT64 = st.integers(-(2**63), 2**63 - 1)
CONTENT = st.fixed_dictionaries(
    {
        "bytes": st.lists(st.binary(max_size=200), max_size=5),
        "floats": st.lists(st.floats(width=32, allow_nan=False), max_size=50),
        "ints": st.lists(st.one_of(INT64, st.integers(0, 1), st.integers(-300, 300)), max_size=50),
    }
)


def theirs(content: dict[str, list], packed: bool) -> bytes:
    example = EXAMPLES[packed]()
    example.features.feature["bytes"].byteslist.value.extend(content["bytes"])
    example.features.feature["floats"].floatlist.value.extend(content["floats"])
    example.features.feature["ünts"].int64list.value.extend(content["ints"])
    return example.SerializeToString()


@given(CONTENT, st.booleans())
def test_what_protobuf_encodes_is_decoded(content: dict[str, list], packed: bool) -> None:
    record = theirs(content, packed)
    lists = places(record)
    assert [record[o : o + s] for o, s in byte_places(record, lists["bytes"])] == content["bytes"]
    np.testing.assert_array_equal(floats(record, lists["floats"]), np.array(content["floats"], np.float32))
    np.testing.assert_array_equal(ints(record, lists["ünts"]), np.array(content["ints"], np.int64))
    assert [count(record, lists[name]) for name in ("bytes", "floats", "ünts")] == [
        len(content[name]) for name in ("bytes", "floats", "ints")
    ]


@given(CONTENT)
def test_what_is_encoded_protobuf_decodes(content: dict[str, list]) -> None:
    record = encode(
        {
            "bytes": content["bytes"],
            "floats": np.array(content["floats"], np.float32),
            "ints": np.array(content["ints"], np.int64),
        }
    )
    features = EXAMPLES[True].FromString(record).features.feature
    assert list(features["bytes"].byteslist.value) == content["bytes"]
    assert list(features["floats"].floatlist.value) == content["floats"]
    assert list(features["ints"].int64list.value) == content["ints"]
    assert {name: place.kind for name, place in places(record).items()} == {
        "bytes": BYTES,
        "floats": FLOATS,
        "ints": INTS,
    }


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21])
def test_lengths_of_any_number_of_bytes_are_encoded(size: int) -> None:
    decoded = EXAMPLES[True].FromString(encode({"x": [bytes(size)]}))
    assert [len(value) for value in decoded.features.feature["x"].byteslist.value] == [size]


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_decoded_or_refused(record: bytes) -> None:
    try:
        lists = places(record)
        for place in lists.values():
            count(record, place)
    except DataError:
        pass


@given(CONTENT, st.data())
def test_a_record_that_is_cut_off_is_never_read_past_its_end(content: dict[str, list], data: st.DataObject) -> None:
    record = theirs(content, True)
    cut = record[: data.draw(st.integers(0, max(len(record) - 1, 0)))]
    try:
        for place in places(cut).values():
            assert place.stop <= len(cut)
    except DataError:
        pass


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\x0a\x05abc", r"a field ends at byte 7, its message at 5"),
        (b"\x0b", r"wire type 3"),
        (b"\x0a\x80", r"a number is cut off at byte 2"),
        (b"\xff" * 20, r"an endless number"),
    ],
)
def test_a_record_of_something_else_is_refused(record: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        places(record)


def test_numbers_of_more_than_64_bits_are_refused() -> None:
    value = b"\x0a\x0b" + b"\xff" * 10 + b"\x01"
    record = b"\x0a" + bytes([len(value)]) + value
    with pytest.raises(DataError, match=r"more than 64 bits"):
        ints(record, places(encode({"x": np.array([1])}))["x"]._replace(start=2, stop=len(record)))
