"""Computes the order of samples: mixes datasets and shuffles steps as functions of the sample's number.

    sample n  --mix-->  the k-th draw of dataset d  --shuffle-->  epoch k // N, place k % N  -->  step j of N

The order depends only on the seed and n. There is no shuffle buffer: any process can compute sample n, so that ranks
and workers share the samples by counting, and a resumed run continues at the exact sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 4096
"""Number of consecutive samples whose datasets are permuted together."""

ROUNDS = 6
"""Rounds of the permutation; with four no pattern is visible, with six the tests find none."""

MIX = 11
"""Key of this module's random stream, which makes it differ from others with the same seed."""

ORDER = 0
"""Key of the order of recordings, which makes it differ from others with the same seed."""

_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def shares_of(draws: int, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of the first `draws` samples each dataset gives, (D,).

    They follow Sainte-Laguë's rule, by which parliaments share seats: each is within about one of
    `draws * probability`, their sum is `draws`, and none decreases when `draws` grows.
    """
    # Rounding slightly fewer draws gives no dataset too many; the remaining draws are assigned one by one.
    seats = np.floor(max(draws - len(probabilities), 0) * probabilities + 0.5).astype(np.int64)
    while seats.sum() < draws:
        seats[np.argmin((seats + 0.5) / probabilities)] += 1
    return seats


class Mixing:
    """An endless random sequence of datasets in which each has its share."""

    def __init__(self, probabilities: ArrayLike, seed: int) -> None:
        """
        Args:
            probabilities: (D,) above 0; they are scaled to the sum 1.
            seed: seed of the order.
        """
        given = np.asarray(probabilities, dtype=np.float64)
        assert given.ndim == 1 and (given > 0).all(), "probabilities must be positive"
        self.probabilities = given / given.sum()
        self._seed = seed
        self._newest: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def draw(self, sample: int) -> tuple[int, int]:
        """Return the index of the dataset of a sample, and how many draws that dataset had before."""
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
        # Each dataset's draws are in order, so that one epoch of it ends before the next one begins.
        draws[np.argsort(datasets, kind="stable")] = np.concatenate(
            [start + np.arange(count) for start, count in zip(before, counts, strict=True)]
        )
        return datasets, draws


class Order(Protocol):
    """The order of samples, as a function of a sample's number."""

    def place(self, number: int) -> tuple[int, int]:
        """Return the index of the dataset of sample `number`, and of its step."""
        ...


class Weighted:
    """An order that draws from datasets by shares, and shuffles each in epochs of its own."""

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int, key: tuple[int, ...] = ()) -> None:
        """
        Args:
            counts: number of steps of each dataset.
            shares: relative frequency of each dataset.
            seed: seed of the order.
            key: numbers that make the order differ from others with the same seed.
        """
        self._counts, self._key, self._mixing = tuple(counts), (seed, *key), Mixing(shares, seed)

    def place(self, number: int) -> tuple[int, int]:
        which, draw = self._mixing.draw(number)
        count = self._counts[which]
        epoch, place = divmod(draw, count)
        return which, int(shuffled(place, count, (*self._key, which, epoch)))


class Pooled:
    """An order that shuffles the steps of all datasets together; each epoch has a step at most once, in whole batches.

    Attributes:
        size: number of samples in a batch: the wanted number, or that of all steps if that is less.
    """

    def __init__(self, counts: Sequence[int], size: int, seed: int) -> None:
        """
        Args:
            counts: number of steps of each dataset, at least one in all.
            size: number of samples in a batch. The steps of an epoch that fill no whole batch are not drawn in it.
            seed: seed of the order.
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
    """Return the values of a random permutation of 0..count-1 at some places, without computing the whole permutation.

    A Feistel network permutes the next power of four; a value outside of the range is permuted again. It takes no
    memory, where shuffled indices of all of Open-X-Embodiment would take a gigabyte in every worker.

    Args:
        places: (...) integers in [0, count).
        count: size of the permutation, at least 1.
        key: numbers that seed the permutation, e.g. seed, dataset and epoch.

    Returns:
        (...) int64 in [0, count).
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
    """Apply splitmix64's finaliser, by which each bit of the result depends on each bit of value and key.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators".
    """
    x = (values + key) * _STEP
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))
