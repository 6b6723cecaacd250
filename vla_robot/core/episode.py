"""What an episode of any dataset is: named fields, each with one value a step. Frames stay encoded until asked for."""

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
"""Where the datasets of Open-X-Embodiment keep what the robot was told to do, the usual place first."""
LETTERS = 0x110000
SURROGATES = range(0xD800, 0xE000)

OnProgress = Callable[[int, int], None]
"""Called with the number of episodes, or of shards, that are done, and with the number of all."""


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
