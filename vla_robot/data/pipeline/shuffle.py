"""Which step comes when: mixing and shuffling by numbers alone.

    sample n  --mix-->  the k-th draw of dataset d  --shuffle-->  epoch k // N, place k % N  -->  step j of N

Everything is a function of the seed and n. There is no buffer to fill, to hold in memory or to lose: any process can
say what sample n is, so ranks and workers share the samples by counting, and a run goes on at the exact sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 4096
"""Samples whose datasets are put in order together."""

ROUNDS = 6
"""Of the permutation; four would do for the eye, six leave no pattern that a test could find."""

MIX = 11
"""Sets the random stream of this module apart from others with the same seed."""

ORDER = 0
"""Sets the order of recordings apart from others with the same seed."""

_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def shares_of(draws: int, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(D,) how many of the first `draws` samples each dataset gives.

    Sainte-Laguë's rule, as parliaments share seats: never more than about one away from `draws * probability`, sums to
    `draws` exactly, and no dataset's number shrinks when `draws` grows.
    """
    # Rounding a little fewer draws than there are gives no part too much; the rest is handed out one by one.
    seats = np.floor(max(draws - len(probabilities), 0) * probabilities + 0.5).astype(np.int64)
    while seats.sum() < draws:
        seats[np.argmin((seats + 0.5) / probabilities)] += 1
    return seats


class Mixing:
    """An endless sequence of datasets in which each has its share, in an order drawn by chance."""

    def __init__(self, probabilities: ArrayLike, seed: int) -> None:
        """
        Args:
            probabilities: (D,) above 0; they are brought to the sum 1.
            seed: of the order.
        """
        given = np.asarray(probabilities, dtype=np.float64)
        assert given.ndim == 1 and (given > 0).all(), "probabilities must be positive"
        self.probabilities = given / given.sum()
        self._seed = seed
        self._newest: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def draw(self, sample: int) -> tuple[int, int]:
        """Which dataset sample `sample` is from, and how many draws that dataset had before."""
        block, place = divmod(sample, BLOCK)
        if self._newest is None or self._newest[0] != block:
            self._newest = (block, *self._make_block(block))
        _, datasets, draws = self._newest
        return int(datasets[place]), int(draws[place])

    def _make_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before = shares_of(block * BLOCK, self.probabilities)
        counts = shares_of((block + 1) * BLOCK, self.probabilities) - before
        order = np.random.default_rng([self._seed, MIX, block]).permutation(BLOCK)
        datasets = np.repeat(np.arange(len(counts)), counts)[order]
        draws = np.empty(BLOCK, dtype=np.int64)
        # Each dataset's draws come in order, so that an epoch of it is over before the next one begins.
        draws[np.argsort(datasets, kind="stable")] = np.concatenate(
            [start + np.arange(count) for start, count in zip(before, counts, strict=True)]
        )
        return datasets, draws


class Order(Protocol):
    """Which sample comes when: a function of its number alone."""

    def place(self, number: int) -> tuple[int, int]:
        """Which dataset sample `number` is from, and which of its steps it is."""
        ...


class Weighted:
    """Datasets that are drawn from by shares, each in epochs of its own."""

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int, key: tuple[int, ...] = ()) -> None:
        """
        Args:
            counts: steps of each dataset.
            shares: how often each is drawn, relative to the others.
            seed: of the order.
            key: sets the order apart from others with the same seed.
        """
        self._counts, self._key, self._mixing = tuple(counts), (seed, *key), Mixing(shares, seed)

    def place(self, number: int) -> tuple[int, int]:
        which, draw = self._mixing.draw(number)
        count = self._counts[which]
        epoch, place = divmod(draw, count)
        return which, int(shuffled(place, count, (*self._key, which, epoch)))


class Pooled:
    """The steps of all datasets shuffled together; each epoch shows a step at most once, in whole batches.

    Attributes:
        size: samples of a batch: as many as were asked for, or as there are.
    """

    def __init__(self, counts: Sequence[int], size: int, seed: int) -> None:
        """
        Args:
            counts: steps of each dataset, at least one in all.
            size: samples of a batch. What is left of an epoch after whole batches is not drawn in it.
            seed: of the order.
        """
        self._ends, self._seed = np.cumsum(counts), seed
        self.size = min(size, int(self._ends[-1]))
        self._newest: tuple[int, NDArray[np.int64]] | None = None

    def place(self, number: int) -> tuple[int, int]:
        count = int(self._ends[-1])
        epoch, place = divmod(number, count // self.size * self.size)
        if self._newest is None or self._newest[0] != epoch:
            self._newest = epoch, np.random.default_rng([self._seed, ORDER, epoch]).permutation(count)
        step = int(self._newest[1][place])
        which = int(np.searchsorted(self._ends, step, side="right"))
        return which, step - (int(self._ends[which - 1]) if which else 0)


def shuffled(places: ArrayLike, count: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Where each place of 0..count-1 goes in a permutation that is drawn by `key`, without making the permutation.

    A Feistel network permutes the next power of four; what lands outside is permuted again. It takes no
    memory, where shuffled indices of all of Open-X-Embodiment would take a gigabyte in every worker.

    Args:
        places: (...) integers in [0, count).
        count: how many there are, at least 1.
        key: numbers, e.g. seed, dataset and epoch.
    """
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)  # bits of each half
    values = np.atleast_1d(np.asarray(places, dtype=np.uint64)).copy()
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= count
    return values.astype(np.int64).reshape(np.shape(places))


def _feistel(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask, bits = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the result depends on every bit of value and key.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators".
    """
    x = (values + key) * _STEP
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))
