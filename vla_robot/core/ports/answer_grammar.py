"""What the port ActionCodec hands over: which tokens may follow each other in an answer.

It is a table, so that it can be applied to many rows at once:

state      allowed rows          following state
0          0 .. 9                1                  a digit
1          0 .. 9, space, end    1, 0, 2            ...
2 (done)   0                     2                  filling behind the end; it means nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError


@dataclass(frozen=True, eq=False)
class Grammar:
    """A finite automaton over the A rows of an action codec, with S states. State 0 begins, state S - 1 is done.

    Every allowed row leads to a later state, so that every answer ends.

    Attributes:
        allowed: (S, A) bool: whether a row may be said in a state; in the last state row 0 alone.
        following: (S, A) int32 state after a row; any where the row is not allowed.
    """

    allowed: NDArray[np.bool_]
    following: NDArray[np.int32]

    def __post_init__(self) -> None:
        states = np.arange(len(self.allowed))[:, None]
        if not self.allowed.any(axis=1).all():
            raise ContractError("a state of the grammar allows no token, so that an answer could not go on.")
        if self.following.min() < 0 or self.following.max() > self.done:
            raise ContractError(f"a state of the grammar is not one of 0 to {self.done}.")
        if (self.following[:-1] <= states[:-1])[self.allowed[:-1]].any():
            raise ContractError("a token leads back to an earlier state, so that an answer might never end.")

    @property
    def done(self) -> int:
        """The state behind a whole answer."""
        return len(self.allowed) - 1

    @cached_property
    def longest(self) -> int:
        """Most tokens of an answer."""
        longest = np.zeros(len(self.allowed), dtype=np.int64)
        for state in range(self.done - 1, -1, -1):
            longest[state] = 1 + longest[self.following[state][self.allowed[state]]].max()
        return int(longest[0])

    def after(self, rows: NDArray[np.int64], state: int = 0) -> int:
        """Return the state after (n,) rows, beginning in a state.

        Raises:
            ContractError: a row is not allowed where it stands.
        """
        for place, row in enumerate(rows):
            if state == self.done or not self.allowed[state, row]:
                raise ContractError(f"token {place} of the answer may not stand there; the answer is malformed.")
            state = int(self.following[state, row])
        return state


def in_order(masks: Sequence[NDArray[np.bool_]]) -> Grammar:
    """Return the grammar of answers of n tokens, of which number i is one of the (A,) `masks[i]`."""
    count, rows = len(masks), len(masks[0])
    allowed = np.concatenate([np.stack(masks), _filling(rows)])
    following = np.minimum(np.arange(count + 1) + 1, count)[:, None].repeat(rows, axis=1).astype(np.int32)
    return Grammar(allowed, following)


def with_end(allowed: NDArray[np.bool_], following: NDArray[np.int32]) -> Grammar:
    """Return the grammar of (S, A) tables without the last state, which is added."""
    rows = allowed.shape[1]
    return Grammar(
        np.concatenate([allowed, _filling(rows)]),
        np.concatenate([following, np.full((1, rows), len(allowed), dtype=np.int32)]),
    )


def _filling(rows: int) -> NDArray[np.bool_]:
    return (np.arange(rows) == 0)[None]
