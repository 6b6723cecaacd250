"""Merges action chunks into the plan that the arm executes while the next inference runs.

    step           10   11   12   13   14   15   16   17
    old chunk      a0   a1   a2   a3   a4   a5
    new chunk                b0   b1   b2   b3   b4   b5        caused by the observation of step 12
    arrives                            ^ step 14 is due: b0 and b1 are late, skipped and counted

Row k of a chunk belongs to step `chunk.step + k`, which is the capture of its observation plus k periods: control steps
are counted on the arm's clock and no number is ever skipped. The splice chooses the actions of the steps that both
chunks have:

    drop       b2 b3 b4 b5          the newest chunk wins; it may jump
    blend      from a to b          linear over some steps
    ensemble   mean of a and b      ACT's temporal ensemble over all chunks, the newest too
    rtc        a, then towards b    real-time chunking: committed rows stay, RTC's soft mask weighs the rest

The committed rows of "rtc" are those that will be executed before the answer can arrive (`ChunkBuffer.commit`, sent to
the policy as `Observation.committed`). They are executed unchanged, whatever the new chunk says.

A chunk with `ActionChunk.conditioned` was generated given the committed rows: a policy that generates tokens in order
is forced to begin with those of the committed rows, and its own rows are then exact up to the width of a bin; a
flow-matching head is guided by the committed rows and by the plan behind them. Both are taken as they are. For any
other policy the soft mask is applied to the finished rows. This only approximates RTC, which guides the denoising
itself with the same weights, so that the model finds a plan that fits; here plans are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError, PolicyError, unknown
from vla_robot.core.messages import ActionChunk, Vector
from vla_robot.safety.splice import BLEND_STEPS, ENSEMBLE_M, blend_weights, ensemble, mix, rtc_weights

ChunkMerge = Literal["drop", "blend", "ensemble", "rtc"]

OldShare = Callable[[int, int, int], Vector]
"""(frozen, late, overlap) -> (overlap,) share of the old plan, 0 to 1, in the future steps that both plans have.

