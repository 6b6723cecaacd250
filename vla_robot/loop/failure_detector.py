"""Detects that a policy is failing, by how unsure it is of its actions.

A policy that answers in tokens tells their entropy (`ActionChunk.entropy`). One unsure answer is no failure: the score
of a step is the mean over the last WINDOW steps, and a warning is given where it is above a threshold. `vla eval`
finds the threshold from successful episodes, `evaluate/failure_detection.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 5
"""Steps whose mean is the score."""


class FailureDetector:
    """Warns when the policy's recent actions were less sure than a threshold.

    >>> detector = FailureDetector(threshold=2.0)
    >>> [detector.add(nats) for nats in (1.0, 1.0, 9.0, 1.0, 1.0, 1.0)]
    [False, False, False, False, True, True]
    """

    def __init__(self, threshold: float) -> None:
        """
        Args:
            threshold: mean entropy of WINDOW steps above which the policy counts as unsure [nats].
        """
        self.threshold = threshold
        self._last: deque[float] = deque(maxlen=WINDOW)

    def reset(self) -> None:
        """Begin an episode, or go on after a person drove: what was before does not count."""
        self._last.clear()

    def add(self, entropy: float | None) -> bool:
        """Add a step, and return whether the policy is unsure now.

        Args:
            entropy: of the step's action [nats]; None if the policy did not choose it, or does not tell.
        """
        if entropy is not None:
            self._last.append(entropy)
        return self.score > self.threshold

    @property
    def score(self) -> float:
        """Mean entropy of the last WINDOW steps [nats]; NaN, which is above nothing, before there are as many."""
        return float(np.mean(self._last)) if len(self._last) == WINDOW else np.nan


def scores(entropy: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the (T,) scores of an episode of T steps [nats], NaN before there are WINDOW of them.

    `entropy`: of each step, as for `FailureDetector.add`.
    """
    detector, told = FailureDetector(np.inf), np.full(len(entropy), np.nan)
    for step, nats in enumerate(entropy):
        detector.add(nats)
        told[step] = detector.score
    return told
