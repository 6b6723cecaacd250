"""The port of a dataset: episodes of steps, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Episode, Field


@runtime_checkable
class MarksGaps(Protocol):
    """A source that knows of episodes which are parts of a longer one, steps between them being lost."""

    def goes_on(self, index: int) -> bool:
        """Whether the robot went on after this episode's last step: what it did then is not known."""
        ...


class EpisodeSource(Protocol):
    """A dataset, or a part of one, in order. Processes may be forked from, and it may be pickled into, others."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        ...

    @property
    def location(self) -> str:
        """Where it lies: a path or a URL."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """What each step has."""
        ...

    @property
    def metadata_fields(self) -> Mapping[str, Field]:
        """What each episode has."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Field that is not read -> why."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the dataset beside damage."""
        ...

    @property
    def skipped(self) -> Sequence[object]:
        """What was left out as damaged, each printed as place and reason."""
        ...

    @property
    def num_skipped(self) -> int:
        """How many episodes that are."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        ...

    @property
    def splits(self) -> Mapping[str, int]:
        """Every split of the whole dataset and how many episodes it has."""
        ...

    @property
    def rate_hz(self) -> float | None:
        """Steps per second, where the format says."""
        ...

    def __len__(self) -> int:
        """How many episodes."""
        ...

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        """One episode.

        Args:
            index: 0 to len - 1.
            fields: which to parse; None parses all.

        Raises:
            IndexError: there is no such episode.
            DataError: no such field, or the file is damaged.
        """
        ...

    def encoded(self, index: int, field: str, step: int) -> bytes:
        """One frame as a JPEG or PNG file, without reading the rest of its episode.

        Raises:
            IndexError: there is no such episode or step.
            DataError: no such camera, or the file is damaged.
        """
        ...