The first `frozen` rows of the chunk are committed; the steps of the first `late` rows have passed.
"""


class ChunkBuffer:
    """A plan that takes chunks whenever they arrive, and returns one action for each control step."""

    def __init__(
        self,
        splice: ChunkMerge,
        dims: int,
        *,
        blend_steps: int = BLEND_STEPS,
        ensemble_m: float = ENSEMBLE_M,
    ) -> None:
        """
        Args:
            splice: how the steps that two chunks have in common are merged, as above.
            dims: D, numbers in one action.
            blend_steps: steps over which "blend" goes from the old chunk to the new one.
            ensemble_m: m of "ensemble".

        Raises:
            ContractError: there is no such splice.
        """
        old_shares: dict[str, OldShare] = {
            "drop": lambda frozen, late, overlap: np.zeros(overlap),
            "blend": lambda frozen, late, overlap: blend_weights(blend_steps, overlap),
            "ensemble": lambda frozen, late, overlap: np.zeros(overlap),
            "rtc": _committed_then_falling,
        }
        if splice not in old_shares:
            raise ContractError(unknown("splice", splice, get_args(ChunkMerge)))
        self._old_share = old_shares[splice]
        self._is_rtc = splice == "rtc"
        self._dims = dims
        self._ensemble_m = ensemble_m if splice == "ensemble" else None
        self._plan: dict[int, Vector] = {}
        self._predictions: dict[int, list[Vector]] = {}
        self._promised_ends: dict[int, int] = {}
        self._newest_step = 0
        self.dropped_rows = 0
        """Number of rows so far that arrived after their step."""

    def insert(self, chunk: ActionChunk, due_step: int) -> int:
        """Merge a chunk into the plan. All rows of a chunk that is older than the newest one count as late.

        Args:
            chunk: the policy's answer.
            due_step: the step that will be executed next.

        Returns:
            Number of rows that were late and are skipped.

        Raises:
            PolicyError: the actions have the wrong shape, or are not finite. The plan stays as it was.
        """
        rows = self._require_rows(chunk)
        is_overtaken = bool(self._plan) and chunk.step < self._newest_step
        late = len(rows) if is_overtaken else min(max(due_step - chunk.step, 0), len(rows))
        self.dropped_rows += late
        if late < len(rows):
            self._newest_step = chunk.step
            share = _committed_only if chunk.conditioned and self._is_rtc else self._old_share
            self._splice(rows[late:], chunk.step + late, chunk.step, share)
        return late

    def pop(self, step: int) -> Vector | None:
        """Return the action of a step, (D,), or None when the plan has none. Remove it and all earlier steps."""
        for done in [planned for planned in self._plan if planned < step]:
            self._forget(done)
        # Rows of past steps are frozen anyway, promised or not.
        self._promised_ends = {made: end for made, end in self._promised_ends.items() if end > step}
        action = self._plan.get(step)
        self._forget(step)
        return action

    def commit(self, step: int, steps: int) -> NDArray[np.float64]:
        """Promise the rows that will be executed before the answer to this observation can arrive.

        The promise holds only for the chunk of this observation, so each observation may have its own. It does not hold
        for rows that another chunk rewrites in the meantime.

        Args:
            step: step of the observation, the next one to be executed.
            steps: number of steps that begin before the answer, see `DelayEstimator.steps`.

        Returns:
            (n, D) for steps `step` .. `step + n - 1`; n is less than `steps` where the plan ends.
        """
        rows = self._planned(step, steps)
        self._promised_ends[step] = step + len(rows)
        return rows

    def planned(self, step: int) -> NDArray[np.float64]:
        """Return the (n, D) rows of consecutive steps that the plan has, beginning with this one."""
        return self._planned(step, len(self._plan))

    def clear(self) -> None:
        """Remove the plan, when an episode begins or the arm is held. `dropped_rows` is kept."""
        self._plan.clear()
        self._predictions.clear()
        self._promised_ends.clear()
        self._newest_step = 0

    def _splice(self, new: NDArray[np.float64], first: int, cause_step: int, old_share: OldShare) -> None:
        """Merge (T, D) rows into the plan from step `first` on; later rows of the old plan are removed."""
        old = self._planned(first, len(new))
        late = first - cause_step
        promised = self._promised_ends.get(cause_step, first) - cause_step
        share = old_share(max(promised, late), late, len(old))
        spliced = np.concatenate([mix(old, new[: len(old)], share), new[len(old) :]])
        for step in [planned for planned in self._plan if planned >= first]:
            del self._plan[step]
        for step in [planned for planned in self._predictions if planned >= first + len(new)]:
            del self._predictions[step]
        for step, row in enumerate(spliced, start=first):
            self._plan[step] = row if self._ensemble_m is None else self._mean(step, row)

    def _mean(self, step: int, row: Vector) -> Vector:
        assert self._ensemble_m is not None
        predictions = self._predictions.setdefault(step, [])
        predictions.append(row)
        return ensemble(predictions, self._ensemble_m)

    def _planned(self, first: int, steps: int) -> NDArray[np.float64]:
        """Return at most `steps` rows, (n, D), from step `first` up to the plan's first gap."""
        rows: list[Vector] = []
        while len(rows) < steps and (row := self._plan.get(first + len(rows))) is not None:
            rows.append(row)
        return np.array(rows).reshape(-1, self._dims)

    def _forget(self, step: int) -> None:
        self._plan.pop(step, None)
        self._predictions.pop(step, None)

    def _require_rows(self, chunk: ActionChunk) -> NDArray[np.float64]:
        """Return a copy of the chunk's actions, (T, D). Raise PolicyError unless they are finite and have D columns."""
        rows = np.array(chunk.actions, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self._dims or not len(rows):
            raise PolicyError(f"a chunk has actions of shape {rows.shape}, expected (1 or more, {self._dims}).")
        if not np.isfinite(rows).all():
            row = int(np.argmin(np.isfinite(rows).all(axis=1)))
            raise PolicyError(f"row {row} of a chunk of {len(rows)} actions is not finite: {rows[row].tolist()}.")
        return rows


def _committed_only(frozen: int, late: int, overlap: int) -> Vector:
    return (late + np.arange(overlap) < frozen).astype(np.float64)


def _committed_then_falling(frozen: int, late: int, overlap: int) -> Vector:
    return rtc_weights(frozen, late + overlap)[late:]
