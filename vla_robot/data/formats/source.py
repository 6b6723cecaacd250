"""Functions that the readers of all formats share; each reader implements the port EpisodeSource.

    source = open_source("bridge_orig/1.0.0", "train[:95%]")     data/formats/open.py; RLDS, LeRobot and HDF5 alike
    source.lengths                                               (E,) steps of each episode
    episode = source.episode(3, fields=["action"])               only these fields are parsed
    episode.steps["action"]                                      (T, 7)
    source.encoded(3, "observation/image_0", 12)                 one JPEG or PNG, read from its place on disk

The name of a field is the keys of a step, joined by "/". Frames stay encoded until they are decoded one by one, so that
an order over millions of frames needs no frame in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import INSTRUCTIONS, Field
from vla_robot.core.errors import DataError, unknown
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.images import decode_image, require_whole

ACTIONS = ("action", "actions")
"""Names of the field of the action, the most common first."""
STATES = ("observation/state", "state")
"""Names of the field of the arm's state, the most common first."""


@dataclass(frozen=True)
class EncodedFrames:
    """Frames that are stored as JPEG or PNG files.

    Attributes:
        files: one file per step.
        field: description of the field.
        where: file and record, for error messages.
    """

    files: Sequence[bytes]
    field: Field
    where: str

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, step: int) -> bytes:
        return self.files[step]

    def decode(self, step: int) -> NDArray[Any]:
        where = f"{self.where}, field '{self.field.name}', step {step}"
        return decode_image(self.files[step], self.field.dtype, where, self.field.shape)

    def check(self) -> None:
        for step, file in enumerate(self.files):
            require_whole(file, f"{self.where}, field '{self.field.name}', step {step}")


def instruction_text(fields: Mapping[str, Field]) -> str | None:
    """Return the name of the field that holds the instruction as text; None when there is none."""
    return next((name for name in INSTRUCTIONS if name in fields and fields[name].kind == "text"), None)


def require_fields(
    fields: Collection[str] | None,
    available: Mapping[str, Field],
    where: str,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Collection[str]:
    """Return the names of the fields to parse; all available ones for None.

    Args:
        fields: names of the wanted fields.
        available: fields that can be parsed.
        where: the dataset, for the error message.
        left_out: field of the dataset that is not read -> why.

    Raises:
        DataError: a field does not exist or is not read.
    """
    if fields is None:
        return available.keys()
    for name in fields:
        if name in left_out:
            raise DataError(f"{where}: field '{name}' is not read: {left_out[name]}.")
        if name not in available:
            raise DataError(f"{where}: " + unknown("field", name, available))
    return fields


def tell_left_out(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line about the fields of a dataset that are not read; none when all are.

    Args:
        left_out: field -> why.
    """
    unread = [f"{name}: {why}" for name, why in left_out.items()]
    return (f"Fields that are not read and were left out: {'; '.join(unread)}.",) if unread else ()


def tell_empty(num_empty: int) -> tuple[str, ...]:
    """Return a line about the episodes of 0 steps that a reader left out; none when there are none."""
    return (f"Episodes of 0 steps that were left out: {num_empty}.",) if num_empty else ()


def require_index(index: int, count: int, what: str) -> None:
    """Raise IndexError unless 0 <= index < count."""
    if not 0 <= index < count:
        raise IndexError(f"{what} {index} of {count}")


def require_finite(values: NDArray[Any], what: str) -> None:
    """Raise DataError, naming the step, unless all of (T, ...) numbers are finite.

    Args:
        values: numbers of consecutive steps.
        what: file, episode and field, for the error message.
    """
    rows = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DataError(
            f"{what} is not finite at step {int(bad[0])} ({np.array2string(rows[bad[0]], precision=3, threshold=16)}), "
            f"and at {len(bad) - 1} more. Remove the episode; `vla data convert --skip-corrupt` writes the dataset "
            "without it."
        )


def find_damage(source: EpisodeSource) -> dict[int, str]:
    """Read every episode once, without decoding videos. Return index of a damaged episode -> why.

    A null, a number of an action or a state that is not finite, and a frame that is absent or cut off count as damage.
    """
    return {index: why for index in range(len(source)) if (why := _damage(source, index))}


def _damage(source: EpisodeSource, index: int) -> str:
    """Return why an episode cannot be read; "" when it can."""
    try:
        episode = source.episode(index)
        for name, field in source.fields.items():
            if field.kind == "image":
                episode.frames(name).check()
            elif name in (*ACTIONS, *STATES):
                require_finite(episode.numbers(name), f"{episode.where}: field '{name}'")
    except DataError as error:
        return str(error)
    return ""
