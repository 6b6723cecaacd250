"""Reads and writes features.json: the fields of episodes and steps, and how a record stores them.

TensorFlow Datasets describes a dataset as a tree of feature classes. Each leaf gives the name of the values in a
record, their type and shape, and in how many sequences they are:

    episode_metadata/file_path      0: one value an episode
    steps/action                    1: one value a step; the values of all steps are one list, row by row
    steps/boxes                     2: a sequence in each step; flat values, and the lengths of the rows in lists of
                                    their own

A leaf of a class or type that is not read (Video, Audio, BBox, ...) is left out and listed; the others are read.

Source: tensorflow/datasets 4.9.10, core/proto/feature.proto, core/features/*.py, core/example_serializer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_robot.core.episode import Field, Kind
from vla_robot.core.errors import DataError
from vla_robot.core.untrusted import MALFORMED, shortened
from vla_robot.data.formats.bounds import MAX_VALUE_BYTES

FEATURES_FILE = "features.json"
STEPS = "steps"
FLAT_VALUES = "ragged_flat_values"
ROW_LENGTHS = "ragged_row_lengths_"

MODULE = "tensorflow_datasets.core.features."
CLASSES = {
    "FeaturesDict": "features_dict.FeaturesDict",
    "Dataset": "dataset_feature.Dataset",
    "Sequence": "sequence_feature.Sequence",
    "Tensor": "tensor_feature.Tensor",
    "Scalar": "scalar.Scalar",
    "Image": "image_feature.Image",
    "Text": "text_feature.Text",
    "ClassLabel": "class_label_feature.ClassLabel",
}
"""Feature class that is read -> its place in TensorFlow Datasets."""
WRITTEN = ("Tensor", "Scalar", "Image", "Text")
"""Classes of leaves that are written. A ClassLabel becomes a Scalar, since its names are not stored."""

NUMBERS = frozenset(np.dtype(code).name for code in "?bhilqBHILQefd")
PIXELS = ("uint8", "uint16", "float32")
MAX_DIMENSIONS = 8
MAX_DEPTH = 16
ENCODINGS = ("none", "bytes", "zlib")

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Leaf:
    """One value of an episode or of its steps, as a record stores it.

    Attributes:
        path: name of its list in a record.
        field: description of one value; its name is the path without "steps/".
        sequences: number of nested sequences that contain the value.
        encoding: "none"; "bytes" or "zlib" for an array that is stored as its bytes; "png" or "jpeg".
        feature: feature class in features.json; "" lets `to_tree` choose one.
    """

    path: str
    field: Field
    sequences: int
    encoding: str = "none"
    feature: str = dataclasses.field(default="", compare=False)

    @property
    def is_step(self) -> bool:
        return self.path.startswith(STEPS + "/")

    @property
    def depth(self) -> int:
        """Number of nested sequences that contain the value, without the sequence of steps."""
        return self.sequences - self.is_step

    @property
    def is_ragged(self) -> bool:
        """Whether a record stores the values flat, with the lengths of the rows in other lists."""
        return self.sequences >= 2

    @property
    def stored_dtype(self) -> type[np.float32] | type[np.int64]:
        """Type in a record, which has only these two; float64 loses digits, integers and bools do not."""
        return np.float32 if np.issubdtype(np.dtype(self.field.dtype), np.floating) else np.int64

    @property
    def has_stored_shape(self) -> bool:
        """Whether each value's shape is stored, since several dimensions are unknown."""
        return self.encoding in ("bytes", "zlib") and self.field.shape.count(None) > 1


