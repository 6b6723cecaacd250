"""Image augmentation on uint8 frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHIFT, COLOUR = 1, 13
"""Parts of a seed that separate the random streams of augmentation from others with the same seed."""

Augment = Callable[[Tensor, Tensor, NDArray[np.int64]], Tensor]
"""(B, N, S, S, 3) uint8 frames, (B, N) False where a camera is missing, (B,) sample numbers -> augmented frames."""


@dataclass(frozen=True)
class RandomShift:
    """Augmentation that moves each image by up to `pixels` horizontally and vertically and repeats the border.

    Attributes:
        pixels: largest shift [px].
        seed: seed of the shifts; a step's shifts depend on it and the step.
        rows: samples of a step over all ranks.

    Source: Yarats et al. 2021, "Mastering Visual Continuous Control" (DrQ-v2), without its sub-pixel interpolation.
    """

    pixels: int
    seed: int
    rows: int

    def __call__(self, frames: Tensor, is_there: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        """Return the shifted frames of consecutive samples of one step."""
        return shifted(frames, self.drawn(len(frames), frames.shape[1], numbers))

    def drawn(self, samples: int, cameras: int, numbers: NDArray[np.int64]) -> Tensor:
        """Return the (2, B, N, 1) int64 shifts [px] of consecutive samples of one step."""
        step, first = divmod(int(numbers[0]), self.rows)
        mixed = np.random.SeedSequence([self.seed, SHIFT, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        size = (2, self.rows, cameras, 1)
        shift = torch.randint(-self.pixels, self.pixels + 1, size, generator=generator)
        return shift[:, first : first + samples]


@dataclass(frozen=True)
class OpenVLAAugment:
    """Augmentation that applies `openvla_augment` with a random number per frame.

    Attributes:
        seed: seed of these numbers; a sample's numbers depend on it and the sample's number.
    """

    seed: int

    def __call__(self, frames: Tensor, is_there: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        """Return the frames, augmented in place where a camera is there."""
        drawn = [np.random.default_rng([self.seed, COLOUR, int(number)]) for number in numbers]
        chance = np.stack([rng.random(frames.shape[1], dtype=np.float32) for rng in drawn])
        frames[is_there] = openvla_augment(frames[is_there], torch.from_numpy(chance)[is_there])
        return frames


def shifted(frames: Tensor, shift: Tensor) -> Tensor:
    """Move each of (B, N, H, W, 3) images by its own (2, B, N, 1) shift [px], up and to the left."""
    B, N, H, W, _ = frames.shape
    rows = (torch.arange(H) + shift[0]).clamp(0, H - 1)  # (B, N, H)
    columns = (torch.arange(W) + shift[1]).clamp(0, W - 1)  # (B, N, W)
    b, n = torch.arange(B)[:, None, None, None], torch.arange(N)[None, :, None, None]
    return frames[b, n, rows[..., :, None], columns[..., None, :]]


CROP_AREA = 0.9
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05
"""Largest change to either side: added to the value, twice a factor around 1, and in turns of the colour circle."""


def openvla_augment(frames: Tensor, chance: Tensor) -> Tensor:
    """Change crop, brightness, contrast, saturation and hue as OpenVLA's training did.

    The reference draws all five from one seed and gets the same number, so that a brighter image also has more
    contrast and colour, and the crop moves along the diagonal. Its policies were trained on that, so it is kept.

    Args:
        frames: (B, H, W, 3) uint8.
        chance: (B,) in [0, 1), one number per image.

    Returns:
        (B, H, W, 3) uint8.

    Source: openvla/openvla @c8f03f48, prismatic/vla/datasets/datasets.py; dlimp, augmentations.py; tf.image.
    """
    u = chance.to(torch.float32)[:, None, None, None]
    x = _crop(frames.to(torch.float32) / 255, chance.to(torch.float32)).clamp(0, 1)
    x = (x + BRIGHTNESS * (2 * u - 1)).clamp(0, 1)
    mean = x.mean(dim=(1, 2), keepdim=True)
    x = ((x - mean) * _factor(CONTRAST, u) + mean).clamp(0, 1)
    hue, saturation, value = _to_hsv(x)
    saturation = (saturation * _factor(SATURATION, u[..., 0])).clamp(0, 1)
    x = _to_rgb((hue + HUE * (2 * u[..., 0] - 1)) % 1, saturation, value).clamp(0, 1)
    return (x * 255).to(torch.uint8)  # truncates, as the reference does


def _factor(spread: float, u: Tensor) -> Tensor:
    return 1 - spread + 2 * spread * u


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """Cut a part of CROP_AREA from (B, H, W, 3) and stretch it to the same size, corners on corners."""
    side = CROP_AREA**0.5
    B, H, W, _ = x.shape
    start = u * (1 - side)
    rows, columns = (2 * (start[:, None] + side * torch.linspace(0, 1, n)) - 1 for n in (H, W))
    grid = torch.stack(
        [columns[:, None, :].expand(B, H, W), rows[:, :, None].expand(B, H, W)], dim=-1
    )  # (B, H, W, 2), x before y
    taken = torch.nn.functional.grid_sample(x.movedim(-1, 1), grid, align_corners=True, padding_mode="border")
    return taken.movedim(1, -1)


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert (B, H, W, 3) in [0, 1] to hue in turns, saturation and value, each (B, H, W)."""
    red, green, blue = x.unbind(-1)
    value, least = x.amax(-1), x.amin(-1)
    spread = value - least
    safe = torch.where(spread > 0, spread, 1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1), 0)
    return torch.where(spread > 0, hue / 6, 0) % 1, saturation, value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Invert `_to_hsv`."""
    offsets = torch.tensor([5.0, 3.0, 1.0])  # red, green and blue along the colour circle, in sixths
    k = (offsets + hue[..., None] * 6) % 6
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(k, 4 - k).clamp(0, 1))
