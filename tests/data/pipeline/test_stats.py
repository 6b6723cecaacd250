"""Tests of the statistics of datasets."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_robot.core.normalise import QuantileStats
from vla_robot.data.pipeline.stats import (
    count_pixels,
    dataset_statistics,
    describe,
    describe_finite,
    describe_pixels,
    merge,
)

VALUES = hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.floats(-10, 10))


def test_a_row_of_numbers_is_described_by_hand() -> None:
    described = describe([1.0, 2.0, 3.0, 4.0])
    assert described["mean"] == [2.5]
    assert described["std"] == pytest.approx([np.sqrt(1.25)])
    assert (described["min"], described["max"], described["count"]) == ([1], [4], [4])
    assert described["q50"] == [2.5]


def test_truth_values_are_numbers() -> None:
    assert describe([True, False, False, False])["mean"] == [0.25]


@given(parts=st.lists(VALUES, min_size=1, max_size=4))
def test_merged_statistics_are_those_of_all_values(parts: list[np.ndarray]) -> None:
    merged, whole = merge([describe(part) for part in parts]), describe(np.concatenate(parts))
    for name in ("mean", "std", "min", "max", "count"):
        np.testing.assert_allclose(merged[name], whole[name], atol=1e-9)


@given(VALUES)
def test_quantiles_are_ordered_and_within_range(values: np.ndarray) -> None:
    described = describe(values)
    ordered = [described[name] for name in ("min", "q01", "q10", "q50", "q90", "q99", "max")]
    for lower, higher in pairwise(ordered):
        assert (lower <= higher + 1e-12).all()


def test_pixel_counts_give_the_statistics_of_the_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    described = describe_pixels(np.sum([count_pixels(frame) for frame in frames], axis=0), len(frames))
    channels = frames.reshape(-1, 3) / 255
    assert described["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(described["mean"].ravel(), channels.mean(axis=0))
    np.testing.assert_allclose(described["std"].ravel(), channels.std(axis=0))
    np.testing.assert_allclose(described["min"].ravel(), channels.min(axis=0))
    np.testing.assert_allclose(described["max"].ravel(), channels.max(axis=0))
    np.testing.assert_allclose(described["q90"].ravel(), np.quantile(channels, 0.9, axis=0), atol=1 / 255)
    assert described["count"] == [4]


def test_dataset_statistics_have_openvlas_schema() -> None:
    rng = np.random.default_rng(0)
    actions, states = rng.normal(size=(1000, 7)), rng.normal(size=(1000, 5))
    statistics = json.loads(json.dumps(dataset_statistics("lift", actions, states, num_episodes=40)))
    block = statistics["lift"]
    assert set(block) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert set(block["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert set(block["proprio"]) == {"mean", "std", "max", "min", "q01", "q99"}
    assert (block["num_transitions"], block["num_trajectories"]) == (1000, 40)
    np.testing.assert_allclose(block["action"]["q01"], np.quantile(actions, 0.01, axis=0))
    np.testing.assert_allclose(block["action"]["std"], actions.std(axis=0))


def test_the_gripper_stays_as_it_is() -> None:
    block = dataset_statistics("lift", np.zeros((3, 7)), np.zeros((3, 5)), num_episodes=1)["lift"]["action"]
    assert QuantileStats.from_dict(block).mask.tolist() == [True] * 6 + [False]


def test_numbers_that_are_not_finite_are_left_out_of_what_json_holds() -> None:
    values = np.array([[1.0, np.nan, 2.0], [np.inf, np.nan, 4.0], [3.0, np.nan, 6.0]])
    described = describe_finite(values)
    np.testing.assert_array_equal(described["min"], [1, 0, 2])
    np.testing.assert_array_equal(described["max"], [3, 0, 6])
    np.testing.assert_array_equal(described["mean"], [2, 0, 4])
    assert described["count"].tolist() == [3]
    whole = np.arange(6.0).reshape(3, 2)
    for name, value in describe(whole).items():
        np.testing.assert_array_equal(describe_finite(whole)[name], value)
