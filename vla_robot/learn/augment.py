"""Image augmentation on uint8 frames."""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(frames: Tensor, pixels: int, generator: torch.Generator | None) -> Tensor:
    """Move each image by up to `pixels` in both directions; the border repeats.

    Args:
        frames: (B, N, H, W, 3) uint8.
        pixels: largest shift.
        generator: randomness.

    Returns:
        (B, N, H, W, 3) uint8.

    Source: Yarats et al. 2021, "Mastering Visual Continuous Control" (DrQ-v2), without its sub-pixel interpolation.
    """
    B, N, H, W, _ = frames.shape
    shift = torch.randint(-pixels, pixels + 1, (2, B, N, 1), generator=generator)
    rows = (torch.arange(H) + shift[0]).clamp(0, H - 1)  # (B, N, H)
    columns = (torch.arange(W) + shift[1]).clamp(0, W - 1)  # (B, N, W)
    b, n = torch.arange(B)[:, None, None, None], torch.arange(N)[None, :, None, None]
    return frames[b, n, rows[..., :, None], columns[..., None, :]]
