"""Build tiny RLDS datasets in the structures that Open-X-Embodiment's datasets are published in.

    python tests/tools/publish_rlds.py FOLDER [NAME...]      all 62, or those that are named

Structures are tests/golden/oxe/published.json; the values are invented. Nothing of vla_robot is imported: protobuf,
TFRecord framing and both JSON files are written here once more, so that a test that reads them does not compare our
reader with our writer. Sources: tensorflow/datasets 4.9.10, core/example_serializer.py and core/features/*.py;
protobuf.dev/programming-guides/encoding; tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import PIL.Image

SCHEMAS = Path(__file__).parents[1] / "golden" / "oxe" / "published.json"
STEPS = "steps/"
EPISODE_STEPS = (6, 5)
"""Steps of the episodes of split "train"; the other splits have one episode of the second length."""
MODULES = {
    "FeaturesDict": "features_dict",
    "Dataset": "dataset_feature",
    "Tensor": "tensor_feature",
    "Scalar": "scalar",
    "Image": "image_feature",
    "Text": "text_feature",
}
GRIPPER = (-1.0, -0.05, 0.0, 0.02, 0.4, 0.7, 0.97, 1.0)
"""Values on all sides of every threshold that a gripper's command is compared with."""
QUATERNION_ACTIONS = ("cmu_playing_with_food", "furniture_bench_dataset", "iamlab_cmu_pickup_insert")
"""Datasets whose action holds a rotation in columns 3 to 6, by how their names begin."""
MOST_RANDOM = 64
"""Larger arrays hold one number a step: they are depth, points and embeddings, which nothing is computed from."""

Field = Mapping[str, Any]
Values = Any
"""(T, ...) numbers, T texts, or T files of images; of an episode's own fields, T is 1."""


@dataclass(frozen=True)
class Built:
    """A dataset that was written.

    Attributes:
        folder: of its version.
        info_name: what its dataset_info.json calls it.
        version: e.g. "0.1.0".
        episodes: split -> its episodes, each field path -> values.
    """

    folder: Path
    info_name: str
    version: str
    episodes: Mapping[str, Sequence[Mapping[str, Values]]]


def schemas() -> dict[str, Any]:
    """Name in the registry -> published structure."""
    return json.loads(SCHEMAS.read_text())


def info_names(name: str, schema: Mapping[str, Any]) -> dict[str, str]:
    """Version -> what dataset_info.json of that version calls the dataset."""
    told = schema.get("info_name", schema.get("info_name_inferred", name))
    return dict(told) if isinstance(told, dict) else {schema["version"]: told}


def build(root: Path, name: str, version: str = "") -> Built:
    """Write a dataset of invented values to root/VERSION.

    Args:
        root: the dataset's folder.
        name: in the registry.
        version: of those whose name is known; "" takes the one whose structure is known.
    """
    schema = schemas()[name]
    version = version or schema["version"]
    info_name = info_names(name, schema)[version]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    episodes: dict[str, list[dict[str, Values]]] = {}
    for split in sorted(schema["splits"]):
        lengths = EPISODE_STEPS if split == "train" else EPISODE_STEPS[1:]
        before = sum(map(len, episodes.values()))
        episodes[split] = [invent(name, schema["features"], n, before + i, rng) for i, n in enumerate(lengths)]
    folder = root / version
    folder.mkdir(parents=True)
    write(folder, info_name, version, schema["features"], episodes)
    return Built(folder, info_name, version, episodes)


