"""OpenVLA-OFT's parallel decoding by our own decoder: a chunk from one pass, as `policy.vla.heads.l1` says.

Source: moojink/openvla-oft @213c5ff8, prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.vla.heads.l1 import L1Head


class ParallelGenerator:
    """Reads action chunks from one bidirectional pass."""

    def __init__(self, decoder: Decoder, head: L1Head, chunk: int, action_dim: int, eos: int) -> None:
        """
        Args:
            decoder: the language model.
            head: maps hidden states to actions.
            chunk: K, actions per answer.
            action_dim: D, numbers per action.
            eos: id of the token that ends every training text.
        """
        self._decoder = decoder
        self._head = head
        self._chunk = chunk
        self._action_dim = action_dim
        self._eos = eos

    @property
    def _placeholders(self) -> int:
        return self._chunk * self._action_dim

    def complete(self, prompt: NDArray[np.int64]) -> NDArray[np.int64]:
        """Append K * D placeholders and EOS to (L,) prompt ids. Any id will do: its embedding is set to 0."""
        return np.concatenate([prompt, np.full(self._placeholders + 1, self._eos, dtype=np.int64)])

    def actions(self, embeds: Tensor, lengths: Tensor, is_ragged: bool = True) -> Tensor:
        """Return the normalised actions of completed prompts; no number is read.

        Args:
            embeds: (B, S, llm_dim), padded at the right; each row ends in its placeholders and EOS.
            lengths: (B,) int64 real tokens per row, on the device of `embeds`.
            is_ragged: whether some row is padded, which takes a mask.

        Returns:
            (B, K, D), not clipped: regression may leave [-1, 1].
        """
        end = lengths[:, None] - 1  # (B, 1) slot of each row's EOS
        first = end - self._placeholders  # (B, 1) slot of each row's first placeholder
        slot = torch.arange(embeds.shape[1], device=embeds.device)
        is_placeholder = (slot >= first) & (slot < end)  # (B, S)
        embeds = embeds.masked_fill(is_placeholder[..., None], 0.0)
        hidden = self._decoder.bidirectional(embeds, lengths if is_ragged else None)
        rows = torch.arange(len(embeds), device=embeds.device)[:, None]
        columns = first - 1 + torch.arange(self._placeholders, device=embeds.device)  # (B, K * D)
        return self._head(hidden[rows, columns].unflatten(1, (self._chunk, -1)).flatten(2))
