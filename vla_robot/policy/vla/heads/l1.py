"""OpenVLA-OFT's head: regresses a whole chunk of actions in one pass.

    [BOS][patches of N cameras][state][prompt ... space][0][0] ... [0][EOS]     K * D placeholders, zero embeddings
                                              |    |  |
                                              h    h  h ...                     hidden states, shifted by one
                                              +----+--+--> (K, D * llm_dim) --L1 head--> (K, D) in about [-1, 1]

The answer's tokens attend to each other in both directions, and to the prompt; in OpenVLA-OFT the prompt attends to
them too. Action number i is read from the hidden state one position *before* placeholder i, since the model was first
trained to predict the next token.

Source: moojink/openvla-oft @213c5ff8, prismatic/models/action_heads.py and prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from vla_robot.core.ports.action_head import Plan
from vla_robot.policy.vla.heads.prompted import Prompted, require_shape
from vla_robot.policy.vla.sequence.columns import at_columns
from vla_robot.policy.vla.sequence.ragged import RaggedSequence


class L1Head(nn.Module):
    """Maps the hidden states of one control step to one action. Parameter names are those of the published file.

    Attributes:
        chunk: K, actions of an answer; no weight depends on it.
        dimension: D, numbers of an action.
    """

    kind = "l1"
    continues = False

    def __init__(self, llm_dim: int, action_dim: int, chunk: int = 1) -> None:
        super().__init__()
        self.chunk, self.dimension = chunk, action_dim
        self.model = _ResidualMLP(llm_dim * action_dim, llm_dim, action_dim, blocks=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, K, action_dim * llm_dim) to (B, K, action_dim)."""
        return self.model(hidden)

    def loss(self, prompts: Prompted, actions: Tensor, seeds: NDArray[np.int64]) -> Tensor:
        """Return the mean absolute difference; otherwise see `ActionHead`."""
        require_shape(actions, self.chunk, self.dimension)
        return (self.regress(prompts).float() - actions.float()).abs().mean()

    def answer(self, prompts: Prompted, seeds: NDArray[np.int64], plan: Plan[Tensor] | None = None) -> Tensor:
        """See `ActionHead`. Nothing is random, and no plan is continued: all actions are regressed at once."""
        return self.regress(prompts).clamp(-1.0, 1.0)

    def regress(self, prompts: Prompted) -> Tensor:
        """Return the (B, K, D) actions of prompts, which may leave [-1, 1]."""
        count = self.chunk * self.dimension
        rows = with_placeholders(prompts.rows, count, prompts.sees_answer)
        first = prompts.rows.lengths.to(rows.embeds.device)[:, None] - 2  # one before the first placeholder
        read = at_columns(prompts.hidden(rows), first + torch.arange(count, device=first.device))
        return self(read.unflatten(1, (self.chunk, -1)).flatten(2))


def with_placeholders(rows: RaggedSequence, count: int, sees_answer: bool) -> RaggedSequence:
    """Return rows with `count` zero embeddings before their last token; they and it are one block.

    Args:
        rows: B rows, of which each ends in the end token.
        count: placeholders of each row.
        sees_answer: whether the whole row is that block, so that the prompt attends to the answer.
    """
    wide = rows.widened(rows.embeds.shape[1] + count)
    first = rows.lengths.to(wide.embeds.device)[:, None] - 1  # (B, 1)
    column = torch.arange(wide.embeds.shape[1], device=first.device)
    is_answer = (column >= first) & (column <= first + count)  # (B, S), with the end token
    moved = at_columns(wide.embeds, torch.minimum(column, first))  # the end token stands behind, too
    embeds = moved.masked_fill((is_answer & (column < first + count))[..., None], 0.0)
    if sees_answer:
        blocks = (column <= first + count).long()
    else:
        before = torch.zeros_like(is_answer, dtype=torch.int64) if wide.blocks is None else wide.blocks
        blocks = torch.where(is_answer, before.amax(dim=1, keepdim=True) + 1, before * (column < first))
    return replace(wide, embeds=embeds, lengths=rows.lengths + count, blocks=blocks)


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
