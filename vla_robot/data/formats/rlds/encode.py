"""Encodes an episode's fields as a record that TensorFlow Datasets reads; the inverse of decode.py."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode
from vla_robot.core.errors import DataError
from vla_robot.data.formats.rlds.example import encode
from vla_robot.data.formats.rlds.features import FLAT_VALUES, ROW_LENGTHS, Features, Leaf

Lists = dict[str, NDArray[Any] | Sequence[bytes]]
"""Name in the record -> its values."""


def encode_episode(episode: Episode, features: Features) -> bytes:
    """Encode an episode as a record.

    Args:
        episode: an episode with at least the fields of `features`.
        features: fields of the record.

    Raises:
        DataError: a field is missing, or its values do not fit `features`.
    """
    lists: Lists = {}
    for name, leaf in features.steps.items():
        column = _require(episode, episode.steps, name)
        if len(column) != len(episode):
            raise DataError(f"{episode.where}: field '{name}' has {len(column)} values, the episode {len(episode)}.")
        lists |= _lists(leaf, column, episode.where)
    for name, leaf in features.episode.items():
        value = _require(episode, episode.metadata, name)
        lists |= _lists(leaf, value if leaf.sequences else _alone(value), episode.where)
    return encode(lists)


def _require(episode: Episode, values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise DataError(f"{episode.where}: field '{name}' is missing. Available: {', '.join(sorted(values))}.")
    return values[name]


def _alone(value: Any) -> Any:
    """Return one value of an episode as a column of length 1."""
    return (value,) if isinstance(value, (str, bytes)) else np.asarray(value)[None]


def _lists(leaf: Leaf, column: Column, where: str) -> Lists:
    values: Any = column
    lengths: Lists = {}
    for level in range(leaf.sequences - 1):
        lengths[f"{leaf.path}/{ROW_LENGTHS}{level}"] = np.array([len(row) for row in values], np.int64)
        values = [value for row in values for value in row]
    path = f"{leaf.path}/{FLAT_VALUES}" if leaf.is_ragged else leaf.path
    if leaf.field.kind == "number" and leaf.encoding != "none":
        return lengths | _packed(leaf, values)
    if leaf.field.kind == "number":
        return lengths | {path: _numbers(leaf, values, where)}
    return lengths | {path: _blobs(leaf, values)}


def _numbers(leaf: Leaf, values: Any, where: str) -> NDArray[Any]:
    array = np.asarray(values, dtype=None if len(values) else leaf.field.dtype)
    inner = leaf.field.shape[leaf.depth :]
    if array.dtype != leaf.field.dtype or (len(array) and not _fits(array.shape[1:], inner)):
        raise DataError(
            f"{where}: field '{leaf.field.name}' is {array.dtype} {array.shape[1:]}, "
            f"expected {leaf.field.dtype} {inner}."
        )
    if array.dtype == np.uint64:
        return array.view(np.int64)
    return array.astype(leaf.stored_dtype)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (None, n) for n, e in zip(shape, expected, strict=True))


def _packed(leaf: Leaf, arrays: Sequence[NDArray[Any]]) -> Lists:
    raw = [np.ascontiguousarray(a, np.dtype(leaf.field.dtype).newbyteorder("<")).tobytes() for a in arrays]
    blobs = [zlib.compress(blob) for blob in raw] if leaf.encoding == "zlib" else raw
    if not leaf.has_stored_shape:
        return {leaf.path: blobs}
    return {f"{leaf.path}/value": blobs, f"{leaf.path}/shape": np.array([np.shape(a) for a in arrays], np.int64)}


def _blobs(leaf: Leaf, values: Any) -> list[bytes]:
    if leaf.field.kind == "image":
        return [values.encoded(step) for step in range(len(values))]
    return [value.encode() if isinstance(value, str) else value for value in values]
