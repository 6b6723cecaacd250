"""Boxes in words, as PaliGemma says them: four `<locNNNN>`, sixteen `<segNNN>` of a mask if there is one, and a name.

    detect red cube         <loc0561><loc0375><loc0690><loc0471> red cube
    segment red cube        <loc0561><loc0375><loc0690><loc0471><seg004>...<seg117> red cube
    detect cube ; arm       <loc0561>...<loc0471> cube ; <loc0000>...<loc0500> arm

The order is y_min, x_min, y_max, x_max. A number N stands for N / 1024 of the picture's height or width, as in the
published decoders; the published training data has round(1023 * fraction) (google-research/big_vision,
pp/proj/paligemma/segmentation.py). A mask's codes are entries of the codebook of a model of its own, which is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.untrusted import shortened

BINS = 1024
CODES, CODE_VALUES = 16, 128
"""Codes of one mask, and values that a code can have."""
LOC_TOKENS = tuple(f"<loc{number:04d}>" for number in range(BINS))
SEG_TOKENS = tuple(f"<seg{number:03d}>" for number in range(CODE_VALUES))

DETECT, SEGMENT = "detect ", "segment "
"""Beginnings of questions whose answers are boxes."""

_OBJECT = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})?\s*([^<>;]*)", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)
_SEPARATOR = ";"


@dataclass(frozen=True)
class Box:
    """A named rectangle of a picture, in fractions of its height and width from its upper left corner.

    Attributes:
        y_min: upper edge, in [0, 1].
        x_min: left edge, in [0, 1].
        y_max: lower edge, in [y_min, 1].
        x_max: right edge, in [x_min, 1].
        name: name of the object; empty if the answer has none.
        codes: 16 numbers below 128 that describe its mask; empty for a box without one.
    """

    y_min: float
    x_min: float
    y_max: float
    x_max: float
    name: str = ""
    codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ContractError if the edges are not in order inside the picture, or there are not 0 or 16 codes."""
        edges = (self.y_min, self.x_min, self.y_max, self.x_max)
        if not (0 <= self.y_min <= self.y_max <= 1 and 0 <= self.x_min <= self.x_max <= 1):
            raise ContractError(
                f"a box's edges y_min, x_min, y_max, x_max are {edges}; the order is 0 <= min <= max <= 1."
            )
        if len(self.codes) not in (0, CODES) or not all(0 <= code < CODE_VALUES for code in self.codes):
            raise ContractError(f"a mask has {CODES} codes in [0, {CODE_VALUES}), got {self.codes}.")

    @property
    def area(self) -> float:
        """Share of the picture that it covers."""
        return (self.y_max - self.y_min) * (self.x_max - self.x_min)

    def in_pixels(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return (x_min, y_min, x_max, y_max) [px] in a picture of this size."""
        return self.x_min * width, self.y_min * height, self.x_max * width, self.y_max * height


def asks_for_boxes(question: str) -> bool:
    """Return whether the answer to a question is a list of boxes."""
    return question.startswith((DETECT, SEGMENT))


def boxes_in_words(boxes: Iterable[Box]) -> str:
    """Return an answer that names these boxes; numbers are rounded to the nearest of 1024."""
    return f" {_SEPARATOR} ".join(_said(box) for box in boxes)


def boxes_of(answer: str, question: str = "") -> tuple[Box, ...]:
    """Return the boxes that an answer names; none for an empty answer, with which a model says that it sees none.

    Args:
        answer: what the policy said.
        question: what it was asked; if it asks to segment, each box must have a mask's codes.

    Raises:
        PolicyError: the answer is no list of boxes: other words, too few or too many numbers, a number out of range, or
            a box whose lower or right edge comes before its upper or left one.
    """
    if not answer.strip():
        return ()
    boxes = tuple(_parsed(part.strip(), answer) for part in answer.split(_SEPARATOR))
    if question.startswith(SEGMENT) and not all(box.codes for box in boxes):
        raise _no_boxes(answer, f"a box without the {CODES} <seg> codes of its mask, which 'segment' asks for")
    return boxes


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share by the area that they cover together, in [0, 1]; 0 for two empty ones."""
    height = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    width = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    shared = max(0.0, height) * max(0.0, width)
    union = one.area + other.area - shared
    return shared / union if union > 0 else 0.0


def _said(box: Box) -> str:
    edges = (box.y_min, box.x_min, box.y_max, box.x_max)
    places = "".join(LOC_TOKENS[round(edge * (BINS - 1))] for edge in edges)
    return f"{places}{''.join(SEG_TOKENS[code] for code in box.codes)} {box.name}".rstrip()


def _parsed(part: str, answer: str) -> Box:
    found = _OBJECT.fullmatch(part)
    if found is None:
        raise _no_boxes(answer, f"'{shortened(part)}'")
    places, codes, name = found.groups()
    numbers = [int(number) for number in _NUMBER.findall(places)]
    values = tuple(int(number) for number in _NUMBER.findall(codes or ""))
    if max(numbers) >= BINS or any(value >= CODE_VALUES for value in values):
        raise _no_boxes(answer, f"a number above <loc{BINS - 1}> or <seg{CODE_VALUES - 1}>")
    y_min, x_min, y_max, x_max = (number / BINS for number in numbers)
    if y_min > y_max or x_min > x_max:
        raise _no_boxes(answer, "a box whose lower right corner lies before its upper left one")
    return Box(y_min, x_min, y_max, x_max, name.strip(), values)


def _no_boxes(answer: str, found: str) -> PolicyError:
    return PolicyError(
        f"the answer is no list of boxes: it has {found}. Each box is <loc> y_min, x_min, y_max, x_max, then a name; "
        f"the whole answer is '{shortened(answer)}'. Has the policy learned to detect?"
    )
