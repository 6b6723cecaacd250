"""Episode of any dataset: named fields, each with one value per step. Frames stay encoded until they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, unknown

Kind = Literal["number", "image", "text"]

INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "natural_language_instruction",
    "observation/language_instruction",
    "observation/instruction",
    "instruction",
)
"""Fields in which datasets of Open-X-Embodiment store the instruction, the most common first."""
LETTERS = 0x110000
SURROGATES = range(0xD800, 0xE000)

OnProgress = Callable[[int, int], None]
"""Called with the number of episodes, or of shards, that are done, and with the number of all."""


@dataclass(frozen=True)
class Field:
    """One value of every step (or every episode).

    Attributes:
        name: keys joined by "/", e.g. "observation/state".
        kind: "number", "image" or "text".
        dtype: numpy's name of the numbers; "uint8", "uint16" or "float32" for pixels; "str" for text, "bytes" for text
            whose format allows any bytes, so that values that are not UTF-8 are given as bytes.
        shape: shape of one value, (H, W, C) for an image; None where it differs between values.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def is_ragged(self) -> bool:
        """Whether values of different steps have different shapes and cannot be stacked."""
        return self.kind == "number" and None in self.shape

    @property
    def is_colour(self) -> bool:
        """Whether its frames are colour images, not depth."""
        return self.kind == "image" and self.dtype == "uint8"

    def __str__(self) -> str:
        size = " x ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.kind if self.kind != 'number' else self.dtype}{f' {size}' if size else ''}"


class Frames(Protocol):
    """Frames of one camera in one episode."""

    def __len__(self) -> int:
        """Return the number of frames."""
        ...

    def encoded(self, step: int) -> bytes:
        """Return a frame as a JPEG or PNG file."""
        ...

    def decode(self, step: int) -> NDArray[Any]:
        """Return a frame as (H, W, 3) uint8; depth as (H, W, 1) of the field's dtype."""
        ...

    def check(self) -> None:
        """Raise DataError if a frame is absent or cut off. Frames that take long to decode are not decoded."""
        ...


Column = NDArray[Any] | Frames | tuple[str, ...] | tuple[bytes, ...] | tuple[NDArray[Any], ...]
"""Values of one field in one episode: (T, ...) numbers, frames, texts, or T arrays of different shapes."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        index: its index in the source.
        metadata: values of the whole episode, by field.
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
        """Return the (T, ...) values of a field of numbers.

        Raises:
            DataError: there is no such field, or it does not hold numbers that can be stacked.
        """
        values = self._column(name)
        if not isinstance(values, np.ndarray):
            raise DataError(f"{self.where}: field '{name}' holds no array of numbers.")
        return values

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the T texts of a field.

        Raises:
            DataError: there is no such field, or it does not hold texts.
        """
        values = self._column(name)
        if isinstance(values, tuple) and any(isinstance(value, bytes) for value in values):
            raise DataError(f"{self.where}: field '{name}' holds bytes that are no UTF-8 text.")
        if not (isinstance(values, tuple) and all(isinstance(value, str) for value in values)):
            raise DataError(f"{self.where}: field '{name}' holds no texts.")
        return tuple(str(value) for value in values)

    def frames(self, name: str) -> Frames:
        """Return the frames of a camera.

        Raises:
            DataError: there is no such field, or it does not hold frames.
        """
        values = self._column(name)
        if isinstance(values, (np.ndarray, tuple)):
            raise DataError(f"{self.where}: field '{name}' holds no frames.")
        return values

    def instructions(self) -> tuple[str, ...]:
        """Return the T instructions of the steps.

        Raises:
            DataError: the episode has no instruction, or only empty ones.
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
        """Return the T texts of a field of instructions: texts, or letters as numbers (Language Table).

        Raises:
            DataError: there is no such field, or it holds neither.
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


def codes_to_text(codes: NDArray[Any]) -> str:
    """Convert letters as numbers, padded with zeros, to text (Language Table).

    Raises:
        DataError: a number is not a letter's code.

    >>> codes_to_text(np.array([103, 111, 0, 0]))
    'go'
    """
    numbers: list[int] = codes.tolist()
    letters = numbers[: numbers.index(0)] if 0 in numbers else numbers
    wrong = next((n for n in letters if not 0 <= n < LETTERS or n in SURROGATES), None)
    if wrong is not None:
        raise DataError(f"{wrong} stands for no letter")
    return "".join(map(chr, letters))
