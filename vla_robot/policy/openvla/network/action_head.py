"""Action head of OpenVLA-OFT: regresses a whole chunk of actions in one pass, as numbers instead of tokens.

    [BOS][patches of N cameras][state][prompt ... space][0][0] ... [0][EOS]     K * D placeholders, zero embeddings
                                              |    |  |
                                              h    h  h ...                     hidden states, shifted by one
                                              +----+--+--> (K, D * llm_dim) --L1 head--> (K, D) in about [-1, 1]

Every token attends to every other. Action number i is read from the hidden state one position *before* placeholder i,
since the model was first trained to predict the next token.

Source: moojink/openvla-oft @213c5ff8, prismatic/models/action_heads.py and prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from vla_robot.policy.openvla.network.reason import Decoder


class L1Head(nn.Module):
    """Maps the hidden states of one control step to one action. Parameter names are those of the published file."""

    def __init__(self, llm_dim: int, action_dim: int) -> None:
        super().__init__()
        self.model = _ResidualMLP(llm_dim * action_dim, llm_dim, action_dim, blocks=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, K, action_dim * llm_dim) to (B, K, action_dim)."""
        return self.model(hidden)


class _ResidualMLP(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(_Block(hidden_dim) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


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
