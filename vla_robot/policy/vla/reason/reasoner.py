"""The port of a reasoner: the language model of a policy, which reads embedded tokens into slots of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence


class Slots(Protocol):
    """Keys and values of one batch.

    Attributes:
        filled: number of slots whose keys and values stay.
    """

    filled: int

    def of_rows(self, rows: Tensor) -> Slots:
        """Return a copy of the (n,) int64 rows, as a batch of its own."""
        ...

    def put_rows(self, rows: Tensor, part: Any) -> None:
        """Copy the keys and values of `of_rows(rows)` back."""
        ...


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

    def read_rows(self, rows: RaggedSequence, wanted: Tensor) -> tuple[Tensor, Any]:
        """Read whole rows as they are padded, at the right; no shape depends on their lengths, and nothing is read.

        What follows a row in its slots is seen by no token of it, since attention is causal after the prompt.

        Args:
            rows: (B, S, D), with as many columns as prompt and answer take together; lengths are not used.
            wanted: (B, w) int64 columns whose hidden states are returned.

        Returns:
            (B, w, D) normed hidden states, and the memory for `read_at`, whose `tensors` are its keys and values.
        """
        ...

    def memory(self, rows: RaggedSequence, tensors: Sequence[Tensor]) -> Any:
        """Return the memory of `read_rows` again from its tensors, for rows of which only lengths and sizes are used.

        Args:
            rows: as `read_rows` got them.
            tensors: keys and values of each layer in turn, each (B, Hkv, S, hd), as the memory's `tensors` gives them.
        """
        ...

    def read_at(self, embeds: Tensor, slots: Tensor, memory: Any) -> Tensor:
        """Read tokens into slots that may differ by row; their keys and values replace those that were there.

        Args:
            embeds: (B, n, D).
            slots: (B, n) int64, consecutive in each row.
            memory: from `read_rows`.

        Returns:
            (B, n, D) normed hidden states.
        """
        ...
