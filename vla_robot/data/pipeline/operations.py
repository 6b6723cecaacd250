"""The operations on the parts of a standard step. `datasets/oxe/*.toml` name them; recipe/oxe.py lists the names.

Each takes the T rows of one field in one episode, (T, n), and returns (T, m) float32.

Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/rlds/utils/data_utils.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.geometry import rpy_from_quats
from vla_robot.recipe.oxe import Operation

Rows = NDArray[np.float32]

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05
"""Beyond these values a gripper is open or closed; between them it moves."""
GRIPPER_MOVES = 0.1
"""Smallest magnitude of a relative gripper command that counts as one."""
FLOAT_BYTES = 4


def invert(rows: Rows) -> Rows:
    """Return 1 - x, which turns 1 = closed into 1 = open."""
    return np.float32(1) - rows


def clip(rows: Rows) -> Rows:
    """Clip to [0, 1]."""
    return np.clip(rows, 0, 1)


def binarise(rows: Rows) -> Rows:
    """Turn a gripper's gradual values into open (1) and closed (0).

    A value in between becomes the open or closed state that follows it. Where none follows, at an episode's end, it
    becomes the episode's last value.

        0.99 0.6 0.3 0.0   ->   1 0 0 0
    """
    settled = (rows > OPEN_ABOVE) | (rows < CLOSED_BELOW)
    last = len(rows) - 1
    places = np.where(settled, np.arange(len(rows))[:, None], last)
    reached = np.minimum.accumulate(places[::-1], axis=0)[::-1]  # the next settled row, or the last one
    values = np.where(settled, (rows > OPEN_ABOVE).astype(np.float32), rows[last])
    return np.take_along_axis(values, reached, axis=0).astype(np.float32)


def relative_to_absolute(rows: Rows) -> Rows:
    """Turn commands (+1 to close, -1 to open, 0 to stay) into states (0 = closed, 1 = open).

    The first command is assumed to change the state, so that the gripper was in the opposite state before it; without
    any command it was open.

        0 0 +1 0 -1   ->   1 1 0 0 1
    """
    moves = np.where(rows < -GRIPPER_MOVES, 1, np.where(rows > GRIPPER_MOVES, -1, 0))
    first = np.take_along_axis(moves, (moves != 0).argmax(axis=0)[None], axis=0)  # (1, n), 0 where nothing moves
    start = np.where(first == 0, 1, -first)
    places = np.where(moves != 0, np.arange(len(rows))[:, None], -1)
    newest = np.maximum.accumulate(places, axis=0)  # the newest command's row, -1 before the first one
    states = np.where(newest < 0, start, np.take_along_axis(moves, np.maximum(newest, 0), axis=0))
    return (states / 2 + 0.5).astype(np.float32)


def change_to_next(rows: Rows) -> Rows:
    """Return the next row minus this one: the motion that was reached. The last row, which has no next one, is NaN."""
    return np.concatenate([rows[1:] - rows[:-1], np.full_like(rows[:1], np.nan)])


def quaternion_to_euler(rows: Rows) -> Rows:
    """Convert quaternions x, y, z, w, (T, 4), to angles about the fixed axes x, y, z in this order, (T, 3) [rad].

    Raises:
        DataError: the rows do not have 4 columns.
    """
    if rows.shape[1] != 4:
        raise DataError(f"quaternion_to_euler needs 4 columns (x, y, z, w), got {rows.shape[1]}")
    return rpy_from_quats(rows[:, [3, 0, 1, 2]])


def inflate(values: Sequence[bytes], width: int) -> Rows:
    """Decompress zlib-compressed float32, `width` numbers a step (QT-Opt's state), to (T, width).

    Raises:
        DataError: a step is damaged, or holds another number of values.
    """
    rows = np.empty((len(values), width), dtype=np.float32)
    for step, value in enumerate(values):
        rows[step] = np.frombuffer(_decompressed(value, width * FLOAT_BYTES, step), dtype="<f4")
    return rows


ON_ROWS: Mapping[str, Callable[[Rows], Rows]] = {
    "invert": invert,
    "clip": clip,
    "binarise": binarise,
    "relative_to_absolute": relative_to_absolute,
    "change_to_next": change_to_next,
    "quaternion_to_euler": quaternion_to_euler,
}


def apply(operations: Sequence[Operation], rows: Rows) -> Rows:
    """Apply operations one after the other. `inflate` is not allowed, since it takes no rows."""
    for operation in operations:
        rows = ON_ROWS[operation.name](rows)
    return rows


def _decompressed(value: bytes, size: int, step: int) -> bytes:
    """Decompress `size` bytes. Raise DataError for any other size, without decompressing more."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(value, size + 1)
    except zlib.error as error:
        raise DataError(f"step {step} is not zlib-compressed: {error}") from error
    if len(data) != size:
        raise DataError(f"step {step} holds {'more than ' * (len(data) > size)}{min(len(data), size)} of {size} bytes")
    return data
