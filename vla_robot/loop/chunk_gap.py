"""Measures how far a chunk is from the former one in the steps that both plan, which tells when a policy is failing.

    step           10   11   12   13   14   15   16   17
    former chunk   a0   a1   a2   a3   a4   a5
    new chunk                     b0   b1   b2   b3   b4        chunk gap: mean of |b0 - a3|, |b1 - a4| and |b2 - a5|

A difference is a share of its dimension's range in the action space, gripper included, and the gap is the mean over
steps and dimensions: 0 for the same plan, 1 where each number went from one end of its range to the other. Both chunks
are first limited to the range, as the guard limits them. For example, with a motion of -0.05 to 0.05 m and a gripper of
0 to 1, (0.02 m, 1) after (0.01 m, 1) is 0.1 of a range and 0: a gap of 0.05.

Any policy has it whose chunk is not used up when it is asked again: with an execution horizon below the chunk's length,
or on a robot with its own clock. Random samples of a flow or diffusion head differ in every answer, and smooth joining
(RTC) makes plans alike: a threshold holds for one policy with one setting.
Source: Agia et al. 2024 (STAC, arXiv 2410.04640), which compares distributions of overlapping chunks by many samples of
each; here one answer is compared with one, at no further inference.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import MeasuresChunkGap, Policy


class ChunkGapMeter:
    """Measures each answer of a policy against the one before it, in one episode."""

    def __init__(self, policy: Policy, space: ActionSpace) -> None:
        """
        Args:
            policy: the policy that is asked; nothing is measured of one that measures its answers itself.
            space: the action space of the arm, which gives the ranges.
        """
        self._space = space
        self._is_measured = isinstance(policy, MeasuresChunkGap) and policy.measures_chunk_gap
        self._former: ActionChunk | None = None

    def forget(self) -> None:
        """Begin an episode, or go on after a person drove: the next answer is measured against none before it."""
        self._former = None

    def measured(self, chunk: ActionChunk, observation: Observation) -> ActionChunk:
        """Return an answer with its gap; a person's has none, and neither has the first one after it.

        Args:
            chunk: the policy's answer.
            observation: what it was asked with. The committed rows, which a conditioned answer repeats, do not count.
        """
        if self._is_measured:
            return chunk
        former, self._former = self._former, None if chunk.intervention else chunk
        if former is None or chunk.intervention:
            return replace(chunk, chunk_gap=None)
        repeated = len(observation.committed) if chunk.conditioned and observation.committed is not None else 0
        return replace(chunk, chunk_gap=chunk_gap(former, chunk, self._space, repeated))


def chunk_gap(former: ActionChunk, new: ActionChunk, space: ActionSpace, repeated: int = 0) -> float | None:
    """Return the gap of two chunks, 0 to 1, as shares of the dimensions' ranges.

    Args:
        former: the answer before.
        new: the present answer.
        space: gives the ranges; a dimension that has only one value is left out.
        repeated: number of the new chunk's first rows that do not count.

    Returns:
        None if the chunks have no further step in common, or hold actions that the guard refuses: of another shape, or
        not finite.
    """
    first = max(new.step + repeated, former.step)
    end = min(new.step + len(new.actions), former.step + len(former.actions))
    ranges = space.high - space.low
    varies = ranges > 0
    if first >= end or not varies.any() or not (_is_numbers(former, space) and _is_numbers(new, space)):
        return None
    old, now = (_limited(chunk, space)[first - chunk.step : end - chunk.step] for chunk in (former, new))
    gap = float(np.mean(np.abs(now - old)[:, varies] / ranges[varies]))
    return gap if np.isfinite(gap) else None


def _is_numbers(chunk: ActionChunk, space: ActionSpace) -> bool:
    return chunk.actions.ndim == 2 and chunk.actions.shape[1] == len(space) and chunk.actions.dtype.kind in "iuf"


def _limited(chunk: ActionChunk, space: ActionSpace) -> NDArray[np.float64]:
    """Return (T, D) actions within the ranges; NaN stays NaN."""
    return np.clip(chunk.actions.astype(np.float64), space.low, space.high)
