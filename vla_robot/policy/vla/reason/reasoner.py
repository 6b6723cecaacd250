"""The port of a reasoner: the language model of a policy, which reads embedded tokens into slots of a cache."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vla_robot.policy.vla.sequence.ragged import PaddedSequence


class Slots(Protocol):
    """Keys and values of one batch.

    Attributes:
        filled: number of slots whose keys and values stay.
    """

    filled: int


class Reasoner[S: Slots](Protocol):
    """A decoder that reads tokens into slots."""

    def start(self, prompt: PaddedSequence, slots: int) -> S:
        """Return empty slots for a prompt and its whole answer.

        Raises:
            ContractError: the model has fewer positions.
        """
        ...

    def read(self, embeds: Tensor, cache: S, keep: int) -> Tensor:
        """Read the next n tokens of every row into the slots after `cache.filled`, which does not change.

        Args:
            embeds: (B, n, D) embeddings.
            cache: from `start`.
            keep: number of last tokens whose hidden states are returned, 1 to n.

        Returns:
            (B, keep, D) normed hidden states.
        """
        ...
