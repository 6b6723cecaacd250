"""What every dataset looks like to the code that learns from it: episodes of steps, whatever they are stored as.

    source = open_source("bridge_orig/1.0.0", "train[:95%]")     data/formats/open.py; RLDS, LeRobot and HDF5 alike
    source.lengths                                               (E,) steps of each episode
    episode = source.episode(3, fields=["action"])               only what is asked for is parsed
    episode.steps["action"]                                      (T, 7)
    source.encoded(3, "observation/image_0", 12)                 one JPEG or PNG, read from its place on disk

Fields are named as a step's keys joined by "/". Frames stay encoded until somebody asks for pixels, so an order can be
shuffled over millions of frames without holding one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, unknown
from vla_robot.data.formats.images import decode_image, require_whole

Kind = Literal["number", "image", "text"]

INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "natural_language_instruction",
    "observation/language_instruction",
    "observation/instruction",
    "instruction",
)
"""Where the datasets of Open-X-Embodiment keep what the robot was told to do, the usual place first."""
ACTIONS = ("action", "actions")
"""Where datasets keep the action, the usual place first."""
STATES = ("observation/state", "state")
"""Where datasets keep the arm's own state, the usual place first."""
LETTERS = 0x110000
SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class Field:
    """One value that every step (or every episode) has.

    Attributes:
        name: keys joined by "/", e.g. "observation/state".
        kind: "number", "image" or "text".
        dtype: numpy's name of the numbers; "uint8", "uint16" or "float32" for pixels; "str" for text, "bytes" for text
            whose format allows any bytes, so that values which are no UTF-8 are given as bytes.
        shape: of one value, (H, W, C) for an image; None where it differs from value to value.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_ragged(self) -> bool:
        """Values of different steps have different shapes, so that they do not stack."""
        return self.kind == "number" and None in self.shape

    @property
    def is_colour(self) -> bool:
        """Frames that a policy can see: not depth."""
        return self.kind == "image" and self.dtype == "uint8"

    def __str__(self) -> str:
        size = " x ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.kind if self.kind != 'number' else self.dtype}{f' {size}' if size else ''}"


class Frames(Protocol):
    """The frames of one camera in one episode."""

    def __len__(self) -> int:
        """How many."""
        ...

    def encoded(self, step: int) -> bytes:
        """The frame as a JPEG or PNG file."""
        ...

    def decode(self, step: int) -> NDArray[Any]:
        """The frame as (H, W, 3) uint8; (H, W, 1) of the field's dtype for depth."""
        ...

    def check(self) -> None:
        """Raise DataError when a frame is absent or cut off. What takes long to decode is not decoded."""
        ...


@dataclass(frozen=True)
class EncodedFrames:
    """Frames that are stored as JPEG or PNG files.

    Attributes:
        files: one per step.
        field: what they are.
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


Column = NDArray[Any] | Frames | tuple[str, ...] | tuple[bytes, ...] | tuple[NDArray[Any], ...]
"""All values of one field in one episode: (T, ...) numbers, frames, texts, or T arrays of different shapes."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        index: its place in the source.
        metadata: what is said once about the whole episode, by field.
        steps: field -> its T values.
        length: T.
        where: file and record, for error messages.
    """

    index: int
    metadata: Mapping[str, Any]
    steps: Mapping[str, Column]
    length: int
    where: str

    def __len__(self) -> int:
        return self.length

    def numbers(self, name: str) -> NDArray[Any]:
        """(T, ...) the values of a field of numbers.

        Raises:
            DataError: no such field, or it does not hold numbers that stack.
        """
        values = self._column(name)
        if not isinstance(values, np.ndarray):
            raise DataError(f"{self.where}: field '{name}' holds no array of numbers.")
        return values

    def texts(self, name: str) -> tuple[str, ...]:
        """T texts.

        Raises:
            DataError: no such field, or it does not hold texts.
        """
        values = self._column(name)
        if isinstance(values, tuple) and any(isinstance(value, bytes) for value in values):
            raise DataError(f"{self.where}: field '{name}' holds bytes that are no UTF-8 text.")
        if not (isinstance(values, tuple) and all(isinstance(value, str) for value in values)):
            raise DataError(f"{self.where}: field '{name}' holds no texts.")
        return tuple(str(value) for value in values)

    def frames(self, name: str) -> Frames:
        """The frames of a camera.

        Raises:
            DataError: no such field, or it does not hold frames.
        """
        values = self._column(name)
        if isinstance(values, (np.ndarray, tuple)):
            raise DataError(f"{self.where}: field '{name}' holds no frames.")
        return values

    def instructions(self) -> tuple[str, ...]:
        """T times what the robot was told to do.

        Raises:
            DataError: the episode has none, or only empty ones.
        """
        name = next((name for name in INSTRUCTIONS if name in self.steps), None)
        if name is None:
            raise DataError(
                f"{self.where}: no instruction. Looked for {', '.join(INSTRUCTIONS)}; the steps have "
                f"{', '.join(sorted(self.steps)) or 'nothing'}."
            )
        texts = self.told_in(name)
        if not any(text.strip() for text in texts):
            raise DataError(f"{self.where}: the instruction in field '{name}' is empty at all {len(self)} steps.")
        return texts

    def told_in(self, name: str) -> tuple[str, ...]:
        """T texts of a field that holds instructions: as texts, or as letters in numbers (Language Table).

        Raises:
            DataError: no such field, or it holds neither.
        """
        values = self._column(name)
        if not isinstance(values, np.ndarray):
            return self.texts(name)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"{self.where}: field '{name}' holds numbers and no instruction.")
        try:
            return tuple(codes_to_text(codes) for codes in values)
        except DataError as error:
            raise DataError(f"{self.where}: field '{name}': {error}.") from error

    def _column(self, name: str) -> Column:
        if name not in self.steps:
            raise DataError(f"{self.where}: " + unknown("field", name, self.steps))
        return self.steps[name]


@runtime_checkable
class MarksGaps(Protocol):
    """A source that knows of episodes which are parts of a longer one, steps between them being lost."""

    def goes_on(self, index: int) -> bool:
        """Whether the robot went on after this episode's last step: what it did then is not known."""
        ...