def write(
    folder: Path,
    name: str,
    version: str,
    fields: Mapping[str, Field],
    episodes: Mapping[str, Sequence[Mapping[str, Values]]],
) -> None:
    """features.json, dataset_info.json and one shard for each split."""
    splits = [write_split(folder, name, split, fields, rows) for split, rows in episodes.items()]
    info = {"name": name, "version": version, "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    (folder / "features.json").write_text(json.dumps(features_tree(fields), indent=2))


def write_split(
    folder: Path, name: str, split: str, fields: Mapping[str, Field], episodes: Sequence[Mapping[str, Values]]
) -> dict[str, Any]:
    """One shard; its part of dataset_info.json."""
    shard = folder / f"{name}-{split}.tfrecord-00000-of-00001"
    shard.write_bytes(b"".join(framed(example(fields, episode)) for episode in episodes))
    return {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(shard.stat().st_size),
        "shardLengths": [str(len(episodes))],
    }


# -- values ------------------------------------------------------------------------------------------


def invent(name: str, fields: Mapping[str, Field], steps: int, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Values of one episode."""
    values = {
        path: invent_field(path, field, steps if path.startswith(STEPS) else 1, number, rng)
        for path, field in fields.items()
    }
    if name.startswith(QUATERNION_ACTIONS):
        rotations = values["steps/action"][:, 3:7]
        rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    return values


def invent_field(path: str, field: Field, count: int, number: int, rng: np.random.Generator) -> Values:
    shape, dtype = tuple(field["shape"]), field["dtype"]
    if dtype == "string":
        return [text_of(path, number, step).encode() for step in range(count)]
    if field["class"] == "Image":
        return [
            image(shape, dtype, field.get("encoding", "jpeg"), 37 * number + 11 * s + len(path)) for s in range(count)
        ]
    if path.endswith("/instruction"):  # letters as numbers, filled up with zeros
        letters = np.frombuffer(text_of(path, number, 0).encode(), np.uint8)
        return np.tile(np.pad(letters, (0, shape[0] - len(letters))), (count, 1)).astype(dtype)
    if dtype == "bool":
        return rng.random((count, *shape)) < 0.5
    if not np.issubdtype(np.dtype(dtype), np.floating):
        return rng.integers(0, 2, (count, *shape)).astype(dtype)
    if np.prod(shape) > MOST_RANDOM:
        return np.ones((count, *shape), dtype) * rng.normal(size=(count, *[1] * len(shape))).astype(np.float32)
    values = rng.normal(size=(count, *shape)).astype(np.float32)
    if shape in ((), (1,)):
        values[:] = rng.choice(GRIPPER, values.shape)
    elif len(shape) == 1:
        values[:, -1] = rng.choice(GRIPPER, count)
    return values.astype(dtype)


def text_of(path: str, number: int, step: int) -> str:
    """An instruction is the same at all steps of an episode; any other text is not."""
    return f"do task {number}" if path.endswith("instruction") else f"{path} {number} {step}"


@cache
def image(shape: tuple[int, int, int], dtype: str, form: str, value: int) -> bytes:
    """A file of one colour or distance."""
    height, width, _ = shape
    file = io.BytesIO()
    if dtype == "uint8":
        colour = (value % 256, 5 * value % 256, 7 * value % 256)
        PIL.Image.new("RGB", (width, height), colour).save(file, form)
    elif dtype == "uint16":
        PIL.Image.fromarray(np.full((height, width), 300 + value, np.uint16)).save(file, "png")
    else:  # float32: its four bytes stand in the four channels of a PNG
        PIL.Image.fromarray(np.full((height, width), value, np.float32).view(np.uint8).reshape(height, width, 4)).save(
            file, "png"
        )
    return file.getvalue()


# -- features.json -----------------------------------------------------------------------------------


def features_tree(fields: Mapping[str, Field]) -> dict[str, Any]:
    """As FeaturesDict.save_config writes it."""
    root: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for path, field in fields.items():
        name = field.get("key") or path.rpartition("/")[2]  # a name may hold a slash of its own
        parents = path.removesuffix(name).strip("/").split("/") if path != name else []
        inner = root
        if parents[:1] == ["steps"]:
            inner, parents = steps, parents[1:]
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf(field)
    steps_node = {"pythonClassName": class_name("Dataset"), "sequence": {"feature": nested(steps), "length": "-1"}}
    tree = nested(root)
    tree["featuresDict"]["features"]["steps"] = steps_node
    return tree


def nested(content: dict[str, Any]) -> dict[str, Any]:
    children = {name: node if "pythonClassName" in node else nested(node) for name, node in content.items()}
    return {"pythonClassName": class_name("FeaturesDict"), "featuresDict": {"features": children}}


def leaf(field: Field) -> dict[str, Any]:
    kind, dtype, shape = field["class"], field["dtype"], [str(n) for n in field["shape"]]
    node: dict[str, Any] = {"pythonClassName": class_name(kind)}
    dims = {"dimensions": shape} if shape else {}
    if kind == "Text":
        return node | {"text": {}}
    if kind == "Image":
        form = {"encodingFormat": field["encoding"]} if "encoding" in field else {}
        return node | {"image": {"shape": dims, "dtype": dtype, **form}}
    return node | {"tensor": {"shape": dims, "dtype": dtype, "encoding": field.get("encoding", "none")}}


def class_name(kind: str) -> str:
    return f"tensorflow_datasets.core.features.{MODULES[kind]}.{kind}"


# -- records -----------------------------------------------------------------------------------------


def example(fields: Mapping[str, Field], values: Mapping[str, Values]) -> bytes:
    """A serialised tf.train.Example: message Example { Features { map<string, Feature> } }."""
    entries = b""
    for path, field in fields.items():
        entry = message(1, path.encode()) + message(2, feature(field, values[path]))
        entries += message(1, entry)
    return message(1, entries)


def feature(field: Field, values: Values) -> bytes:
    """bytes_list = 1, float_list = 2 (packed), int64_list = 3 (packed)."""
    if field["dtype"] == "string" or field["class"] == "Image":
        return message(1, b"".join(message(1, value) for value in values))
    if field.get("encoding") == "zlib":
        return message(1, b"".join(message(1, zlib.compress(value.tobytes())) for value in values))
    flat = np.asarray(values).ravel()
    if np.issubdtype(flat.dtype, np.floating):
        return message(2, message(1, flat.astype("<f4").tobytes()))
    return message(3, message(1, b"".join(varint(int(value)) for value in flat)))


def message(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + checksum(length) + content + checksum(content)


def checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) | (crc << 17) % 2**32
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


if __name__ == "__main__":
    for dataset in sys.argv[2:] or schemas():
        print(build(Path(sys.argv[1]) / dataset, dataset).folder)
