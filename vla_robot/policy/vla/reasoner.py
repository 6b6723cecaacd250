"""The port of a reasoner: the language model of a policy, which reads embedded tokens into slots of a cache."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vla_robot.policy.vla.sequence import PaddedSequence


class Slots(Protocol):
    """Keys and values of one batch.

    Attributes:
        filled: slots whose keys and values stay.
    """

    filled: int


class Reasoner[S: Slots](Protocol):
    """A decoder that reads tokens into slots."""

    def start(self, prompt: PaddedSequence, slots: int) -> S:
        """Empty slots for a prompt and its whole answer.

        Raises:
            ContractError: the model knows fewer positions.
        """
        ...

    def read(self, embeds: Tensor, cache: S, keep: int) -> Tensor:
        """Read the next n tokens of every row into the slots behind `cache.filled`, which is left as it is.

        Args:
            embeds: (B, n, D).
            cache: from `start`.
            keep: tokens at the end whose hidden states are wanted, 1 to n.

        Returns:
            (B, keep, D) normed hidden states.
        """
        ...