@dataclass(frozen=True)
class Features:
    """The fields of a dataset's episodes.

    Attributes:
        steps: field of each step -> leaf.
        episode: field of each episode -> leaf.
        left_out: path of a field that is not read -> why.
    """

    steps: Mapping[str, Leaf]
    episode: Mapping[str, Leaf]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Fields of the steps that hold frames."""
        return tuple(name for name, leaf in self.steps.items() if leaf.field.kind == "image")


def parse_features(tree: Any, where: str) -> Features:
    """Return the leaves of a features.json.

    Args:
        tree: content of the file.
        where: path of the file, for error messages.

    Raises:
        DataError: no field of the steps can be read, or a feature lacks its type; the message names the field.
    """
    left_out: dict[str, str] = {}
    leaves = list(_leaves(tree, "", 0, where, left_out))
    steps = {leaf.field.name: leaf for leaf in leaves if leaf.is_step}
    if not steps:
        top = sorted({leaf.path.partition("/")[0] for leaf in leaves})
        unread = "".join(f" Not read: {path} ({why})." for path, why in left_out.items())
        raise DataError(
            f"{where}: there is no Dataset '{STEPS}' with a field that can be read, so it holds no episodes of steps. "
            f"Available: {', '.join(top) or 'nothing'}.{unread}"
        )
    return Features(steps, {leaf.field.name: leaf for leaf in leaves if not leaf.is_step}, left_out)


def to_tree(features: Features) -> dict[str, Any]:
    """Return the content of features.json, the inverse of `parse_features`."""
    episode = _nest({leaf.path: _describe(leaf) for leaf in features.episode.values()})
    steps = _nest({name: _describe(leaf) for name, leaf in features.steps.items()})
    dataset = {"pythonClassName": MODULE + CLASSES["Dataset"], "sequence": {"feature": steps, "length": "-1"}}
    episode["featuresDict"]["features"][STEPS] = dataset
    return episode


class _UnreadError(Exception):
    """A field of a kind that is not read; the message names the kind."""


def _leaves(node: Any, path: str, sequences: int, where: str, left_out: dict[str, str]) -> Iterator[Leaf]:
    """Yield the leaves below a node that are read; add the others to `left_out`."""
    if path.count("/") + sequences > MAX_DEPTH:
        raise DataError(f"{where}: field '{shortened(path)}' lies more than {MAX_DEPTH} features deep.")
    kind = _class_of(node, path, where)
    try:
        if kind == "FeaturesDict":
            for name, child in node["featuresDict"]["features"].items():
                yield from _leaves(child, f"{path}/{name}" if path else name, sequences, where, left_out)
        elif kind in ("Dataset", "Sequence"):
            yield from _leaves(node["sequence"]["feature"], path, sequences + 1, where, left_out)
        else:
            yield _leaf(kind, node, path, sequences)
    except _UnreadError as reason:
        left_out[path] = str(reason)
    except MALFORMED as error:
        raise DataError(f"{where}: field '{path}' ({kind}) is incomplete: {type(error).__name__}: {error}.") from error


def _class_of(node: Any, path: str, where: str) -> str:
    if not isinstance(node, Mapping) or "pythonClassName" not in node:
        raise DataError(f"{where}: field '{path or '(all)'}' has no pythonClassName.")
    return str(node["pythonClassName"]).rpartition(".")[2]


def _leaf(kind: str, node: Mapping[str, Any], path: str, sequences: int) -> Leaf:
    if kind not in CLASSES:
        raise _UnreadError(f"feature class {kind}")
    if kind == "Text":
        leaf = _make(path, "text", "str", (), sequences)
    elif kind == "ClassLabel":
        leaf = _make(path, "number", "int64", (), sequences)
    elif kind == "Image":
        leaf = _image(path, node["image"], sequences)
    else:
        leaf = _tensor(path, node["tensor"], sequences)
    return replace(leaf, feature=kind)


def _make(path: str, kind: Kind, dtype: str, shape: Shape, sequences: int, encoding: str = "none") -> Leaf:
    """Return a leaf; each sequence in a step is a further dimension of the step's value."""
    leaf = Leaf(path, Field(path.removeprefix(STEPS + "/"), kind, dtype, shape), sequences, encoding)
    return replace(leaf, field=replace(leaf.field, shape=(None,) * leaf.depth + shape))


