"""Decodes a field of a record to numpy arrays, texts or frames."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column
from vla_robot.core.errors import DataError
from vla_robot.core.untrusted import MALFORMED, shortened
from vla_robot.data.formats.bounds import MAX_COLUMN_BYTES, MAX_STEPS, MAX_VALUE_BYTES, require_bytes
from vla_robot.data.formats.rlds.example import BYTES, FLOATS, INTS, KIND_NAMES, Place, byte_places, count, floats, ints
from vla_robot.data.formats.rlds.features import FLAT_VALUES, ROW_LENGTHS, Features, Leaf
from vla_robot.data.formats.source import EncodedFrames

MOST_NAMED = 3
STEP_MARKS = ("is_first", "is_last", "is_terminal")
"""Fields that RLDS prescribes for each step."""


def count_steps(record: bytes, places: Mapping[str, Place], features: Features) -> int:
    """Return the number of an episode's steps, by STEP_MARKS or the smallest field; 0 for an empty episode.

    Raises:
        DataError: the record has no field of a step, or one field is empty and another is not.
    """
    present = [leaf for leaf in features.steps.values() if _counted_path(leaf) in places and 0 not in leaf.field.shape]
    if not present:
        named = ", ".join(f"'{leaf.path}'" for leaf in list(features.steps.values())[:MOST_NAMED])
        raise DataError(f"the record has no field of the steps that features.json lists ({named}, ...)")
    leaf = min(present, key=lambda leaf: (leaf.field.name not in STEP_MARKS, *_cost(leaf)))
    steps = _steps_by(leaf, record, places)
    if steps == 0:
        full = next((other for other in present if _steps_by(other, record, places)), None)
        if full is not None:
            raise DataError(f"field '{leaf.path}' is empty, but field '{full.path}' is not")
    if steps > MAX_STEPS:
        raise DataError(f"the episode has {steps} steps; at most {MAX_STEPS} are read")
    return steps


def _steps_by(leaf: Leaf, record: bytes, places: Mapping[str, Place]) -> int:
    place = places[_counted_path(leaf)]
    is_one_each = leaf.is_ragged or place.kind == BYTES
    return count(record, place) // (1 if is_one_each else _values_per_step(leaf))


def _counted_path(leaf: Leaf) -> str:
    """Return the path of the list of a record whose length gives the number of steps."""
    return f"{leaf.path}/{ROW_LENGTHS}0" if leaf.is_ragged else _values_path(leaf)


def decode_steps(leaf: Leaf, record: bytes, places: Mapping[str, Place], steps: int, where: str) -> Column:
    """Return the values of one field at all steps.

    Args:
        leaf: the field.
        record: bytes of the episode.
        places: from `example.places`.
        steps: number of steps.
        where: file and record, for error messages.

    Raises:
        DataError: the record does not hold what features.json says; the message names the field.
    """
    try:
        values = _step_values(leaf, record, places, steps, where)
    except MALFORMED as error:
        raise _malformed(leaf, where, error) from error
    if len(values) != steps:
        raise DataError(f"{where}: field '{leaf.path}' has {len(values)} values, but the episode {steps} steps.")
    if leaf.field.kind == "image" and not leaf.is_ragged:
        return EncodedFrames(values, leaf.field, where)
    return values


def decode_metadata(leaf: Leaf, record: bytes, places: Mapping[str, Place], where: str) -> Any:
    """Return a value that the episode has once. Raises DataError as `decode_steps` does."""
    try:
        return _episode_value(leaf, record, places, where)
    except MALFORMED as error:
        raise _malformed(leaf, where, error) from error


def _malformed(leaf: Leaf, where: str, error: Exception) -> DataError:
    return DataError(
        f"{where}: field '{leaf.path}' is not what features.json says ({leaf.field}): {type(error).__name__}: "
        f"{shortened(error)}."
    )


def _step_values(leaf: Leaf, record: bytes, places: Mapping[str, Place], steps: int, where: str) -> Any:
    if leaf.is_ragged:
        return _ragged(leaf, record, places, where)
    if leaf.field.kind == "number":
        return _numbers(leaf, record, places, (steps,), where)
    return _entries(leaf, record, places, where)


def _episode_value(leaf: Leaf, record: bytes, places: Mapping[str, Place], where: str) -> Any:
    if leaf.is_ragged:
        return _ragged(leaf, record, places, where)
    if leaf.field.kind == "number":
        count_of = (-1,) if leaf.sequences else (1,)
        values = _numbers(leaf, record, places, count_of, where)
        return values if leaf.sequences else values[0]
    entries = _entries(leaf, record, places, where)
    if leaf.sequences:
        return entries
    if len(entries) != 1:
        raise DataError(f"{where}: field '{leaf.path}' has {len(entries)} values, expected one.")
    return entries[0]


def _numbers(
    leaf: Leaf, record: bytes, places: Mapping[str, Place], outer: tuple[int, ...], where: str
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Return numbers, (*outer, *shape); a tuple of arrays where their shapes differ."""
    if leaf.encoding != "none":
        return _packed_arrays(leaf, record, places, where)
    inner = leaf.field.shape[leaf.depth :]
    flat = _flat(leaf, record, _find(places, leaf.path, leaf, where), where)
    shape = [*outer, *(-1 if size is None else size for size in inner)]
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise DataError(
            f"{where}: field '{leaf.path}' holds {len(flat)} numbers, which do not fill the shape "
            f"{' x '.join('?' if n < 0 else str(n) for n in shape)} of features.json."
        ) from error


