"""FAST: a chunk as the coefficients of a cosine transform, packed by a byte-pair tokenizer.

    (K, D) actions --cosine transform over time--> coefficients --times scale, rounded--> K * D whole numbers
    rows: frequency by frequency, dimensions inside    --pairs that are frequent together--> few tokens

Every token stands for a known count of coefficients, or for a part of one's spelling. At each step the grammar allows
the tokens that have at most the coefficients that are still wanted, so that any answer decodes; it ends with the last
coefficient. What the transform makes of it is clipped to [-1, 1].

The published processor (physical-intelligence/fast) returns zeros for an answer of another count. Zeros are the middle
of the range, which is no rest.

Source: arXiv 2501.09747; huggingface.co/physical-intelligence/fast, processing_action_tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer, models

from vla_robot.core.errors import ContractError
from vla_robot.core.ports.answer_grammar import Grammar, with_end
from vla_robot.policy.vla.codecs.rows import VocabularyRows, finite, require_dimension, require_shape
from vla_robot.policy.vla.codecs.spelling import Spelling

DRAFTED = 16
"""Tokens that are guessed together; a recorded lift of 16 x 7 numbers takes 35."""


class FastTokenizer:
    """Turns chunks into tokens from 0 on, and back.

    Attributes:
        chunk: K, actions of a chunk.
        dimension: D, numbers of an action.
        scale: factor on coefficients before they are rounded.
        least: the smallest coefficient.
        tokens: spelling of each token.
        merges: pairs of tokens that become one, in the order in which they do.
        spelling: how a coefficient is spelled.
    """

    def __init__(
        self,
        chunk: int,
        dimension: int,
        scale: float,
        least: int,
        spelling: Spelling,
        tokens: Sequence[str],
        merges: Sequence[tuple[int, int]],
    ) -> None:
        """
        Raises:
            ContractError: the tokens are no byte-pair vocabulary, or cannot spell a chunk.
        """
        self.chunk, self.dimension, self.scale, self.least = chunk, dimension, scale, least
        self.spelling, self.tokens, self.merges = spelling, tuple(tokens), tuple(merges)
        vocabulary = {token: place for place, token in enumerate(tokens)}
        pairs = [(tokens[a], tokens[b]) for a, b in merges]
        if len(vocabulary) != len(tokens) or not all(a + b in vocabulary for a, b in pairs) or "" in vocabulary:
            raise ContractError("the tokens of FAST are no byte-pair vocabulary: one is empty, missing or there twice.")
        self._pairs = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        self._transform = cosines(chunk)

    @property
    def largest(self) -> int:
        """The largest coefficient."""
        return self.least + self.spelling.symbols - 1

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the (n,) tokens of (K, D) actions.

        Raises:
            ContractError: a number is not finite, the shape is another, or the tokens cannot spell the coefficients.
        """
        x = finite(actions)
        require_shape(self.chunk, self.dimension, x)
        symbols = self.coefficients(x) - self.least
        found = self.spelling.tokens(self._pairs, symbols)
        if "".join(found.tokens) != self.spelling.spell(symbols):
            raise ContractError("FAST's tokens lack the spelling of a coefficient of these actions.")
        return np.array(found.ids, dtype=np.int64)

    def coefficients(self, actions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the (K * D,) whole coefficients of (K, D) actions, clipped to those that the tokenizer knows."""
        exact = whole_coefficients(self._transform, actions, self.scale)
        return np.clip(exact, self.least, self.largest).ravel()

    def actions(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the (K, D) actions of the (n,) tokens of a whole answer, not clipped."""
        symbols = self.spelling.read("".join(self.tokens[token] for token in tokens))
        coefficients = (symbols + self.least).reshape(self.chunk, self.dimension)
        return self._transform.T @ (coefficients / self.scale)

    @cached_property
    def grammar(self) -> Grammar:
        """The grammar of whole answers: those of K * D coefficients.

        Raises:
            ContractError: the tokens cannot spell as many.
        """
        count, pending = self.chunk * self.dimension, self.spelling.pending(self.tokens)
        said = np.full((len(pending), len(self.tokens)), -1)
        left = np.zeros_like(said)
        for place, before in enumerate(pending):
            for token, text in enumerate(self.tokens):
                if (after := self.spelling.parse(before + text)) is not None and after[1] in pending:
                    said[place, token], left[place, token] = after[0], pending.index(after[1])
        consumed = np.arange(count)[:, None, None] + said
        fits = (said >= 0) & (consumed <= count) & ((consumed < count) | (left == 0))
        following = np.where(consumed == count, count * len(pending), consumed * len(pending) + left)
        allowed = fits.reshape(count * len(pending), -1)
        states = np.where(fits, following, 0).astype(np.int32).reshape(allowed.shape)
        return with_end(*_that_end(allowed, states))

    def require_whole_answers(self) -> None:
        """Raise ContractError if the tokens cannot spell a whole chunk, or not that of an arm at rest."""
        if self.grammar.after(self.encode(np.zeros((self.chunk, self.dimension)))) != self.grammar.done:
            raise ContractError("FAST's tokens do not spell a chunk of zeros.")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a file of this tokenizer."""
        return {
            "chunk": self.chunk,
            "dimension": self.dimension,
            "scale": self.scale,
            "least": self.least,
            "symbols": self.spelling.symbols,
            "spelling": self.spelling.name,
            "tokens": list(self.tokens),
            "merges": [list(pair) for pair in self.merges],
        }


class FastCodec(VocabularyRows):
    """See `ActionCodec`.

    Attributes:
        tokenizer: chunks to tokens; token t is row t.
    """

    kind = "fast"
    reserved = True
    scale = 0
    values = np.empty(0)

    def __init__(self, tokenizer: FastTokenizer, ids: ArrayLike, chunk: int) -> None:
        """
        Args:
            tokenizer: chunks to tokens.
            ids: (A,) rows of the vocabulary, one for each token.
            chunk: K, actions of an answer; that of the tokenizer.

        Raises:
            ContractError: the numbers differ.
        """
        super().__init__(ids)
        if len(self.ids) != len(tokenizer.tokens):
            raise ContractError(f"FAST has {len(tokenizer.tokens)} tokens, but {len(self.ids)} rows are given.")
        if chunk != tokenizer.chunk:
            raise ContractError(
                f"FAST's tokens are for chunks of {tokenizer.chunk} actions, but the policy's have {chunk}: another "
                "horizon turns every coefficient into another motion. Train FAST for it with `vla data fast`."
            )
        self.tokenizer = tokenizer
        self.chunk, self.dimension = tokenizer.chunk, tokenizer.dimension

    @property
    def grammar(self) -> Grammar:
        """See `ActionCodec`."""
        return self.tokenizer.grammar

    def tokens(self, dim: int) -> int:
        """See `ActionCodec`."""
        require_dimension(self.dimension, dim)
        return self.grammar.longest

    def drafted(self, dim: int) -> int:
        """See `ActionCodec`."""
        return min(DRAFTED, self.grammar.longest)

    def guess(self, count: int) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        return np.resize(self.tokenizer.encode(np.zeros((self.chunk, self.dimension))), count)

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        return self.ids[self.tokenizer.encode(actions)]

    def decode(self, ids: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
        """See `ActionCodec`."""
        require_dimension(self.dimension, dim)
        said = self.rows(ids)
        if self.grammar.after(said) != self.grammar.done:
            raise ContractError(f"the answer ends before its {self.chunk * dim} coefficients are said.")
        return np.clip(self.tokenizer.actions(said), -1, 1)

    def beginning(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        finite(actions)
        return np.empty(0, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """See `ActionCodec`."""
        return {"kind": self.kind, "ids": self.ids.tolist(), **self.tokenizer.to_dict()}


def whole_coefficients(
    transform: NDArray[np.float64], actions: NDArray[np.floating], scale: float
) -> NDArray[np.int64]:
    """Return the (..., K, D) rounded coefficients of (..., K, D) actions, which are clipped to [-1, 1]."""
    return np.rint(transform @ np.clip(actions, -1, 1) * scale).astype(np.int64)


def cosines(count: int) -> NDArray[np.float64]:
    """Return the (count, count) orthonormal cosine transform (DCT-II), frequencies in rows."""
    place, frequency = np.arange(count), np.arange(count)[:, None]
    matrix = np.cos(np.pi * (place + 0.5) * frequency / count) * np.sqrt(2 / count)
    matrix[0] /= np.sqrt(2)
    return matrix


def _that_end(allowed: NDArray[np.bool_], following: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Return the tables without rows from whose state no answer ends; states of no use allow what fills.

    Raises:
        ContractError: none ends.
    """
    done = len(allowed)
    ends = np.zeros(done + 1, dtype=np.bool_)
    ends[done] = True
    allowed, following = allowed.copy(), following.copy()
    for state in range(done - 1, -1, -1):
        allowed[state] &= ends[following[state]]
        ends[state] = allowed[state].any()
        if not ends[state]:  # never reached
            allowed[state, 0], following[state, 0] = True, done
    if not ends[0]:
        raise ContractError("FAST's tokens cannot spell a whole chunk.")
    return allowed, following