def _image(path: str, content: Mapping[str, Any], sequences: int) -> Leaf:
    dtype = str(content["dtype"])
    if dtype not in PIXELS:
        raise _UnreadError(f"an image of {dtype}")
    shape = _shape(content.get("shape", {}))
    leaf = _make(path, "image", dtype, shape, sequences, str(content.get("encodingFormat", "")))
    if leaf.is_ragged:
        raise _UnreadError("a sequence of images in each step")
    return leaf


def _tensor(path: str, content: Mapping[str, Any], sequences: int) -> Leaf:
    dtype, shape = str(content["dtype"]), _shape(content.get("shape", {}))
    encoding = str(content.get("encoding", "none"))
    if encoding not in ENCODINGS:
        raise _UnreadError(f"a Tensor of encoding '{encoding}'")
    if dtype in ("string", "object"):
        if shape:
            raise _UnreadError(f"a {len(shape)}-dimensional array of strings")
        return _make(path, "text", "bytes", (), sequences)
    if dtype not in NUMBERS:
        raise _UnreadError(f"a Tensor of dtype '{dtype}'")
    if encoding == "none" and sequences and None in shape:
        raise _UnreadError("an unknown dimension inside a sequence, which only encoding 'bytes' or 'zlib' can store")
    return _make(path, "number", dtype, shape, sequences, encoding)


def _shape(proto: Mapping[str, Any]) -> Shape:
    """Return a shape from protobuf's JSON, which writes 64-bit numbers as strings, and -1 for unknown."""
    sizes = [int(size) for size in proto.get("dimensions", [])]
    if len(sizes) > MAX_DIMENSIONS or not all(size <= MAX_VALUE_BYTES for size in sizes):
        raise ValueError(f"its shape is {shortened(sizes)}")
    return tuple(None if size < 0 else size for size in sizes)


def _describe(leaf: Leaf) -> dict[str, Any]:
    """Return the node of a leaf in features.json."""
    node = _describe_value(leaf)
    for _ in range(leaf.depth):
        node = {"pythonClassName": MODULE + CLASSES["Sequence"], "sequence": {"feature": node, "length": "-1"}}
    return node


def _describe_value(leaf: Leaf) -> dict[str, Any]:
    field = leaf.field
    shape = field.shape[leaf.depth :]
    chosen = leaf.feature if leaf.feature in WRITTEN else _class_for(leaf)
    name = {"pythonClassName": MODULE + CLASSES[chosen]}
    if chosen == "Text":
        return name | {"text": {}}
    dims = {"dimensions": [str(-1 if size is None else size) for size in shape]} if shape else {}
    if chosen == "Image":
        return name | {"image": {"shape": dims, "dtype": field.dtype, "encodingFormat": leaf.encoding}}
    dtype = field.dtype if field.kind == "number" else "string"
    return name | {"tensor": {"shape": dims, "dtype": dtype, "encoding": leaf.encoding}}


def _class_for(leaf: Leaf) -> str:
    """Return a feature class for a leaf without one."""
    if leaf.field.kind == "image":
        return "Image"
    if leaf.field.kind == "text" and leaf.field.dtype == "str":
        return "Text"
    return "Tensor" if leaf.field.shape[leaf.depth :] or leaf.encoding != "none" else "Scalar"


def _nest(nodes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one FeaturesDict of FeaturesDicts for nodes by path."""
    root: dict[str, Any] = {"pythonClassName": MODULE + CLASSES["FeaturesDict"], "featuresDict": {"features": {}}}
    for path, node in nodes.items():
        *parents, name = path.split("/")
        inner = root
        for parent in parents:
            features = inner["featuresDict"]["features"]
            inner = features.setdefault(
                parent, {"pythonClassName": MODULE + CLASSES["FeaturesDict"], "featuresDict": {"features": {}}}
            )
        inner["featuresDict"]["features"][name] = node
    return root
