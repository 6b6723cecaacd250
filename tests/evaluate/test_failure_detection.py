"""The threshold of the failure detector keeps its promise, and its scores are those that a run sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from vla_robot.evaluate.failure_detection import (
    conformal_threshold,
    detect,
    detections_of,
    least_successes,
    roc,
    separation,
)
from vla_robot.loop.failure_detector import CHUNK_GAP, ENTROPY, WINDOW, FailureDetector, Signal, scores
from vla_robot.loop.results import EpisodeResult, Outcome


def episode(seed: int, outcome: Outcome, entropy: NDArray[np.float64]) -> EpisodeResult:
    return EpisodeResult(seed, outcome, len(entropy), 1.0, entropy=tuple(entropy.tolist()))


def as_chunk_gap(result: EpisodeResult) -> EpisodeResult:
    """The same episode with a tenth of its entropy as its gap between chunks."""
    gaps = tuple(None if nats is None else nats / 10 for nats in result.entropy)
    return replace(result, entropy=(), chunk_gap=gaps)


@given(st.lists(st.floats(0, 6) | st.none(), max_size=30), st.floats(0, 6))
def test_an_episode_is_scored_as_a_run_sees_it(nats: list[float | None], threshold: float) -> None:
    detector = FailureDetector(threshold)
    warned = [detector.add(each) for each in nats]
    episode_scores = scores(nats)
    np.testing.assert_array_equal(episode_scores > threshold, warned)


def test_a_new_episode_begins_without_what_was_before() -> None:
    detector = FailureDetector(1.0)
    assert [detector.add(2.0) for _ in range(WINDOW)][-1]
    detector.reset()
    assert not any(detector.add(2.0) for _ in range(WINDOW - 1)) and detector.add(2.0)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("count", [19, 25, 60])
def test_few_further_successes_are_warned_of(rate: float, count: int) -> None:
    """The mean share of false alarms, over many calibrations, is between rate - 1 / (n + 1) and rate."""
    rng, alarms = np.random.default_rng(0), list[NDArray[np.bool_]]()
    for _ in range(2000):
        threshold = conformal_threshold(rng.lognormal(size=count).tolist(), rate)
        assert threshold is not None
        alarms.append(rng.lognormal(size=200) > threshold)
    assert rate - 1 / (count + 1) - 0.01 < np.mean(alarms) < rate + 0.01


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_the_area_under_the_curve_is_scipys_u_statistic(failed: list[int], succeeded: list[int]) -> None:
    found: Any = mannwhitneyu(failed, succeeded)  # scipy has no types
    expected = found.statistic / (len(failed) * len(succeeded))
    assert separation([float(x) for x in failed], [float(x) for x in succeeded]) == pytest.approx(expected)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_the_curve_has_the_area_that_is_told_and_never_falls(failed: list[int], succeeded: list[int]) -> None:
    bad, good = [float(x) for x in failed], [float(x) for x in succeeded]
    alarms, found = np.array(roc(bad, good)).T
    assert np.trapezoid(found, alarms) == pytest.approx(separation(bad, good))
    assert (np.diff(alarms) >= 0).all() and (np.diff(found) >= 0).all()
    assert (alarms[0], found[0], alarms[-1], found[-1]) == (0, 0, 1, 1)


def test_too_few_successes_give_no_threshold() -> None:
    assert least_successes(0.05) == 19
    assert conformal_threshold([1.0] * 18, 0.05) is None
    assert conformal_threshold(list(map(float, range(19))), 0.05) == 18.0


@pytest.mark.parametrize("signal", [ENTROPY, CHUNK_GAP], ids=lambda signal: signal.name)
def test_failures_that_become_unsure_are_told(signal: Signal) -> None:
    rng = np.random.default_rng(0)
    good = [episode(seed, "success", rng.uniform(0.8, 1.2, 15)) for seed in range(30)]
    stalls = [episode(100 + seed, "timeout", np.r_[np.ones(20), np.full(30, 3.0)]) for seed in range(4)]
    sure = [episode(200, "timeout", np.full(50, 0.5)), episode(201, "error", np.full(50, 9.0))]
    results, unit = [*good, *stalls, *sure], 1.0
    if signal is CHUNK_GAP:
        results, unit = list(map(as_chunk_gap, results)), 0.1
    found = detect(results, signal)
    assert detections_of(results) == {signal: found}
    assert found is not None and found.threshold is not None
    assert (found.successes, found.failures, found.early_steps) == (30, 5, 15)
    assert 1.0 < found.threshold / unit < 1.2
    assert found.warned == 4 and found.warned_at is not None and 20 < found.warned_at <= 22
    assert found.separation == pytest.approx(0.8)  # the failure that is sure is below all successes
    assert found.separation_early is not None and found.separation_early < 0.5  # no failure is unsure so early


def test_a_policy_that_tells_nothing_has_no_detection() -> None:
    results = [episode(0, "success", np.empty(0)), EpisodeResult(1, "timeout", 50, 1.0)]
    assert detect(results, ENTROPY) is None and detections_of(results) == {}


def test_without_failures_there_is_a_threshold_and_no_separation() -> None:
    found = detect([episode(seed, "success", np.full(20, 1.0 + seed / 100)) for seed in range(20)], ENTROPY)
    assert found is not None and found.threshold == pytest.approx(1.19)
    assert found.separation is None and found.roc == ()