def _flat(leaf: Leaf, record: bytes, place: Place, where: str) -> NDArray[Any]:
    """Return the numbers of a list, (N,), with the dtype of features.json; a copy, so that the record can be freed."""
    wanted = FLOATS if leaf.stored_dtype is np.float32 else INTS
    if place.kind not in (wanted, 0):
        raise DataError(
            f"{where}: field '{leaf.path}' holds {KIND_NAMES[place.kind]}, but features.json says {leaf.field.dtype}."
        )
    values = floats(record, place) if wanted == FLOATS else ints(record, place)
    return values.astype(leaf.field.dtype)


def _entries(leaf: Leaf, record: bytes, places: Mapping[str, Place], where: str) -> tuple[Any, ...]:
    """Return the entries of a field: texts as str, all others as bytes."""
    return _texts(leaf, _blobs(leaf, record, _find(places, _values_path(leaf), leaf, where), where), where)


def _texts(leaf: Leaf, blobs: tuple[bytes, ...], where: str) -> tuple[Any, ...]:
    """Decode texts; other fields, and a Tensor of strings that are not all UTF-8, stay bytes."""
    if leaf.field.kind != "text":
        return blobs
    try:
        return tuple(blob.decode() for blob in blobs)
    except UnicodeDecodeError as error:
        if leaf.field.dtype == "bytes":
            return blobs
        raise DataError(f"{where}: field '{leaf.path}' holds text that is not UTF-8: {error}.") from error


def _blobs(leaf: Leaf, record: bytes, place: Place, where: str) -> tuple[bytes, ...]:
    if place.kind not in (BYTES, 0):
        raise DataError(
            f"{where}: field '{leaf.path}' holds {KIND_NAMES[place.kind]}, but features.json says {leaf.field.kind}."
        )
    return tuple(record[offset : offset + size] for offset, size in byte_places(record, place))


