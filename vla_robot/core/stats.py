"""Statistics of few trials."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate.

    It stays within 0..1 and has a width at the edges, where the usual p ± 1.96 σ has none: 5 of 5 is not certainty.

    Args:
        successes: number of successful trials.
        trials: number of trials. Without a trial, nothing is known: (0, 1).
        confidence: share of such intervals that contain the true rate.

    Returns:
        Lower and upper bound of the rate.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927).

    >>> low, high = wilson_interval(5, 5)
    >>> round(low, 3), high
    (0.566, 1.0)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is not possible.")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    margin = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # At the edges the exact bounds are 0 and 1; rounding would leave them a few 1e-17 off.
    low = 0.0 if successes == 0 else max(0.0, centre - margin)
    high = 1.0 if successes == trials else min(1.0, centre + margin)
    return low, high


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test of two policies on the same seeds.

    Seeds on which both succeed, or both fail, do not count; under the hypothesis that the policies are equal,
    each other seed favours either policy with probability 0.5.

    Args:
        only_first: seeds on which only the first succeeded.
        only_second: seeds on which only the second succeeded.

    Returns:
        The probability of a split at least as uneven, either way; 1 if no seed distinguishes the policies.

    Source: Q. McNemar, Psychometrika 12 (1947), with the exact binomial in the place of chi-square.

    >>> mcnemar_p(6, 0)
    0.03125
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"{only_first} and {only_second} seeds: neither count can be negative.")
    seeds = only_first + only_second
    # Python's integers, so that thousands of seeds neither overflow nor lose digits.
    splits = tail = 1
    for k in range(min(only_first, only_second)):
        splits = splits * (seeds - k) // (k + 1)  # the next binomial coefficient from the one before
        tail += splits
    return min(1.0, 2 * tail / 2**seeds)
