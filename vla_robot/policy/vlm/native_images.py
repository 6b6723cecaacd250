"""Frames that keep their aspect ratio: sides that are multiples of a cell, within a budget of pixels.

Qwen2-VL   480 x 640 -> 476 x 644 px   the nearest multiples, scaled only where they miss the budget
Gemma 4    480 x 640 -> 672 x 912 px   scaled up or down to the budget
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vla_robot.core.errors import ContractError
from vla_robot.core.image import check_image, resize
from vla_robot.core.messages import Image
from vla_robot.policy.vla.inputs.image_preprocessing import NONE
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor, Scales

MAX_ASPECT_RATIO = 200
"""Largest ratio of a frame's sides; Qwen2-VL's own limit."""


@dataclass(frozen=True)
class Budget:
    """Sizes that a frame may have after resizing.

    Attributes:
        cell: both sides are multiples of it [px]: what one token of the sequence shows.
        smallest: least number of pixels.
        largest: greatest number of pixels.
    """

    cell: int
    smallest: int
    largest: int


def within(budget: Budget, height: int, width: int) -> tuple[int, int]:
    """Return the nearest multiples of the cell, scaled if they miss the budget, as Qwen2-VL's processor does."""
    cell, pixels = budget.cell, height * width
    H, W = round(height / cell) * cell, round(width / cell) * cell
    if budget.largest < H * W:
        by = math.sqrt(pixels / budget.largest)
        return max(cell, math.floor(height / by / cell) * cell), max(cell, math.floor(width / by / cell) * cell)
    if budget.smallest > H * W:
        by = math.sqrt(budget.smallest / pixels)
        return math.ceil(height * by / cell) * cell, math.ceil(width * by / cell) * cell
    return H, W


def filling(budget: Budget, height: int, width: int) -> tuple[int, int]:
    """Return the largest multiples of the cell within the budget, as Gemma 4's processor does."""
    cell = budget.cell
    by = math.sqrt(budget.largest / (height * width))
    H, W = (math.floor(by * side / cell) * cell for side in (height, width))
    longest = budget.largest // cell**2 * cell
    if H == 0:
        return cell, min(width // height * cell, longest)
    if W == 0:
        return min(height // width * cell, longest), cell
    return H, W


@dataclass(frozen=True)
class NativePreprocessor(FramePreprocessor):
    """Resizes frames within a budget and normalises them.

    Attributes:
        budget: sizes that a frame may have.
        fit: chooses one of them for a frame: `within` or `filling`.
        mean: by RGB channel, in [0, 1].
        std: by RGB channel, in [0, 1].
    """

    budget: Budget
    fit: Callable[[Budget, int, int], tuple[int, int]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def after(self, image_preprocessing: str) -> NativePreprocessor:
        """See `FramePreprocessor`. Only "none": the others make frames square, which these models do not need."""
        if image_preprocessing != NONE:
            raise ContractError(
                f"image_preprocessing is '{image_preprocessing}', which makes frames square; this model reads frames "
                "of any aspect ratio: leave it out."
            )
        return self

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """See `FramePreprocessor`. Raises ContractError for a frame that is too long and narrow for the model."""
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise ContractError(f"a frame of {height}x{width} px is too narrow: at most {MAX_ASPECT_RATIO} to 1.")
        return self.fit(self.budget, height, width)

    def resized(self, image: Image) -> Image:
        check_image(image)
        return resize(image, *self.shape(*image.shape[:2]))

    @property
    def scales(self) -> tuple[Scales, Scales]:
        return (self.mean,), (self.std,)
