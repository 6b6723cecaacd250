"""A batch of prompts as an action head gets it: rows of the sequence, and how the backbone reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.sequence.ragged import RaggedSequence, next_position

type KeysValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (B, Hkv, S, hd), with the keys' rotary positions applied."""


@dataclass(frozen=True)
class Prompted:
    """Prompts of a batch.

    Attributes:
        rows: B rows; the last token of each is the end token, which a head may move behind its answer.
        hidden: maps rows to their (B, S, D) normed hidden states.
        memory: maps rows to the keys and values of each layer of the language model.
        first_position: position of a row's first token.
        sees_answer: whether the prompt attends to the answer too, if a head's answer has columns of its own.
    """

    rows: RaggedSequence
    hidden: Callable[[RaggedSequence], Tensor]
    memory: Callable[[RaggedSequence], KeysValues]
    first_position: int = 0
    sees_answer: bool = False

    def next_positions(self) -> Tensor:
        """Return the (B,) int64 rotary position of a token behind each row."""
        rows = self.rows
        lengths = rows.lengths.to(rows.embeds.device)
        if rows.positions is None:
            return lengths + self.first_position
        column = torch.arange(rows.positions.shape[-1], device=lengths.device)
        return next_position(rows.positions.masked_fill(column >= lengths[:, None, None], -1))


def require_shape(actions: Tensor, chunk: int, dimension: int) -> None:
    """Raise ContractError unless (B, K, D) actions are those of a head of K = chunk and D = dimension."""
    if tuple(actions.shape[1:]) != (chunk, dimension):
        raise ContractError(
            f"the head answers {chunk} actions of {dimension} numbers, but the data have {actions.shape[1]} of "
            f"{actions.shape[2]}."
        )
