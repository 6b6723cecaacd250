"""What the parts of a standard step are put through. `datasets/oxe/*.toml` name these; recipe/oxe.py lists the names.

Each takes the T rows of one field in one episode, (T, n), and gives (T, m) float32.

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
"""A gripper's command beyond these is settled; between them it is on its way."""
GRIPPER_MOVES = 0.1
"""A relative gripper command beyond this, to either side, is meant."""
FLOAT_BYTES = 4


def invert(rows: Rows) -> Rows:
    """1 = closed becomes 1 = open: 1 - x."""
    return np.float32(1) - rows


def clip(rows: Rows) -> Rows:
    """To [0, 1]."""
    return np.clip(rows, 0, 1)


def binarise(rows: Rows) -> Rows:
    """A gripper that moves gradually to one that is open (1) or closed (0).

    What is between takes the state that is reached after it. At an episode's end nothing is reached any more, and what
    is between takes the last value, whatever that is.

        0.99 0.6 0.3 0.0   ->   1 0 0 0
    """
    settled = (rows > OPEN_ABOVE) | (rows < CLOSED_BELOW)
    last = len(rows) - 1
    places = np.where(settled, np.arange(len(rows))[:, None], last)
    reached = np.minimum.accumulate(places[::-1], axis=0)[::-1]  # the next settled row, or the last one
    values = np.where(settled, (rows > OPEN_ABOVE).astype(np.float32), rows[last])
    return np.take_along_axis(values, reached, axis=0).astype(np.float32)


def relative_to_absolute(rows: Rows) -> Rows:
    """+1 to close, -1 to open, 0 to stay becomes 0 = closed, 1 = open.

    The first command is taken to have changed something, so before it the gripper was the opposite; without any
    command it was open.

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
    """What was reached instead of what was asked for: the next row less this one. Nothing follows the last row."""
    return np.concatenate([rows[1:] - rows[:-1], np.full_like(rows[:1], np.nan)])


def quaternion_to_euler(rows: Rows) -> Rows:
    """(T, 4) quaternions x, y, z, w -> (T, 3) angles about x, y, z [rad], applied in this order about fixed axes.

    Raises:
        DataError: the rows are no quaternions.
    """
    if rows.shape[1] != 4:
        raise DataError(f"quaternion_to_euler needs 4 columns (x, y, z, w), got {rows.shape[1]}")
    return rpy_from_quats(rows[:, [3, 0, 1, 2]])


def inflate(values: Sequence[bytes], width: int) -> Rows:
    """zlib-compressed float32, `width` numbers a step (QT-Opt's state).

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
    """The operations of a part, one after the other; `inflate` is not among them, as it does not take rows."""
    for operation in operations:
        rows = ON_ROWS[operation.name](rows)
    return rows


def _decompressed(value: bytes, size: int, step: int) -> bytes:
    """Never more than `size` bytes, whatever the file says."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(value, size + 1)
    except zlib.error as error:
        raise DataError(f"step {step} is not zlib-compressed: {error}") from error
    if len(data) != size:
        raise DataError(f"step {step} holds {'more than ' * (len(data) > size)}{min(len(data), size)} of {size} bytes")
    return data
