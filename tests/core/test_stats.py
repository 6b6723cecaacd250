"""Wilson's interval and McNemar's test against published values and their own properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.stats import mcnemar_p, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # At the edges the closed form is n / (n + z^2), with z^2 = 3.8415.
        (0, 5, (0.0, 0.4345)),
        (5, 5, (0.5655, 1.0)),
        (50, 50, (0.9287, 1.0)),
        # Newcombe, Stat. Med. 17 (1998), table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_golden_intervals(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=6e-5)


counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_it_holds_the_rate_and_stays_within_0_and_1(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high


@given(counts)
def test_its_bounds_are_the_rates_that_the_data_just_do_not_refute(count: tuple[int, int]) -> None:
    """The definition: |p_seen - p| = z sqrt(p (1 - p) / n)."""
    successes, trials = count
    for p in wilson_interval(successes, trials):
        distance = abs(successes / trials - p)
        assert distance**2 == pytest.approx(1.959964**2 * p * (1 - p) / trials, rel=1e-5, abs=1e-12)


@given(counts)
def test_successes_and_failures_mirror_each_other(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson_interval(successes, trials)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts)
def test_more_confidence_is_wider(count: tuple[int, int]) -> None:
    narrow, wide = wilson_interval(*count, confidence=0.8), wilson_interval(*count, confidence=0.99)
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        wilson_interval(6, 5)


@pytest.mark.parametrize(
    ("split", "expected"),
    [((0, 0), 1.0), ((1, 0), 1.0), ((5, 0), 0.0625), ((6, 0), 0.03125), ((2, 8), 0.109375), ((4, 4), 1.0)],
)
def test_golden_p_values(split: tuple[int, int], expected: float) -> None:
    """By hand: twice the binomial tail, at most 1."""
    assert mcnemar_p(*split) == expected


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_which_policy_comes_first_does_not_matter(a: int, b: int) -> None:
    assert mcnemar_p(a, b) == mcnemar_p(b, a)
    assert 0 <= mcnemar_p(a, b) <= 1


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_more_uneven_split_is_less_likely(fewer: int, gap: int) -> None:
    seeds = 2 * fewer + gap
    if fewer:
        assert mcnemar_p(fewer - 1, seeds - fewer + 1) < mcnemar_p(fewer, seeds - fewer)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 and 3 seeds"):
        mcnemar_p(-1, 3)
