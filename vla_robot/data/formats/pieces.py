"""Cuts a dataset into pieces: consecutive episodes that another process can read by itself, a shard at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.rlds.reader import RldsDataset


@dataclass(frozen=True)
class Piece:
    """Episodes start to stop - 1 of a source.

    Attributes:
        source: the source, or only these episodes of it.
        offset: number of episode `start` in `source`.
        start: first episode, in the whole source.
        stop: episode after the last, in the whole source.
    """

    source: EpisodeSource
    offset: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def episodes(self) -> Iterator[tuple[int, int]]:
        """Yield each episode's number in the whole source, and in `source`."""
        return zip(range(self.start, self.stop), range(self.offset, self.offset + len(self)), strict=True)


def pieces_of(source: EpisodeSource, most_steps: int) -> list[Piece]:
    """Return the pieces of a source in order: one for each shard, and more where a shard has more steps.

    A single episode that is longer is a piece of its own. The same source is always cut in the same way.
    """
    cuts = _cuts(source, most_steps)
    if isinstance(source, RldsDataset):
        return [Piece(source.excerpt(start, stop), 0, start, stop) for start, stop in cuts]
    return [Piece(source, start, start, stop) for start, stop in cuts]


def _cuts(source: EpisodeSource, most_steps: int) -> list[tuple[int, int]]:
    lengths = source.lengths
    shards = source.shard_of if isinstance(source, RldsDataset) else np.zeros(len(source), np.int64)
    cuts, start, steps = list[tuple[int, int]](), 0, 0
    for index, length in enumerate(lengths.tolist()):
        if index > start and (steps + length > most_steps or shards[index] != shards[index - 1]):
            cuts.append((start, index))
            start, steps = index, 0
        steps += length
    return [*cuts, (start, len(source))] if len(source) else []
