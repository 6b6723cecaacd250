"""Port of a dataset: episodes of steps, in any format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Episode, Field


@runtime_checkable
class MarksGaps(Protocol):
    """A source that knows which episodes are parts of a longer one, with lost steps between them."""

    def goes_on(self, index: int) -> bool:
        """Return whether the robot continued after this episode's last step with unrecorded actions."""
        ...


class EpisodeSource(Protocol):
    """A dataset, or part of one, in order. It must survive a fork and pickling into another process."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        ...

    @property
    def location(self) -> str:
        """Path or URL of the dataset."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of each step."""
        ...

    @property
    def metadata_fields(self) -> Mapping[str, Field]:
        """Fields of each episode."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Field that is not read -> reason."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the dataset for the user, besides damage."""
        ...

    @property
    def skipped(self) -> Sequence[object]:
        """Damaged parts that were left out, each printed as place and reason."""
        ...

    @property
    def num_skipped(self) -> int:
        """Number of episodes that were left out."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        ...

    @property
    def splits(self) -> Mapping[str, int]:
        """Every split of the whole dataset -> its number of episodes."""
        ...

    @property
    def rate_hz(self) -> float | None:
        """Steps per second; None if the format does not say."""
        ...

    def __len__(self) -> int:
        """Return the number of episodes."""
        ...

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        """Return one episode.

        Args:
            index: 0 to len - 1.
            fields: fields to parse; None parses all.

        Raises:
            IndexError: there is no such episode.
            DataError: there is no such field, or the file is damaged.
        """
        ...

    def encoded(self, index: int, field: str, step: int) -> bytes:
        """Return one frame as a JPEG or PNG file, without reading the rest of its episode.

        Raises:
            IndexError: there is no such episode or step.
            DataError: there is no such camera, or the file is damaged.
        """
        ...
