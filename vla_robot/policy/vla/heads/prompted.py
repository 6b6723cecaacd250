"""A batch of prompts as an action head gets it: rows of the sequence, and how the backbone reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vla_robot.core.errors import ContractError
from vla_robot.policy.vla.sequence.ragged import RaggedSequence


@dataclass(frozen=True)
class Prompted:
    """Prompts of a batch.

    Attributes:
        rows: B rows; the last token of each is the end token, which a head may move behind its answer.
        hidden: maps rows to their (B, S, D) normed hidden states.
        sees_answer: whether the prompt attends to the answer too, if a head's answer has columns of its own.
    """

    rows: RaggedSequence
    hidden: Callable[[RaggedSequence], Tensor]
    sees_answer: bool = False


def require_shape(actions: Tensor, chunk: int, dimension: int) -> None:
    """Raise ContractError unless (B, K, D) actions are those of a head of K = chunk and D = dimension."""
    if tuple(actions.shape[1:]) != (chunk, dimension):
        raise ContractError(
            f"the head answers {chunk} actions of {dimension} numbers, but the data have {actions.shape[1]} of "
            f"{actions.shape[2]}."
        )
