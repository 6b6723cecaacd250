"""Pure functions that merge the rows of an old plan and a new chunk, one row for each control step.

The names are those of T. Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (ACT, arXiv
2304.13705), and K. Black et al., "Real-Time Execution of Action Chunking Flow Policies" (RTC, arXiv 2506.07339).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.messages import Vector

ENSEMBLE_M = 0.01
"""ACT's own value, which weighs older predictions a little more than newer ones."""

BLEND_STEPS = 4

Rows = NDArray[np.float64]
"""(T, D) actions."""


def ensemble(predictions: Sequence[Vector], m: float = ENSEMBLE_M) -> Vector:
    """Return ACT's temporal ensemble, the weighted mean of all predictions for one step.

    Args:
        predictions: (D,) each, oldest first.
        m: weights are exp(-m i), i = 0 for the oldest; the smaller m, the more new predictions count.

    Returns:
        (D,) float64.

    Source: tonyzhaozh/act, imitate_episodes.py, `temporal_agg`.
    """
    weights = np.exp(-m * np.arange(len(predictions)))
    return weights @ np.stack(predictions) / weights.sum()


def blend_weights(steps: int, overlap: int) -> Vector:
    """Return the old plan's share in each common step, (overlap,): it falls linearly and is 0 after `steps` steps.

    >>> blend_weights(3, 5).tolist()
    [0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return np.maximum(0.0, 1 - np.arange(1, overlap + 1) / (steps + 1))


def rtc_weights(delay: int, overlap: int) -> Vector:
    """Return the old plan's share by RTC's soft mask, (overlap,): 1 for the first `delay` rows, then falling towards 0.

    Args:
        delay: d, number of first rows that are executed before the chunk arrives.
        overlap: H - s, number of the chunk's rows that the old plan has as well.

    Source: RTC, equation 5: 1 for i < d, c (e^c - 1) / (e - 1) with c = (H - s - i) / (H - s - d + 1) up to H - s.

    >>> rtc_weights(2, 4).round(3).tolist()
    [1.0, 1.0, 0.368, 0.077]
    """
    row = np.arange(overlap)
    c = (overlap - row) / (overlap - min(delay, overlap) + 1)
    return np.where(row < delay, 1.0, c * np.expm1(c) / np.expm1(1.0))


def mix(old: Rows, new: Rows, old_share: Vector) -> Rows:
    """Return (T, D) rows mixed by the old plan's share in each, (T,) in [0, 1]; shares of 0 and 1 copy the rows."""
    share = old_share[:, None]
    mixed = share * old + (1 - share) * new
    return np.where(share == 1, old, np.where(share == 0, new, mixed))
