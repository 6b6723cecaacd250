"""Detects that a policy is failing, by a signal of how unsure it is of its actions.

There are two signals: a policy that answers in tokens tells their entropy (`ActionChunk.entropy`), and a policy whose
chunks overlap has a gap between them (`ActionChunk.chunk_gap`). One high value is no failure: the score of a step is
the mean over the last WINDOW steps, and a warning is given where it is above a threshold. `vla eval` finds the
threshold from successful episodes, `evaluate/failure_detection.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_robot.loop.events import StepDone
from vla_robot.loop.results import EpisodeResult

WINDOW = 5
"""Steps whose mean is the score."""


@dataclass(frozen=True)
class Signal:
    """A number that a step may have; the higher, the less sure the policy is.

    Attributes:
        name: its name on the command line, in logs and JSON, and as a field of `StepDone` and `EpisodeResult`.
        title: its name in tables and sentences.
        unit: its unit, in words.
        most: its largest value, in the unit.
    """

    name: str
    title: str
    unit: str
    most: float = math.inf

    def of_step(self, step: StepDone) -> float | None:
        """Return the step's value; None if it has none."""
        return getattr(step, self.name)

    def of_episode(self, result: EpisodeResult) -> Sequence[float | None]:
        """Return the value of each step; empty if none has one."""
        return getattr(result, self.name)


ENTROPY = Signal("entropy", "entropy", "nats")
CHUNK_GAP = Signal("chunk_gap", "chunk gap", "of the range", most=1.0)

SIGNALS = {signal.name: signal for signal in (ENTROPY, CHUNK_GAP)}


@dataclass(frozen=True)
class Threshold:
    """A score above which the policy counts as unsure.

    >>> str(Threshold(CHUNK_GAP, 0.15))
    'chunk_gap:0.15'

    Attributes:
        signal: what is scored.
        score: mean of WINDOW steps, in the signal's unit.
    """

    signal: Signal
    score: float

    def __str__(self) -> str:
        """Return it as `vla run --ask-when-unsure` takes it."""
        return f"{self.signal.name}:{self.score:.3g}"


class FailureDetector:
    """Warns when a signal's mean over recent steps is above a threshold.

    >>> detector = FailureDetector(threshold=2.0)
    >>> [detector.add(value) for value in (1.0, 1.0, 9.0, 1.0, 1.0, 1.0)]
    [False, False, False, False, True, True]
    """

    def __init__(self, threshold: float) -> None:
        """
        Args:
            threshold: mean of WINDOW steps above which the policy counts as unsure, in the signal's unit.
        """
        self.threshold = threshold
        self._last: deque[float] = deque(maxlen=WINDOW)

    def reset(self) -> None:
        """Begin an episode, or go on after a person drove: what was before does not count."""
        self._last.clear()

    def add(self, value: float | None) -> bool:
        """Add a step, and return whether the policy is unsure now.

        Args:
            value: the step's, in the signal's unit; None if the policy did not choose its action, or it has no value.
        """
        if value is not None:
            self._last.append(value)
        return self.score > self.threshold

    @property
    def score(self) -> float:
        """Mean of the last WINDOW steps in the signal's unit; NaN, which is above nothing, before there are as many."""
        return float(np.mean(self._last)) if len(self._last) == WINDOW else np.nan


def scores(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the (T,) scores of an episode of T steps, in the signal's unit, NaN before there are WINDOW of them.

    `values`: of each step, as for `FailureDetector.add`.
    """
    detector, told = FailureDetector(np.inf), np.full(len(values), np.nan)
    for step, value in enumerate(values):
        detector.add(value)
        told[step] = detector.score
    return told
