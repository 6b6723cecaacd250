"""Calibrates the failure detector on finished episodes, and tells how well it separates failures from successes.

The threshold is conformal: of n successful episodes, the highest scores are sorted, and the threshold is the
ceil((n + 1) (1 - rate)) smallest. A further successful episode of the same kind (same policy, world and distribution of
seeds) is warned of with a probability of at most `rate`, whatever the scores' distribution.
Source: Vovk et al. 2005; for failures of policies, Xu et al. 2025 (FAIL-Detect, arXiv 2503.08558).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.loop.failure_detector import SIGNALS, Signal, scores
from vla_robot.loop.results import EpisodeResult

FALSE_ALARMS = 0.05
"""Share of successful episodes that may be warned of."""


@dataclass(frozen=True)
class Detection:
    """How well a signal of a policy tells failures.

    Attributes:
        successes: episodes that succeeded and have the signal.
        failures: episodes that did not succeed and have it.
        separation: area under the ROC curve of the highest scores: how likely a failure's is above a success's. None
            without episodes of both kinds.
        separation_early: the same of the first `early_steps` steps, since a longer episode has more chances of a high
            score.
        early_steps: the successes' median number of steps.
        threshold: score above which to warn, in the signal's unit; None for too few successes.
        warned: failures that the threshold warns of.
        warned_at: median step of these warnings.
        roc: (false alarms, failures warned of) as shares, for every threshold from the highest on; empty without
            episodes of both kinds.
    """

    successes: int
    failures: int
    separation: float | None
    separation_early: float | None
    early_steps: int | None
    threshold: float | None
    warned: int
    warned_at: float | None
    roc: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return dict(vars(self))


def least_successes(rate: float = FALSE_ALARMS) -> int:
    """Return how many successes a threshold of that rate of false alarms needs.

    >>> least_successes(0.05)
    19
    """
    return math.ceil(1 / rate) - 1


def conformal_threshold(highest: Sequence[float], rate: float = FALSE_ALARMS) -> float | None:
    """Return the threshold of n episodes' highest scores; None if they are too few for this rate."""
    place = math.ceil((len(highest) + 1) * (1 - rate) - 1e-9)
    return sorted(highest)[place - 1] if place <= len(highest) else None


def separation(failed: Sequence[float], succeeded: Sequence[float]) -> float | None:
    """Return the area under the ROC curve; equal scores count half. None unless there are both.

    >>> separation([3.0, 2.0], [1.0, 2.0])
    0.875
    """
    if not failed or not succeeded:
        return None
    differences = np.sign(np.subtract.outer(failed, succeeded))
    return float(np.mean((differences + 1) / 2))


def roc(failed: Sequence[float], succeeded: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the ROC curve: shares of successes and of failures whose score is at least a threshold, as it falls.

    >>> roc([3.0, 2.0], [1.0, 2.0])
    ((0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0))
    """
    if not failed or not succeeded:
        return ()
    thresholds = sorted({*failed, *succeeded}, reverse=True)
    shares = [(float(np.mean(np.array(succeeded) >= t)), float(np.mean(np.array(failed) >= t))) for t in thresholds]
    return ((0.0, 0.0), *shares)


def detections_of(results: Sequence[EpisodeResult]) -> dict[Signal, Detection]:
    """Return how well each signal tells failures; without signals that no result has."""
    found = ((signal, detect(results, signal)) for signal in SIGNALS.values())
    return {signal: detection for signal, detection in found if detection is not None}


def detect(results: Sequence[EpisodeResult], signal: Signal, rate: float = FALSE_ALARMS) -> Detection | None:
    """Calibrate on the successes among results, and judge the failures by it; None if no result has the signal.

    Episodes that ended in an error count as neither.
    """
    told = [(r, scores(signal.of_episode(r))) for r in results if r.outcome != "error"]
    told = [(result, score) for result, score in told if not np.isnan(score).all()]
    if not told:
        return None
    good, bad = [s for r, s in told if r.success], [s for r, s in told if not r.success]
    early = int(np.median([len(score) for score in good])) if good else None
    highest = [_highest(score) for score in bad], [_highest(score) for score in good]
    threshold = conformal_threshold(highest[1], rate)
    warnings = [at for score in bad if threshold is not None and (at := _first_above(score, threshold)) is not None]
    return Detection(
        successes=len(good),
        failures=len(bad),
        separation=separation(*highest),
        separation_early=separation(_all_highest(bad, early), _all_highest(good, early)),
        early_steps=early,
        threshold=threshold,
        warned=len(warnings),
        warned_at=float(np.median(warnings)) if warnings else None,
        roc=roc(*highest),
    )


def _highest(score: NDArray[np.float64]) -> float:
    return float(np.nanmax(score))


def _all_highest(episodes: Sequence[NDArray[np.float64]], steps: int | None) -> list[float]:
    """Return the highest score within the first steps of each episode that has one there."""
    begun = [score[:steps] for score in episodes]
    return [_highest(score) for score in begun if not np.isnan(score).all()]


def _first_above(score: NDArray[np.float64], threshold: float) -> int | None:
    """Return the number of the first step, from 1 on, whose score is above the threshold."""
    above = np.flatnonzero(score > threshold)
    return int(above[0]) + 1 if len(above) else None
