"""Actions as whole numbers in the model's own words, as RT-2 on PaLI-X and VLA-0 say them.

    -1.0 .. +1.0   ->   0 .. largest           a chunk of 2 actions of 3 numbers:   " 500 12 1000 498 14 1000" end

Generation is limited to well-formed answers: each number is one of the spelled ones, their count is right, and the end
comes behind the last one alone. Numbers have different lengths, so answers have too. Their ids stay words.

A number may go on ("1" to "12"), so that an answer cannot be told how to begin: `beginning` is empty.

Source: arXiv 2307.15818 (RT-2), arXiv 2510.13054 (VLA-0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.ports.answer_grammar import Grammar, with_end
from vla_robot.policy.vla.codecs.rows import VocabularyRows, finite, require_dimension, require_shape

JOINED = (0, 7, 10, 42, 99, 100, 255, 380, 999, 1000)
"""Numbers that are spelled together once, to see that a tokenizer keeps them apart."""


class WordCodec(VocabularyRows):
    """See `ActionCodec`.

    Attributes:
        largest: the number that says +1.
    """

    kind = "words"
    reserved = False
    scale = 0
    values = np.empty(0)

    def __init__(self, spelled: Sequence[Sequence[int]], end: int, chunk: int, dimension: int) -> None:
        """
        Args:
            spelled: ids of each number from 0 on, with the space before it.
            end: id that ends an answer.
            chunk: K, actions of an answer.
            dimension: D, numbers of an action.

        Raises:
            ContractError: two numbers are spelled alike, or it cannot be told where one ends.
        """
        self._spelled = [tuple(each) for each in spelled]
        self._end = end
        self.chunk, self.dimension = chunk, dimension
        self.largest = len(spelled) - 1
        begins = {each[0] for each in self._spelled if each}
        goes_on = {id for each in self._spelled for id in each[1:]}
        if not all(self._spelled) or len(set(self._spelled)) != len(spelled) or self.largest < 1:
            raise ContractError("each of at least two numbers needs a spelling of its own.")
        if begins & goes_on or end in begins | goes_on:
            raise ContractError("a token both begins and continues numbers, or ends the answer: they run together.")
        super().__init__(sorted(begins | goes_on | {end}))
        self.grammar = self._well_formed()
        self._number = {each: number for number, each in enumerate(self._spelled)}

    def _well_formed(self) -> Grammar:
        """Return the grammar of answers of the right count of numbers, each one of the spelled ones."""
        root = _Node()
        for each in self._spelled:
            root.add(tuple(self.rows(each).tolist()))
        nodes = root.merged()
        count, rows = self.chunk * self.dimension, len(self.ids)
        allowed = np.zeros((count, len(nodes), rows), dtype=np.bool_)
        following = np.zeros(allowed.shape, dtype=np.int32)
        end = int(self.rows([self._end])[0])
        for place in range(count):
            for state, (is_whole, children) in enumerate(nodes):
                steps = {row: place * len(nodes) + child for row, child in children.items()}
                if is_whole and place + 1 < count:
                    steps |= {row: (place + 1) * len(nodes) + child for row, child in nodes[0][1].items()}
                elif is_whole:
                    steps[end] = count * len(nodes)
                for row, state_after in steps.items():
                    allowed[place, state, row], following[place, state, row] = True, state_after
        return with_end(allowed.reshape(-1, rows), following.reshape(-1, rows))

    def tokens(self, dim: int) -> int:
        """See `ActionCodec`."""
        require_dimension(self.dimension, dim)
        return self.grammar.longest

    def drafted(self, dim: int) -> int:
        """See `ActionCodec`."""
        return max(map(len, self._spelled)) * dim

    def guess(self, count: int) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        still = self.rows(self.encode(np.zeros((self.chunk, self.dimension))))
        return np.resize(still, count)

    def encode(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        x = finite(actions)
        require_shape(self.chunk, self.dimension, x)
        numbers = np.rint((np.clip(x, -1, 1) + 1) / 2 * self.largest).astype(int).ravel()
        return np.array([*(id for number in numbers for id in self._spelled[number]), self._end], dtype=np.int64)

    def decode(self, ids: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
        """See `ActionCodec`."""
        require_dimension(self.dimension, dim)
        if self.grammar.after(self.rows(ids)) != self.grammar.done:
            raise ContractError(f"the answer ends before its {self.chunk} actions of {dim} numbers are said.")
        numbers = np.array([self._number[spelled] for spelled in self._parts(ids[:-1].tolist())], dtype=np.float64)
        return (2 * numbers / self.largest - 1).reshape(self.chunk, dim)

    def beginning(self, actions: NDArray[np.floating]) -> NDArray[np.int64]:
        """See `ActionCodec`."""
        finite(actions)
        return np.empty(0, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """See `ActionCodec`."""
        spelled = [list(each) for each in self._spelled]
        return {"kind": self.kind, "dimension": self.dimension, "end": self._end, "spelled": spelled}

    def _parts(self, ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the spelling of each number of an answer."""
        begins = {each[0] for each in self._spelled}
        starts = [place for place, id in enumerate(ids) if id in begins]
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield tuple(ids[start:stop])


def spelled_by(tokenizer: Tokenizer, largest: int) -> list[list[int]]:
    """Return the ids of " 0", " 1" ... " largest" as a tokenizer spells them behind another number.

    Raises:
        CheckpointError: it joins numbers, so that a text of several is not their spellings one after another.
    """

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    before = ids("0")
    spelled = [ids(f"0 {number}")[len(before) :] for number in range(largest + 1)]
    joined = [number for number in JOINED if number <= largest]
    together = [id for number in joined for id in spelled[number]]
    if ids("0 " + " ".join(map(str, joined))) != before + together:
        raise CheckpointError(
            "the tokenizer joins numbers that follow each other, so that they cannot be limited one by one: choose "
            "another [codec] than words."
        )
    return spelled


@dataclass
class _Node:
    """A node of the tree of all spellings."""

    is_whole: bool = False
    children: dict[int, _Node] = field(default_factory=dict["int", "_Node"])

    def add(self, rows: tuple[int, ...]) -> None:
        node = self
        for row in rows:
            node = node.children.setdefault(row, _Node())
        node.is_whole = True

    def merged(self) -> list[tuple[bool, dict[int, int]]]:
        """Return the nodes, each with its children by their places; equal subtrees once, parents before children."""
        known: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
        order: list[tuple[bool, dict[int, int]]] = []

        def place(node: _Node) -> int:
            children = {row: place(child) for row, child in node.children.items()}
            key = node.is_whole, tuple(sorted(children.items()))
            if key not in known:
                known[key] = len(order)
                order.append((node.is_whole, children))
            return known[key]

        place(self)
        last = len(order) - 1  # children came first; the root is the last
        return [(whole, {row: last - child for row, child in children.items()}) for whole, children in reversed(order)]
