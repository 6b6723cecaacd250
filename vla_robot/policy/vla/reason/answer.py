"""What a model generated for a batch, and how unsure it was of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Answers of a batch.

    Attributes:
        ids: (B, N) int64 token ids, -1 behind the end of a shorter answer.
        entropy: (B, N) float32 entropy of each token's distribution over the rows that were allowed [nats]; NaN for a
            token that was not generated: one that was given, or is behind the end.
    """

    ids: Tensor
    entropy: Tensor

    def numpy(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return both in main memory, by one copy."""
        together = torch.stack([self.ids.float(), self.entropy]).cpu().numpy()  # float32 holds ids up to 16.7 million
        return together[0].astype(np.int64), together[1]

    def first(self, count: int) -> Answer:
        """Return the first `count` tokens of each row."""
        return Answer(self.ids[:, :count], self.entropy[:, :count])

    def after(self, prefixes: Sequence[Tensor], count: int) -> Answer:
        """Return (B, count) answers: B given prefixes of ids, each followed by its row, whose last tokens may not be
        needed."""
        unsaid = [torch.full(prefix.shape, torch.nan, device=self.entropy.device) for prefix in prefixes]
        return Answer(_joined(prefixes, self.ids, count), _joined(unsaid, self.entropy, count))


def _joined(heads: Sequence[Tensor], tails: Tensor, count: int) -> Tensor:
    return torch.stack([torch.cat([head, tail])[:count] for head, tail in zip(heads, tails, strict=True)])


def entropy_of(logits: Tensor) -> Tensor:
    """Return the (...) float32 entropies of (..., A) logits [nats]; a row of minus infinity has probability 0."""
    return torch.special.entr(torch.softmax(logits, dim=-1, dtype=torch.float32)).sum(dim=-1)
