"""Tests of features.json, the splits of dataset_info.json, and the decoding of each kind of field."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.data.formats.rlds.decode import count_steps, decode_metadata, decode_steps
from vla_robot.data.formats.rlds.example import encode, places
from vla_robot.data.formats.rlds.features import CLASSES, MODULE, Features, parse_features, to_tree
from vla_robot.data.formats.rlds.splits import Split, parse_info, parse_parts, shard_name
from vla_robot.data.formats.source import EncodedFrames


def node(kind: str, **content: Any) -> dict[str, Any]:
    return {"pythonClassName": MODULE + CLASSES.get(kind, kind), **content}


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    dims = {"dimensions": [str(n) for n in shape]} if shape else {}
    return node("Tensor", tensor={"dtype": dtype, "shape": dims, "encoding": encoding})


def sequence(inner: dict[str, Any]) -> dict[str, Any]:
    return node("Sequence", sequence={"feature": inner, "length": "-1"})


def described(**steps: dict[str, Any]) -> Features:
    inner = node("FeaturesDict", featuresDict={"features": steps})
    dataset = node("Dataset", sequence={"feature": inner, "length": "-1"})
    return parse_features(node("FeaturesDict", featuresDict={"features": {"steps": dataset}}), "f.json")


def decoded(features: Features, name: str, record: dict[str, Any], steps: int = 2) -> Any:
    content = encode(record)
    return decode_steps(features.steps[name], content, places(content), steps, "shard, record 0")


def test_the_description_of_a_sample_survives_a_round_trip(sample: Path) -> None:
    tree = json.loads(next(sample.glob("*/features.json")).read_text())
    features = parse_features(tree, "f.json")
    assert parse_features(to_tree(features), "f.json") == features


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int32", "int64", "uint64", "float16", "float64"])
def test_numbers_get_the_dtype_of_the_description(dtype: str) -> None:
    values = np.array([[0, 1], [1, 0]], dtype)
    stored = values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
    got = decoded(described(x=tensor(dtype, 2)), "x", {"steps/x": stored})
    np.testing.assert_array_equal(got, values, strict=True)


def test_uint64_beyond_int64_comes_back() -> None:
    values = np.array([2**64 - 1, 2**63], np.uint64)
    np.testing.assert_array_equal(
        decoded(described(x=tensor("uint64")), "x", {"steps/x": values.view(np.int64)}), values, strict=True
    )


def test_sequences_in_steps_are_cut_into_rows() -> None:
    features = described(boxes=sequence(tensor("float32", 2)), words=sequence(node("Text", text={})))
    record = {
        "steps/boxes/ragged_flat_values": np.arange(6, dtype=np.float32),
        "steps/boxes/ragged_row_lengths_0": np.array([1, 2]),
        "steps/words/ragged_flat_values": [b"a", b"b"],
        "steps/words/ragged_row_lengths_0": np.array([0, 2]),
    }
    first, second = decoded(features, "boxes", record)
    assert (first.tolist(), second.tolist()) == ([[0, 1]], [[2, 3], [4, 5]])
    assert decoded(features, "words", record) == ((), ("a", "b"))
    assert features.steps["boxes"].field.shape == (None, 2)
    assert features.steps["boxes"].field.is_ragged
    content = encode(record)
    assert count_steps(content, places(content), features) == 2


def test_sequences_in_sequences_are_cut_twice() -> None:
    features = described(deep=sequence(sequence(tensor("int64"))))
    got = decoded(
        features,
        "deep",
        {
            "steps/deep/ragged_flat_values": np.arange(4),
            "steps/deep/ragged_row_lengths_0": np.array([2, 1]),
            "steps/deep/ragged_row_lengths_1": np.array([1, 0, 3]),
        },
    )
    assert [[row.tolist() for row in step] for step in got] == [[[0], []], [[1, 2, 3]]]


def test_rows_that_do_not_add_up_are_refused() -> None:
    features = described(boxes=sequence(tensor("float32")))
    record = {
        "steps/boxes/ragged_flat_values": np.zeros(3, np.float32),
        "steps/boxes/ragged_row_lengths_0": np.array([1, 1]),
    }
    with pytest.raises(DataError, match=r"field 'steps/boxes' has 3 values in rows of 2"):
        decoded(features, "boxes", record)


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_arrays_that_are_stored_as_bytes_are_unpacked(encoding: str) -> None:
    values = np.arange(12, dtype=np.float64).reshape(2, 2, 3)
    blobs = [v.tobytes() if encoding == "bytes" else zlib.compress(v.tobytes()) for v in values]
    features = described(x=tensor("float64", 2, 3, encoding=encoding))
    np.testing.assert_array_equal(decoded(features, "x", {"steps/x": blobs}), values, strict=True)


def test_arrays_of_unknown_shape_are_stored_with_their_shape() -> None:
    features = described(x=tensor("int32", -1, -1, encoding="bytes"))
    arrays = [np.ones((1, 3), np.int32), np.zeros((2, 2), np.int32)]
    record = {"steps/x/value": [a.tobytes() for a in arrays], "steps/x/shape": np.array([[1, 3], [2, 2]])}
    for got, expected in zip(decoded(features, "x", record), arrays, strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)
    with pytest.raises(DataError, match=r"field 'steps/x' holds an array that cannot be unpacked"):
        decoded(features, "x", record | {"steps/x/value": [b"123", b"456"]})


def test_an_empty_episode_has_no_steps_and_one_that_is_half_empty_is_damaged() -> None:
    features = described(x=tensor("int64"), y=tensor("float32", 2))
    empty = {"steps/x": np.empty(0, np.int64), "steps/y": np.empty(0, np.float32)}
    content = encode(empty)
    assert count_steps(content, places(content), features) == 0
    content = encode(empty | {"steps/y": np.ones(4, np.float32)})
    with pytest.raises(DataError, match=r"field 'steps/x' is empty, but field 'steps/y' is not"):
        count_steps(content, places(content), features)


def test_steps_are_counted_by_a_field_that_the_record_has() -> None:
    features = described(x=tensor("int64"), y=tensor("float32", 2))
    content = encode({"steps/y": np.ones(6, np.float32)})
    assert count_steps(content, places(content), features) == 3
    marked = described(a=tensor("int64"), is_first=tensor("bool"), is_last=tensor("bool"))
    content = encode({"steps/a": np.array([7]), "steps/is_first": np.array([1, 0, 0])})
    assert count_steps(content, places(content), marked) == 3, "a field that is stored once an episode counts no steps"
    content = encode({"steps/z": np.ones(6, np.float32)})
    with pytest.raises(DataError, match=r"no field of the steps that features.json lists \('steps/x', 'steps/y'"):
        count_steps(content, places(content), features)


def test_a_tensor_of_strings_is_text_or_stays_bytes() -> None:
    features = described(x=tensor("string"))
    assert decoded(features, "x", {"steps/x": [b"open", "ö".encode()]}) == ("open", "ö")
    assert decoded(features, "x", {"steps/x": [b"open", b"\xff"]}) == (b"open", b"\xff")
    assert features.steps["x"].field.kind == "text"


def test_a_field_of_another_length_is_refused() -> None:
    features = described(text=node("Text", text={}))
    with pytest.raises(DataError, match=r"field 'steps/text' has 3 values, but the episode 2 steps"):
        decoded(features, "text", {"steps/text": [b"a", b"b", b"c"]})


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(DataError, match=r"field 'steps/text' holds text that is not UTF-8"):
        decoded(described(text=node("Text", text={})), "text", {"steps/text": [b"\xff", b""]})


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_frames_are_decoded(dtype: str) -> None:
    import io

    import PIL.Image

    depth = np.arange(12, dtype=dtype).reshape(3, 4)
    raw = depth if dtype == "uint16" else depth.view(np.uint8).reshape(3, 4, 4)
    file = io.BytesIO()
    PIL.Image.fromarray(raw).save(file, "PNG")
    image = node("Image", image={"shape": {"dimensions": ["3", "4", "1"]}, "dtype": dtype, "encodingFormat": "png"})
    frames = decoded(described(depth=image), "depth", {"steps/depth": [file.getvalue()] * 2})
    assert isinstance(frames, EncodedFrames)
    np.testing.assert_array_equal(frames.decode(1), depth[..., None], strict=True)


def test_metadata_of_an_episode_is_one_value() -> None:
    tree = to_tree(described(x=tensor("int64")))
    tree["featuresDict"]["features"] |= {"id": tensor("int32"), "name": node("Text", text={}), "all": tensor("int8", 2)}
    features = parse_features(tree, "f.json")
    content = encode({"id": np.array([7]), "name": [b"seven"], "all": np.array([1, 2])})
    got = {n: decode_metadata(leaf, content, places(content), "here") for n, leaf in features.episode.items()}
    assert (got["id"], got["name"], got["all"].tolist()) == (7, "seven", [1, 2])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": node("Text", text={})}, r"f.json: there is no Dataset 'steps'.* Available: x"),
        ({"steps": node("Video")}, r"f.json: there is no Dataset 'steps'.* Not read: steps \(feature class Video\)"),
        ({"steps": {}}, r"f.json: field 'steps' has no pythonClassName"),
        ({"steps": node("Tensor")}, r"f.json: field 'steps' \(Tensor\) is incomplete: KeyError: 'tensor'"),
    ],
)
def test_a_description_that_cannot_be_used_names_file_and_field(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_features(node("FeaturesDict", featuresDict={"features": tree}), "f.json")


UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "class": (node("Videos"), "feature class Videos"),
    "box": (node("BBox", bboxFeature={}), "feature class BBox"),
    "words": (node("Translation", featuresDict={"features": {}}), "feature class Translation"),
    "label": (node("LabeledImage", labeledImage={}), "feature class LabeledImage"),
    "sound": (node("Audio", audio={"dtype": "int64"}), "feature class Audio"),
    "film": (sequence(node("Image", image={"dtype": "uint8"})), "a sequence of images in each step"),
    "wide": (node("Image", image={"dtype": "float64"}), "an image of float64"),
    "dtype": (tensor("bfloat16", 3), "a Tensor of dtype 'bfloat16'"),
    "zip": (tensor("int8", encoding="zip"), "a Tensor of encoding 'zip'"),
    "ragged": (tensor("int8", -1), "an unknown dimension inside a sequence"),
    "strings": (tensor("string", 3), "a 1-dimensional array of strings"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_field_that_is_not_read_is_left_out_and_the_others_stay(name: str) -> None:
    feature, why = UNREAD[name]
    features = described(**{name: feature}, action=tensor("float32", 7))
    assert list(features.steps) == ["action"]
    assert list(features.left_out) == [f"steps/{name}"]
    assert features.left_out[f"steps/{name}"].startswith(why)


def test_the_classes_of_a_description_stay() -> None:
    steps = {"a": node("Scalar", tensor={"dtype": "bool", "shape": {}, "encoding": "none"}), "b": tensor("bool")}
    steps |= {"c": tensor("string"), "d": node("Text", text={})}
    tree = node("FeaturesDict", featuresDict={"features": steps})
    dataset = {"steps": node("Dataset", sequence={"feature": tree, "length": "-1"})}
    assert to_tree(described(**steps)) == node("FeaturesDict", featuresDict={"features": dataset})


SPLITS = {"train": Split("train", ("a", "b"), (60, 43)), "val": Split("val", ("c",), (7,))}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("train", [("train", 0, 103)]),
        ("train[:95%]", [("train", 0, 98)]),
        ("train[95%:]", [("train", 98, 103)]),
        ("train[10%:20%]", [("train", 10, 21)]),
        ("train[5:10]", [("train", 5, 10)]),
        ("train[-3:]", [("train", 100, 103)]),
        ("train[-10%:]", [("train", 93, 103)]),
        ("train[90:9999]", [("train", 90, 103)]),
        ("train[:]", [("train", 0, 103)]),
        ("val + train[:1]", [("val", 0, 7), ("train", 0, 1)]),
        ("all", [("train", 0, 103), ("val", 0, 7)]),
        ("all[:50%]", [("train", 0, 52), ("val", 0, 4)]),
    ],
)
def test_a_part_of_a_split(expression: str, expected: list[tuple[str, int, int]]) -> None:
    """Boundaries are rounded as by TensorFlow Datasets 4.9.10."""
    assert [(p.split, p.start, p.stop) for p in parse_parts(expression, SPLITS, "here")] == expected


@pytest.mark.parametrize("count", [{"numBytes": "12"}, {"numShards": "1"}, {"statistics": {"numExamples": "3"}}])
def test_a_split_without_shard_lengths_says_what_to_do(count: dict[str, Any]) -> None:
    splits = [{"name": "train", **count}, {"name": "none"}, {"name": "val", "shardLengths": ["2"]}]
    info = parse_info({"name": "x", "version": "1.0.0", "splits": splits}, "i.json")
    assert [part.stop for part in parse_parts("val+none", info.splits, "i.json")] == [2, 0]
    with pytest.raises(
        DataError, match=r"i.json: split 'train' has no shardLengths.*Fetch dataset_info.json again.*tfds"
    ):
        parse_parts("train[:10%]", info.splits, "i.json")


@pytest.mark.parametrize("expression", ["train[", "train[1.5%:]", "", "train[::2]", "train++val"])
def test_a_malformed_split_expression_is_refused(expression: str) -> None:
    with pytest.raises(DataError, match=r"is no split. Write 'train'"):
        parse_parts(expression, SPLITS, "here")


def test_shards_are_named_by_their_template() -> None:
    assert shard_name("d", "val", 3, 12) == "d-val.tfrecord-00003-of-00012"
    assert shard_name("d", "val", 3, 12, "{SPLIT}/{SHARD_INDEX}.{FILEFORMAT}") == "val/00003.tfrecord"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "x", "version": "1.0.0"}, r"i.json: the field 'splits' is missing"),
        ({"name": "x", "fileFormat": "array_record"}, r"fileFormat is 'array_record'; only 'tfrecord' is read"),
        (
            {"name": "x", "version": "1", "splits": [{"name": "a", "shardLengths": ["no"]}]},
            r"i.json is not of the expected form",
        ),
    ],
)
def test_information_that_cannot_be_used_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_info(content, "i.json")
