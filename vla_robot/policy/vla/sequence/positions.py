"""M-RoPE: rotary positions by time, height and width, as Qwen2-VL counts them.

    one word, an image of 2 x 3 tokens, two words

    time    0   1 1 1 1 1 1   4 5
    height  0   1 1 1 2 2 2   4 5
    width   0   1 2 3 1 2 3   4 5

Text counts on all three axes alike. An image begins where text would; the text after it continues after the larger of
the image's sides. All tokens of a still image have the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSpan:
    """Place of an image's tokens in a row.

    Attributes:
        begin: column of the first one.
        rows: rows of the grid of tokens, after the connector merged patches.
        columns: columns of that grid.
    """

    begin: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        """One past the column of the last token."""
        return self.begin + self.rows * self.columns


def mrope(length: int, images: Sequence[ImageSpan], device: torch.device | None = None) -> Tensor:
    """Return (3, length) int64 positions of one row, made on a device.

    Args:
        length: number of tokens of the row.
        images: spans in their order, with at least one other token between two of them.
        device: where they are made; None for main memory.
    """
    parts: list[Tensor] = []
    column = position = 0
    for image in images:
        parts.append(_text(position, image.begin - column, device))
        position += image.begin - column
        parts.append(position + _grid(image.rows, image.columns, device))
        position += max(image.rows, image.columns)
        column = image.end
    parts.append(_text(position, length - column, device))
    return torch.cat(parts, dim=1)


def _text(begin: int, count: int, device: torch.device | None) -> Tensor:
    return torch.arange(begin, begin + count, device=device).expand(3, -1)


def _grid(rows: int, columns: int, device: torch.device | None) -> Tensor:
    """Return (3, rows * columns) positions, row by row; the time is 0."""
    height = torch.arange(rows, device=device)[:, None].expand(-1, columns).flatten()
    width = torch.arange(columns, device=device).repeat(rows)
    return torch.stack([torch.zeros_like(height), height, width])
