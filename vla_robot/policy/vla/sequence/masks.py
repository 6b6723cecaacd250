"""Attention masks: one rule for each kind of layer, over all slots of a prompt and its answer.

    causal                     prefix (PaliGemma)          image block (Gemma 3)
    q\\k  0 1 2 3              q\\k  I I T | A              q\\k  T I I T
     0   x                     I    x x x                  T    x
     1   x x                   I    x x x                  I    x x x
     2   x x x                 T    x x x                  I    x x x
     3   x x x x               A    x x x   x              T    x x x x

A block is a set of tokens of one row that attend to each other: PaliGemma's whole prompt, each image of Gemma 3.
Sliding layers attend to keys less than a window behind the query; the effect on a block differs by family.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names of the kinds of layers."""


@dataclass(frozen=True)
class MaskRule:
    """The attention rule of a family's layers.

    Attributes:
        window: sliding layers attend to a key if query - key is less; None without such layers.
        blocks_in_full: whether tokens of one block attend to each other in full layers too.
        window_cuts_blocks: whether a token in sliding layers attends only to the part of its block within the window.
    """

    window: int | None = None
    blocks_in_full: bool = True
    window_cuts_blocks: bool = False

    def visible(
        self, slots: int, padding: Tensor | None, blocks: Tensor | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Return kind of layer -> (B or 1, 1, slots, slots) bool: whether the query (row) attends to the key (column).

        Padding attends to itself only, since a softmax over no key is not a number, and no token attends to it.

        Args:
            slots: number of slots of the prompt and the whole answer, which is causal.
            padding: (B,) int64 number of slots at the left without a token, or None for none.
            blocks: (B, S) int64 block numbers of the prompt, S at most `slots`, 0 for a causal token; or None.
            device: device of the mask.
        """
        slot = torch.arange(slots, device=device)
        behind = slot[:, None] - slot  # (query, key)
        causal = (behind >= 0)[None]
        same = _same_block(blocks, slots) if blocks is not None else torch.zeros_like(causal)
        masks = {FULL: causal | same if self.blocks_in_full else causal}
        if self.window is not None:
            near = behind < self.window
            masks[SLIDING] = near & (causal | same) if self.window_cuts_blocks else (near & causal) | same
        return {kind: _without_padding(mask, slot, padding)[:, None] for kind, mask in masks.items()}


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as numbers to add to scores: 0 where it is true, the most negative number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _same_block(blocks: Tensor, slots: int) -> Tensor:
    """(B, S) -> (B, slots, slots) bool."""
    longer = torch.nn.functional.pad(blocks, (0, slots - blocks.shape[1]))
    return (longer[:, :, None] == longer[:, None, :]) & (longer[:, :, None] > 0)


def _without_padding(mask: Tensor, slot: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None:
        return mask
    real = slot >= padding[:, None]  # (B, slots)
    return (mask & real[:, None, :]) | (slot == slot[:, None])
