"""Tests of mixing and shuffling by the numbers of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.data.pipeline.shuffle import BLOCK, Mixing, shares_of, shuffled
from vla_robot.recipe import read
from vla_robot.recipe.oxe import MixtureRecipe

WEIGHTS = st.lists(st.floats(0.001, 10), min_size=1, max_size=12)


def datasets_of(mixing: Mixing, draws: int) -> list[int]:
    return [mixing.draw(sample)[0] for sample in range(draws)]


def test_every_share_is_within_a_hundredth_of_its_weight_over_100000_draws() -> None:
    weights = np.array([share.weight for share in read(MixtureRecipe, "oxe_magic_soup_plus_minus").datasets])
    steps = np.random.default_rng(0).integers(5_000, 2_000_000, len(weights))
    mixing = Mixing(weights * steps, seed=3)
    counts = np.bincount(datasets_of(mixing, 100_000), minlength=len(weights))
    expected = 100_000 * weights * steps / (weights * steps).sum()
    assert np.abs(counts - expected).max() <= 1.5 + BLOCK / 100, "far below a hundredth of all draws"
    assert (np.abs(counts / 100_000 - expected / 100_000) < 0.01).all()
    large = expected > 1000
    assert (np.abs(counts / expected - 1)[large] < 0.01).all(), "also relative to its own weight, where it has one"


@given(weights=WEIGHTS, draws=st.integers(0, 100_000))
def test_shares_sum_up_and_never_shrink(weights: list[float], draws: int) -> None:
    p = np.array(weights) / sum(weights)
    shares, more = shares_of(draws, p), shares_of(draws + 1, p)
    assert shares.sum() == draws
    assert (more >= shares).all() and more.sum() == draws + 1
    assert (np.abs(shares - draws * p) < 1 + 0.5 * len(weights)).all()


@given(weights=WEIGHTS)
def test_each_dataset_is_drawn_from_without_a_gap(weights: list[float]) -> None:
    mixing = Mixing(weights, seed=1)
    drawn: dict[int, list[int]] = {}
    for sample in range(2 * BLOCK):
        dataset, draw = mixing.draw(sample)
        drawn.setdefault(dataset, []).append(draw)
    assert all(draws == list(range(len(draws))) for draws in drawn.values())


def test_the_order_is_drawn_by_the_seed_and_nothing_else() -> None:
    assert datasets_of(Mixing([1, 2], 0), 3000) == datasets_of(Mixing([10, 20], 0), 3000)
    assert datasets_of(Mixing([1, 2], 0), 3000) != datasets_of(Mixing([1, 2], 1), 3000)


def test_a_late_sample_is_found_without_the_ones_before() -> None:
    early, late = Mixing([3, 1], 5), Mixing([3, 1], 5)
    datasets_of(early, 20 * BLOCK)
    assert early.draw(20 * BLOCK + 17) == late.draw(20 * BLOCK + 17)
    assert sum(late.draw(10**9)) > 0


@given(count=st.integers(1, 3000), key=st.integers(0, 2**31))
def test_shuffling_is_a_permutation(count: int, key: int) -> None:
    assert sorted(shuffled(np.arange(count), count, (key,)).tolist()) == list(range(count))


def test_shuffling_leaves_no_pattern() -> None:
    count = 50_000
    order = shuffled(np.arange(count), count, (7,)).astype(float)
    places = np.arange(count)
    assert abs(np.corrcoef(order, places)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, shuffled(places, count, (8,)))[0, 1]) < 0.02
    tenths = np.histogram(order[:5000], bins=10, range=(0, count))[0]
    assert (np.abs(tenths - 500) < 120).all(), "the first tenth of an epoch sees all of the dataset"


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_places_of_any_shape_are_shuffled(shape: tuple[int, ...]) -> None:
    assert shuffled(np.zeros(shape, dtype=int), 10, (0,)).shape == shape
