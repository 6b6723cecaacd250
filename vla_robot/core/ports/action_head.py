"""The port of an action head: how numbers of a chunk are given without tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan[T]:
    """What the arm executes while an answer is computed, for B rows, from the step of each observation on.

    Attributes:
        actions: (B, K, D) in [-1, 1]; any numbers behind the plan's end.
        committed: (B,) int64 rows that will be executed anyway, less than K.
        planned: (B,) int64 rows in all, at least as many and at most K; those behind the committed ones may change.
    """

    actions: T
    committed: T
    planned: T


class ActionHead[P, T](Protocol):
    """Gives chunks of actions as numbers, where an `ActionCodec` says them in tokens.

    P is a batch of B prompts with the backbone that reads them, T an array of the backbone's framework.
    """

    @property
    def kind(self) -> str:
        """Its name in config.json."""
        ...

    @property
    def chunk(self) -> int:
        """K, actions of an answer."""
        ...

    @property
    def dimension(self) -> int:
        """D, numbers of an action."""
        ...

    @property
    def continues(self) -> bool:
        """Whether its answers continue a plan; if not, plans are ignored."""
        ...

    def loss(self, prompts: P, actions: T, seeds: NDArray[np.int64]) -> T:
        """Return the () training loss.

        Args:
            prompts: B prompts.
            actions: (B, K, D) in [-1, 1], what should be answered.
            seeds: (B,) from which each row's random numbers are drawn, where a head needs some.

        Raises:
            ContractError: the actions have another shape than the head's.
        """
        ...

    def answer(self, prompts: P, seeds: NDArray[np.int64], plan: Plan[T] | None = None) -> T:
        """Return (B, K, D) actions in [-1, 1]; a row depends on its own prompt and seed alone.

        Args:
            prompts: B prompts.
            seeds: as of `loss`.
            plan: what the answer continues; None for an arm that waits. A row of it may have no action.
        """
        ...
