"""Dataset format "tape": numbers in CSV files, one file an episode, and a tape.json that says what they belong to.

tape.json          {"instruction": "move forward", "rate_hz": 10}
episode_000.csv    x,y,z,dx,dy,dz,droll,dpitch,dyaw,gripper        a header, then one line a step
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource
from vla_robot.core.untrusted import read_file
from vla_robot.data.formats.source import require_fields, require_finite, require_index
from vla_robot.data.formats.split_expression import episodes_of
from vla_robot.recipe import DatasetFormat

ABOUT = "tape.json"
STATE = ("x", "y", "z")
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
COLUMNS = (*STATE, *ACTION)
MAX_BYTES = 2**24
"""Of one file, which is not ours: more is refused before it is read."""


@dataclass(frozen=True)
class TapeSource:
    """Implements the port EpisodeSource. It holds arrays and texts alone, so that it travels to other processes.

    Attributes:
        root: the folder.
        instruction: of every step.
        rate_hz: steps per second.
        total: episodes of the whole dataset.
        episodes: of this part, each (T, 10) in the order of COLUMNS.
        skipped: what was left out as damaged.
    """

    root: Path
    instruction: str
    rate_hz: float
    total: int
    episodes: tuple[NDArray[np.float64], ...]
    skipped: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def fields(self) -> Mapping[str, Field]:
        fields = (
            Field("observation/state", "number", "float64", (len(STATE),)),
            Field("action", "number", "float64", (len(ACTION),)),
            Field("language_instruction", "text", "str", ()),
        )
        return {field.name: field for field in fields}

    @property
    def metadata_fields(self) -> Mapping[str, Field]:
        return {}

    @property
    def left_out(self) -> Mapping[str, str]:
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def num_skipped(self) -> int:
        return len(self.skipped)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(rows) for rows in self.episodes], np.int64)

    @property
    def splits(self) -> Mapping[str, int]:
        return {"train": self.total}

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        wanted = require_fields(fields, self.fields, self.location)
        rows = self.episodes[index]
        columns: dict[str, Column] = {
            "observation/state": rows[:, : len(STATE)],
            "action": rows[:, len(STATE) :],
            "language_instruction": (self.instruction,) * len(rows),
        }
        steps = {name: columns[name] for name in wanted}
        return Episode(index, {}, steps, len(rows), f"{self.location}, episode {index}")

    def encoded(self, index: int, field: str, step: int) -> bytes:
        """Raises DataError: a tape has no camera."""
        raise DataError(f"{self.location}: no camera '{field}'; a tape holds numbers alone.")


def recognises(location: str) -> bool:
    """A tape.json lies there."""
    return (Path(location) / ABOUT).is_file()


def open_tape(location: str, split: str, skip_corrupt: bool, on_progress: object) -> EpisodeSource:
    """A tape, or a part of it. Raises DataError: it is damaged, or there is no such split."""
    root = Path(location)
    instruction, rate_hz = _about(root / ABOUT)
    files = sorted(root.glob("episode_*.csv"))
    chosen = [files[i] for i in episodes_of(split, {"train": list(range(len(files)))}, location)]
    episodes: list[NDArray[np.float64]] = []
    skipped: list[str] = []
    for file in chosen:
        try:
            episodes.append(_rows(file))
        except DataError as error:
            if not skip_corrupt:
                raise
            skipped.append(str(error))
    return TapeSource(root, instruction, rate_hz, len(files), tuple(episodes), skipped)


def _about(path: Path) -> tuple[str, float]:
    try:
        about = json.loads(read_file(path, MAX_BYTES))
        instruction, rate_hz = str(about["instruction"]), float(about["rate_hz"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not say instruction and rate_hz: {error!r}.") from error
    if not 0 < rate_hz < np.inf:
        raise DataError(f"{path}: rate_hz is {rate_hz:g}; it must be above 0.")
    return instruction, rate_hz


def _rows(path: Path) -> NDArray[np.float64]:
    """(T, 10) numbers of one file."""
    try:
        header, *lines = csv.reader(read_file(path, MAX_BYTES).decode().splitlines())
        rows = np.array(lines, dtype=np.float64).reshape(len(lines), len(COLUMNS))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}.") from error
    if tuple(header) != COLUMNS or not len(rows):
        raise DataError(
            f"{path} is damaged: it needs the columns {','.join(COLUMNS)} and at least one line of numbers."
        )
    require_finite(rows, str(path))
    return rows


FORMAT = DatasetFormat("a tape: numbers in CSV files beside a tape.json", recognises, open_tape)