def _packed_arrays(
    leaf: Leaf, record: bytes, places: Mapping[str, Place], where: str
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Return arrays that are stored as their bytes, compressed or not."""
    blobs = _blobs(leaf, record, _find(places, _values_path(leaf), leaf, where), where)
    inner = tuple(-1 if size is None else size for size in leaf.field.shape[leaf.depth :])
    shapes: Sequence[tuple[int, ...]] = [inner] * len(blobs)
    if leaf.has_stored_shape:
        stored = ints(record, _find(places, f"{leaf.path}/shape", leaf, where)).reshape(len(blobs), len(inner))
        shapes = [tuple(row) for row in stored.tolist()]
    try:
        arrays = _unpack_all(leaf, blobs, shapes, where)
    except (ValueError, zlib.error) as error:
        raise DataError(f"{where}: field '{leaf.path}' holds an array that cannot be unpacked: {error}.") from error
    return arrays if None in leaf.field.shape else np.stack(arrays)


def _unpack_all(
    leaf: Leaf, blobs: Sequence[bytes], shapes: Sequence[tuple[int, ...]], where: str
) -> tuple[NDArray[Any], ...]:
    arrays: list[NDArray[Any]] = []
    size = 0
    for blob, shape in zip(blobs, shapes, strict=True):
        arrays.append(_unpack(blob, leaf, shape))
        size += arrays[-1].nbytes
        require_bytes(size, MAX_COLUMN_BYTES, f"{where}: field '{leaf.path}'")
    return tuple(arrays)


def _unpack(blob: bytes, leaf: Leaf, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = _inflate(blob, leaf, shape) if leaf.encoding == "zlib" else blob
    return np.frombuffer(raw, np.dtype(leaf.field.dtype).newbyteorder("<")).reshape(shape)


def _inflate(blob: bytes, leaf: Leaf, shape: tuple[int, ...]) -> bytes:
    """Decompress an array's bytes, at most the size of its shape, or MAX_VALUE_BYTES where the shape is open."""
    size = math.prod(shape) * np.dtype(leaf.field.dtype).itemsize
    most = size if 0 <= size <= MAX_VALUE_BYTES and min(shape, default=0) >= 0 else MAX_VALUE_BYTES
    stream = zlib.decompressobj()
    raw = stream.decompress(blob, most + 1)
    if len(raw) > most or not stream.eof:
        raise ValueError(f"it has more than {most} bytes, or is cut off")
    return raw


def _ragged(leaf: Leaf, record: bytes, places: Mapping[str, Place], where: str) -> tuple[Any, ...]:
    """Return values in nested sequences; the innermost sequences are cut from the flat list first."""
    place = _find(places, f"{leaf.path}/{FLAT_VALUES}", leaf, where)
    values: Any
    if leaf.field.kind == "number":
        inner = tuple(size or 0 for size in leaf.field.shape[leaf.depth :])
        values = _flat(leaf, record, place, where).reshape(-1, *inner)
    else:
        values = _texts(leaf, _blobs(leaf, record, place, where), where)
    for level in reversed(range(leaf.sequences - 1)):
        lengths = ints(record, _find(places, f"{leaf.path}/{ROW_LENGTHS}{level}", leaf, where)).tolist()
        if sum(lengths) != len(values):
            raise DataError(f"{where}: field '{leaf.path}' has {len(values)} values in rows of {sum(lengths)}.")
        stops = np.cumsum(lengths).tolist()
        values = tuple(values[stop - length : stop] for length, stop in zip(lengths, stops, strict=True))
    return values


def _find(places: Mapping[str, Place], path: str, leaf: Leaf, where: str) -> Place:
    if path not in places:
        raise DataError(f"{where}: the record has no field '{path}', which features.json lists as {leaf.field}.")
    return places[path]


def _values_path(leaf: Leaf) -> str:
    return f"{leaf.path}/value" if leaf.has_stored_shape else leaf.path


def _values_per_step(leaf: Leaf) -> int:
    return math.prod(size or 1 for size in leaf.field.shape)


def _cost(leaf: Leaf) -> tuple[bool, int]:
    """Return a key that sorts fields by the time to count them: bools, single numbers, long vectors, sequences."""
    return leaf.is_ragged, _values_per_step(leaf)
