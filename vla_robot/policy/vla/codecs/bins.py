"""Actions as bins: one token for each number, over any rows of the vocabulary.

OpenVLA's scale, exactly. `linspace(-1, 1, 256)` gives 256 *edges* and therefore 255 bins, each 2/255 wide:

    value     -1.0            ...            0.0            ...            +1.0
    row        255            ...            128            ...             0 (and 1: they decode alike)

so a value inside [-0.996, 0.996] comes back at most half a bin (0.0039) away, and the two ends come back as +-0.996.

The equal scale has 257 edges and 256 bins, each 2/256 wide, in rising order. Their tokens are not interchangeable.

With rows for each dimension, number d of an action is one of rows 256 d to 256 d + 255 alone: 7 x 256 = 1792 rows.

Source: openvla/openvla @c8f03f48, prismatic/vla/action_tokenizer.py; Octo uses `n_bins + 1` edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.errors import ContractError
from vla_robot.core.ports.answer_grammar import Grammar, in_order
from vla_robot.policy.vla.codecs.rows import VocabularyRows, finite, require_dimension

OPENVLA, EQUAL = "openvla", "equal"
"""Names of the two scales."""


class BinCodec(VocabularyRows):
    """See `ActionCodec`.

    Attributes:
        how: name of the scale, OPENVLA or EQUAL.
    """

    kind = "bins"
    reserved = True

    def __init__(
        self,
        ids: ArrayLike,
        chunk: int = 1,
        how: Literal["openvla", "equal"] = OPENVLA,
        dimension: int | None = None,
    ) -> None:
        """
        Args:
            ids: (A,) rows of the vocabulary, in the order of the scale.
            chunk: K, actions of an answer.
            how: name of the scale.
            dimension: D for rows of each dimension's own, D scales one after the other; None for one scale.

        Raises:
            ContractError: the ids are not distinct, or no whole number of scales of at least 2 rows.
        """
        super().__init__(ids)
        self.chunk, self.how, self.dimension = chunk, how, dimension
        scales = dimension or 1
        if len(self.ids) % scales or len(self.ids) < 2 * scales:
            raise ContractError(f"{len(self.ids)} rows make no {scales} scales of at least 2 bins each.")
        self.scale = len(self.ids) // scales
        self.grammar: Grammar | None = None
        if dimension is not None:
            of_dimension = np.arange(len(self.ids)) // self.scale
            self.grammar = in_order([of_dimension == d for _ in range(chunk) for d in range(dimension)])
        self.values = np.tile(_SCALES[how].centres(self.scale), scales)

    def tokens(self, dim: int) -> int:
        """See `ActionCodec`."""
        require_dimension(self.dimension, dim)
        return self.chunk * dim

    def drafted(self, dim: int) -> int:
        """See `ActionCodec`."""
        return dim

    def guess(self, count: int) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        place = np.arange(count) % (self.dimension or 1)
        return place * self.scale + _SCALES[self.how].rows(np.zeros(count), self.scale)

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`; any number of actions."""
        x = np.atleast_2d(finite(actions))
        require_dimension(self.dimension, x.shape[-1])
        rows = _SCALES[self.how].rows(np.clip(x, -1, 1), self.scale)
        if self.dimension is not None:
            rows = rows + self.scale * np.arange(self.dimension)
        return self.ids[rows].reshape(-1)

    def decode(self, ids: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
        """See `ActionCodec`."""
        said = self.rows(ids)
        if len(said) != self.tokens(dim):
            raise ContractError(f"an answer of {len(said)} tokens holds no {self.chunk} actions of {dim} numbers.")
        if self.grammar is not None:
            self.grammar.after(said)
        return self.values[said].reshape(self.chunk, dim)

    def beginning(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        return self.encode(actions)

    def to_dict(self) -> dict[str, Any]:
        """See `ActionCodec`."""
        return {"kind": self.kind, "scale": self.how, "dimension": self.dimension, "ids": self.ids.tolist()}


def openvla_bins(vocab_end: int, bins: int = 256, chunk: int = 1) -> BinCodec:
    """Return OpenVLA's codec over the last `bins` ids before `vocab_end`: 32000 without a Llama's padding rows.

    Raises:
        ContractError: the vocabulary has too few rows.
    """
    if bins < 2 or vocab_end < bins:
        raise ContractError(f"{bins} action bins do not fit a vocabulary of {vocab_end} rows.")
    return BinCodec(np.arange(vocab_end - bins, vocab_end), chunk)


@dataclass(frozen=True)
class _OpenVLAScale:
    """`count` edges, falling."""

    def rows(self, values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        return count - np.digitize(values, np.linspace(-1, 1, count)).astype(np.int64)

    def centres(self, count: int) -> NDArray[np.float64]:
        edges = np.linspace(-1, 1, count)
        centres = (edges[:-1] + edges[1:]) / 2
        return centres[np.clip(count - np.arange(count) - 1, 0, count - 2)]


@dataclass(frozen=True)
class _EqualScale:
    """`count` bins, rising."""

    def rows(self, values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        return np.digitize(values, np.linspace(-1, 1, count + 1)[1:-1]).astype(np.int64)

    def centres(self, count: int) -> NDArray[np.float64]:
        edges = np.linspace(-1, 1, count + 1)
        return (edges[:-1] + edges[1:]) / 2


_SCALES = {OPENVLA: _OpenVLAScale(), EQUAL: _EqualScale()}