class EpisodeSource(Protocol):
    """A dataset, or a part of one, in order. Processes may be forked from, and it may be pickled into, others."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        ...

    @property
    def location(self) -> str:
        """Where it lies: a path or a URL."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """What each step has."""
        ...

    @property
    def metadata_fields(self) -> Mapping[str, Field]:
        """What each episode has."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Field that is not read -> why."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the dataset beside damage."""
        ...

    @property
    def skipped(self) -> Sequence[object]:
        """What was left out as damaged, each printed as place and reason."""
        ...

    @property
    def num_skipped(self) -> int:
        """How many episodes that are."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        ...

    @property
    def splits(self) -> Mapping[str, int]:
        """Every split of the whole dataset and how many episodes it has."""
        ...

    @property
    def rate_hz(self) -> float | None:
        """Steps per second, where the format says."""
        ...

    def __len__(self) -> int:
        """How many episodes."""
        ...

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        """One episode.

        Args:
            index: 0 to len - 1.
            fields: which to parse; None parses all.

        Raises:
            IndexError: there is no such episode.
            DataError: no such field, or the file is damaged.
        """
        ...

    def encoded(self, index: int, field: str, step: int) -> bytes:
        """One frame as a JPEG or PNG file, without reading the rest of its episode.

        Raises:
            IndexError: there is no such episode or step.
            DataError: no such camera, or the file is damaged.
        """
        ...


def codes_to_text(codes: NDArray[Any]) -> str:
    """Letters as numbers, filled up with zeros (Language Table).

    Raises:
        DataError: a number stands for no letter.

    >>> codes_to_text(np.array([103, 111, 0, 0]))
    'go'
    """
    numbers: list[int] = codes.tolist()
    letters = numbers[: numbers.index(0)] if 0 in numbers else numbers
    wrong = next((n for n in letters if not 0 <= n < LETTERS or n in SURROGATES), None)
    if wrong is not None:
        raise DataError(f"{wrong} stands for no letter")
    return "".join(map(chr, letters))


def instruction_text(fields: Mapping[str, Field]) -> str | None:
    """The field that holds what the robot was told, as text; None when there is none."""
    return next((name for name in INSTRUCTIONS if name in fields and fields[name].kind == "text"), None)


def require_fields(
    fields: Collection[str] | None,
    available: Mapping[str, Field],
    where: str,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Collection[str]:
    """The fields to parse; all of them for None.

    Args:
        fields: their names.
        available: those that can be parsed.
        where: the dataset, for the error message.
        left_out: those that a dataset has and that are not read, and why.

    Raises:
        DataError: one does not exist or is not read.
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
    """One line about the fields of a dataset that are not read; none when all are.

    Args:
        left_out: field -> why.
    """
    unread = [f"{name}: {why}" for name, why in left_out.items()]
    return (f"Fields that are not read and were left out: {'; '.join(unread)}.",) if unread else ()


def tell_empty(num_empty: int) -> tuple[str, ...]:
    """One line about the episodes of 0 steps that a reader left out; none when there are none."""
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
    """Episode that is damaged -> why. Every episode is read once; videos are not decoded.

    A null, a number of an action or a state that is not finite, and a frame that is absent or cut off count as damage.
    """
    return {index: why for index in range(len(source)) if (why := _damage(source, index))}


def _damage(source: EpisodeSource, index: int) -> str:
    """Why an episode cannot be read; empty when it can."""
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
