"""The port of an action codec: how numbers of a chunk are said as tokens of a language model's vocabulary."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.ports.answer_grammar import Grammar


class ActionCodec(Protocol):
    """Converts between chunks of actions in [-1, 1] and tokens: some rows of a vocabulary, in any order.

    A row is a number from 0 to A - 1, its place in `ids`. Any logits over the rows, chosen by the grammar, decode to a
    chunk.
    """

    @property
    def kind(self) -> str:
        """Its name in codec.json."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """(A,) distinct ids of the rows."""
        ...

    @property
    def chunk(self) -> int:
        """K, actions of an answer."""
        ...

    @property
    def dimension(self) -> int | None:
        """D, numbers of an action; None for any."""
        ...

    @property
    def reserved(self) -> bool:
        """Whether its ids are never words."""
        ...

    @property
    def scale(self) -> int:
        """Consecutive rows that are one scale of numbers, neighbours being almost alike; 0 if a row is no number."""
        ...

    @property
    def values(self) -> NDArray[np.float64]:
        """(A,) number in [-1, 1] of each row; empty if a row is no number."""
        ...

    @property
    def grammar(self) -> Grammar | None:
        """Which rows may follow each other; None: K * D rows, each any of them."""
        ...

    def tokens(self, dim: int) -> int:
        """Return the most tokens of an answer whose actions have `dim` numbers.

        Raises:
            ContractError: the codec was made for another number.
        """
        ...

    def drafted(self, dim: int) -> int:
        """Return how many tokens are guessed together, at least 1: those of one action where they have a number."""
        ...

    def guess(self, count: int) -> NDArray[np.int64]:
        """Return (count,) rows as a first guess of an answer's beginning, for an arm that stays where it is."""
        ...

    def rows(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the (...) rows of (...) ids.

        Raises:
            ContractError: an id is none of the codec's.
        """
        ...

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the (n,) ids that say (K, D) actions, clipped to [-1, 1].

        Raises:
            ContractError: a number is not finite, or the codec was made for another shape.
        """
        ...

    def decode(self, ids: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
        """Return the (K, D) actions in [-1, 1] of an answer's (n,) ids, for D = `dim`.

        Raises:
            ContractError: the ids are no whole answer, or the codec was made for another number.
        """
        ...

    def beginning(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the (m,) ids with which an answer begins whose first actions are these (n, D), n < K.

        Empty for a codec whose tokens do not follow the actions in time.

        Raises:
            ContractError: as `encode`.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return what codec.json says of it."""
        ...
