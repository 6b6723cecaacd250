"""What graphs of fixed sizes are fed: a batch in parts that fit their buckets, filled and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_robot.policy.onnx.record import Bucket, Record

type Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a batch.

    Attributes:
        pixels: (B, N, C, H, W) float32.
        prompts: B arrays of ids.
        state: (B, P) float32 in [-1, 1]; None for a policy without proprioception.
        given: B arrays of ids with which the answers begin; empty ones for none.
    """

    pixels: NDArray[np.float32]
    prompts: Sequence[Ids]
    state: NDArray[np.float32] | None
    given: Sequence[Ids]

    def rows(self, begin: int, end: int) -> Inputs:
        """Return some of the rows."""
        state = None if self.state is None else self.state[begin:end]
        return Inputs(self.pixels[begin:end], self.prompts[begin:end], state, self.given[begin:end])


def in_buckets(record: Record, inputs: Inputs) -> Iterator[tuple[Bucket, Inputs]]:
    """Yield the parts of a batch, each with a bucket that has at least as many rows.

    Raises:
        ContractError: a prompt is longer than the folder's graphs read.
    """
    text, done = max(map(len, inputs.prompts)), 0
    while done < len(inputs.prompts):
        bucket = record.bucket(len(inputs.prompts) - done, text)
        yield bucket, inputs.rows(done, done + bucket.rows)
        done += bucket.rows


def filled[N: np.generic](rows: NDArray[N], count: int) -> NDArray[N]:
    """Return (n, ...) rows as (count, ...); rows that are missing repeat the first one."""
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])


def padded(rows: Sequence[Ids], count: int, length: int, pad: int) -> Ids:
    """Return rows of ids as (count, length), padded at the right; rows that are missing repeat the first one."""
    wide = np.full((len(rows), length), pad, dtype=np.int64)
    for row, ids in zip(wide, rows, strict=True):
        row[: len(ids)] = ids
    return filled(wide, count)
