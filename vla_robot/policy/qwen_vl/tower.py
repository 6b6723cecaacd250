"""Qwen-VL's tower for still frames of one size: half of the library's work for patches, one attention for all frames.

The library's tower reads videos, of which each may have another size. It multiplies both halves of a patch, which are
the same frame twice, computes attention frame by frame, and makes positions frame by frame. Weights and results are the
library's; sums are added in another order.

Source: transformers 5.23, models/qwen2_vl, qwen2_5_vl, qwen3_vl, and vision_utils.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface

TOGETHER = "vla_robot_flash_frames"
"""Name of our attention in transformers, which tells the limits of sequences to those with "flash" in their name."""


def read_still_frames(visual: Any) -> None:
    """Make a tower of the library read still frames: (P, 3 * patch * patch) patches, each once.

    Args:
        visual: the tower; its parameters and their names stay.
    """
    visual.config._attn_implementation = TOGETHER
    visual.patch_embed.__class__ = _StillPatches


def still_arguments(frames: int, rows: int, columns: int, merge: int, device: torch.device) -> dict[str, Any]:
    """Return the tower's arguments for frames of one size.

    Args:
        frames: n, number of frames.
        rows: patches of a frame from top to bottom.
        columns: patches of a frame from left to right.
        merge: patches along a side of what the connector merges.
        device: of the tower.
    """
    places = torch.from_numpy(places_of(rows, columns, merge)).to(device)
    return {
        "grid_thw": torch.tensor([[1, rows, columns]]).expand(frames, -1).to(device),
        "position_ids": places.repeat(frames, 1),
        "cu_seqlens": torch.arange(frames + 1, device=device, dtype=torch.int32) * (rows * columns),
        "max_seqlen": rows * columns,
    }


@lru_cache(maxsize=16)  # asked for by each inference
def places_of(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """Return the (rows * columns, 2) rows and columns of a frame's patches, in the order in which they are merged."""
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = places.reshape(rows // merge, merge, columns // merge, merge, 2)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(-1, 2)


class _StillPatches(nn.Module):
    """The library's patch embedding, of a frame that is repeated in time."""

    proj: nn.Conv3d

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight.sum(2).flatten(1)  # (D, 3 * patch * patch)
        return linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


def attend_together(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **limits: Any,
) -> tuple[Tensor, None]:
    """Attend within each of n sequences that lie one after another, in one call if all have one length.

    Args:
        module: the library's attention.
        query: (1, H, T, hd), as key and value.
        key: see query.
        value: see query.
        attention_mask: always None.
        scaling: factor of the scores.
        dropout: share of scores that are dropped in training.
        limits: `cu_seq_lens_q`, (n + 1,) first tokens of the sequences and T; `max_length_q`, the longest one's tokens.

    Returns:
        (1, T, H, hd), and no weights.
    """
    ends, longest = limits["cu_seq_lens_q"], limits["max_length_q"]
    total, n = query.shape[2], len(ends) - 1
    if longest * n != total:
        lengths = ends.diff().tolist()
        parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
        seen = [scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling) for q, k, v in parts]
        return torch.cat(seen, dim=2).transpose(1, 2), None
    q, k, v = (x[0].unflatten(1, (n, longest)).transpose(0, 1) for x in (query, key, value))  # (n, H, longest, hd)
    seen = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
    return seen.transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register(TOGETHER, attend_together)
