"""Reads LeRobot datasets of versions 2.0, 2.1 and 3, with frames in the tables or in videos.

Tables are read with pyarrow and videos decoded by lerobot's own decoder, one episode at a time. LeRobotDataset is not
used since it requests missing files from the network, imports torch to read a number, and decodes all frames of a step
to return one; tests compare the two.

Fields are named as in other sources, "/" for ".": "observation/state", "action". A camera's "observation.images.front"
is "observation/images/front", and the task of each step is "language_instruction". Columns that are neither numbers,
text nor frames are left out and named in `left_out`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Column, Episode, Field, Frames
from vla_robot.core.errors import DataError
from vla_robot.core.host.optional import require
from vla_robot.core.untrusted import malformed, parse_json, read_file, shortened
from vla_robot.data.formats.lerobot.layout import (
    COUNTERS,
    INFO,
    MAX_LINES_BYTES,
    TASK_INDEX,
    TIMESTAMP,
    EpisodePlace,
    goes_on,
    has_null,
    read_info,
    read_places,
    read_recording,
    read_rows,
    read_table,
    read_tasks,
    to_numbers,
)
from vla_robot.data.formats.lerobot.video import (
    DepthImages,
    VideoFrames,
    depth_code,
    depth_unit,
    is_depth,
    why_not_depth,
)
from vla_robot.data.formats.source import (
    ACTIONS,
    STATES,
    EncodedFrames,
    find_damage,
    require_fields,
    require_index,
    tell_empty,
    tell_left_out,
)
from vla_robot.data.formats.split_expression import episodes_of

INSTRUCTION = "language_instruction"
NOTHING: Mapping[Any, str] = MappingProxyType({})
METADATA = "meta/episode_metadata.jsonl"
"""File of our own with one line of JSON an episode: the metadata of the episode in the source of a conversion."""


class LeRobotSource:
    """An `EpisodeSource` of a LeRobot dataset. Open it with `open_lerobot`.

    Attributes:
        root: the dataset's folder.
        robot: LeRobot's robot_type.
        lerobot_features: column -> its description in info.json.
    """

    def __init__(
        self,
        root: Path,
        split: str | None,
        damaged: Mapping[int, str] = NOTHING,
        unneeded: Mapping[str, str] = NOTHING,
    ) -> None:
        """
        Args:
            root: the dataset's folder.
            split: "train" for all episodes, a part of it such as "train[:95%]", or "all"; None for all episodes and one
                that info.json does not count yet because of a crash.
            damaged: index of an episode of the split that is left out -> why.
            unneeded: field that is left out -> why.

        Raises:
            DataError: there is no dataset of version 2.0, 2.1 or 3, it is damaged or empty, or the split is unknown.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("pyarrow", "data", "a LeRobot dataset")
        self.root, self.name, self.location = root, root.name, str(root)
        self._split, self._damaged = split, dict(damaged)
        self.skipped, self.num_skipped = tuple(damaged.values()), len(damaged)
        self._info = read_info(root)
        self.rate_hz, self.robot = float(self._info["fps"]), str(self._info.get("robot_type") or "")
        self.lerobot_features: Mapping[str, Any] = self._info["features"]
        self.metadata_fields: dict[str, Field] = {}  # LeRobot describes none; `episode` gives what a conversion kept
        self._places = read_places(root, self._info)
        if not self._places:
            raise DataError(f"{root} holds no finished episode. `vla record` makes some.")
        with malformed(f"{root / INFO}, splits"):
            splits = _splits(self._info, len(self._places))
        self.splits = {name: len(episodes) for name, episodes in splits.items()}
        named = range(len(self._places)) if split is None else episodes_of(split, splits, str(root))
        chosen = [number for number in named if self._places[number].length]
        self._numbers = [number for index, number in enumerate(chosen) if index not in damaged]
        self._tasks = read_tasks(root, self._info)
        with malformed(f"{root / INFO}, features"):
            self._describe(unneeded)
        self.notes = (*tell_left_out(self.left_out), *tell_empty(len(named) - len(chosen)))
        self.lengths = np.array([self._places[number].length for number in self._numbers], dtype=np.int64)

    def _describe(self, unneeded: Mapping[str, str]) -> None:
        """Set the fields that are read of each step, and those that are left out."""
        features = {name: f for name, f in self.lerobot_features.items() if _is_carried(name)}
        unread = {field_name(name): why for name, f in features.items() if (why := _why_not(name, f))}
        self.left_out = {**unread, **unneeded}
        self._columns = {field_name(name): name for name in features if field_name(name) not in self.left_out}
        self.fields = {n: _field(n, features[column]) for n, column in self._columns.items()}
        self.fields[INSTRUCTION] = Field(INSTRUCTION, "text", "str", ())

    def __reduce__(self) -> tuple[Callable[[], LeRobotSource], tuple[()]]:
        return functools.partial(LeRobotSource, self.root, self._split, self._damaged, self.left_out), ()

    def __len__(self) -> int:
        return len(self._numbers)

    def without_nulls(self) -> LeRobotSource:
        """Return the dataset without number fields that contain nulls; action, state and time are kept."""
        names = [n for n, f in self.fields.items() if f.kind == "number" and n not in (*ACTIONS, *STATES, TIMESTAMP)]
        left_out = dict(self.left_out)
        for path in dict.fromkeys(self._places[number].table for number in self._numbers):
            columns = {name: self._columns[name] for name in names if name not in left_out}
            with contextlib.suppress(DataError):  # raised again when an episode of that file is read
                table = read_table(path, list(columns.values()))
                nulls = [name for name, column in columns.items() if has_null(table[column])]
                left_out |= dict.fromkeys(nulls, f"a column with nulls (in {path.name})")
        return LeRobotSource(self.root, self._split, self._damaged, left_out)

    def column_of(self, field: str) -> str:
        """Return LeRobot's column of a field."""
        return self._columns[field]

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        names = require_fields(fields, self.fields, str(self.root), self.left_out)
        number = self._numbers[index]
        where = f"{self.root}, episode {number}"
        stored = [self._columns[name] for name in names if name != INSTRUCTION and not self._is_video(name)]
        table = self._table(self._places[number], [*stored, TASK_INDEX, TIMESTAMP])
        steps: dict[str, Column] = {}
        for name in names:
            with malformed(f"{where}: field '{name}'"):
                steps[name] = self._column(name, table, number, where)
        return Episode(index, self._metadata().get(number, {}), steps, int(self.lengths[index]), where)

    def goes_on(self, index: int) -> bool:
        """Return whether the episode ends at a gap, by meta/recording.jsonl; see `MarksGaps`."""
        return goes_on(self.note(index))

    def note(self, index: int) -> Mapping[str, Any]:
        """Return an episode's line of meta/recording.jsonl: seed, driver, success; empty for other recordings."""
        return self._notes.get(self._numbers[index], {})

    @functools.cached_property
    def _notes(self) -> Mapping[int, Mapping[str, Any]]:
        return {note["episode"]: note for note in read_recording(self.root)}

    def encoded(self, index: int, field: str, step: int) -> bytes:
        require_index(index, len(self), "episode")
        require_index(step, int(self.lengths[index]), "step")
        cameras = {name: f for name, f in self.fields.items() if f.kind == "image"}
        require_fields([field], cameras, f"{self.root}, cameras", self.left_out)
        column, where = self._columns[field], f"{self.root}, episode {self._numbers[index]}"
        if self._is_video(field) or is_depth(field, self.lerobot_features[column]):
            return self.episode(index, [field]).frames(field).encoded(step)
        with malformed(f"{where}: field '{field}'"):
            table = self._table(self._places[self._numbers[index]], [column])
            return self._file_of(table[column][step].as_py(), where, field, step)

    def _table(self, place: EpisodePlace, columns: list[str]) -> Any:
        path, start = place.table, place.first_row
        changed_ns = path.stat().st_mtime_ns if path.is_file() else 0
        return _read_rows(path, tuple(dict.fromkeys(columns)), start, start + place.length, changed_ns)

    def _column(self, name: str, table: Any, number: int, where: str) -> Column:
        if name == INSTRUCTION:
            return tuple(self._task(int(task), where) for task in _numbers(table, TASK_INDEX, "int64", where))
        field, column = self.fields[name], self._columns[name]
        if self._is_video(name):
            return self._video(name, _numbers(table, TIMESTAMP, "float64", where), number, where)
        if field.kind == "image":
            files = [self._file_of(cell, where, name, step) for step, cell in enumerate(table[column].to_pylist())]
            return self._images(name, files, where)
        if field.kind == "text":
            return tuple("" if text is None else str(text) for text in table[column].to_pylist())
        shape = tuple(size or 0 for size in field.shape)
        return to_numbers(table[column], field.dtype, shape, f"{where}: field '{name}'")

    def _task(self, index: int, where: str) -> str:
        if index not in self._tasks:
            raise DataError(f"{where} has task_index {index}, which is none of the {len(self._tasks)} tasks.")
        return self._tasks[index]

    def _file_of(self, cell: Mapping[str, Any] | None, where: str, name: str, step: int) -> bytes:
        if cell is None or not cell["bytes"]:
            raise DataError(f"{where}: field '{name}' has no frame inside the table at step {step}.")
        return cell["bytes"]

    def _images(self, name: str, files: list[bytes], where: str) -> Frames:
        feature, field = self.lerobot_features[self._columns[name]], self.fields[name]
        if is_depth(name, feature):
            return DepthImages(files, depth_unit(feature), field.shape, f"{where}: field '{name}'")
        return EncodedFrames(files, field, where)

    def _is_video(self, name: str) -> bool:
        return name != INSTRUCTION and self.lerobot_features[self._columns[name]]["dtype"] == "video"

    def _video(self, name: str, timestamps: NDArray[np.float64], number: int, where: str) -> VideoFrames:
        column = self._columns[name]
        place, feature = self._places[number].videos[column], self.lerobot_features[column]
        return VideoFrames(
            path=place.path,
            timestamps=tuple((place.start_s + timestamps).tolist()),
            stop_s=place.stop_s,
            period_s=1 / float(self._info["fps"]),
            where=f"{where}: field '{name}'",
            depth=depth_code(feature) if is_depth(name, feature) else None,
            shape=self.fields[name].shape,
        )

    def _metadata(self) -> dict[int, dict[str, Any]]:
        path = self.root / METADATA
        return _read_metadata(path, path.stat().st_mtime_ns) if path.is_file() else {}


def open_lerobot(root: Path | str, split: str = "train", *, skip_corrupt: bool = False) -> LeRobotSource:
    """Open a LeRobot dataset, or a part of it.

    Args:
        root: the dataset's folder.
        split: "train" for all episodes, a part of it such as "train[:95%]", or "all".
        skip_corrupt: read each episode once and leave damaged ones out, which `skipped` lists.

    Raises:
        DataError: there is no dataset of version 2.0, 2.1 or 3, it is damaged or empty, or the split is unknown.
        MissingDependencyError: the extra [data] is not installed.
    """
    source = LeRobotSource(Path(root), split)
    return LeRobotSource(Path(root), split, find_damage(source.without_nulls())) if skip_corrupt else source


def _splits(info: Mapping[str, Any], count: int) -> dict[str, list[int]]:
    """Return split -> numbers of its episodes. LeRobot writes a split as "0:50"; most datasets have one, "train"."""
    splits: dict[str, list[int]] = {}
    for name, text in (info.get("splits") or {"train": f"0:{count}"}).items():
        first, _, last = str(text).partition(":")
        start, stop = int(first), int(last)
        if not 0 <= start <= stop:
            raise ValueError(f"'{name}' is {shortened(text)}, expected START:STOP")
        splits[name] = list(range(min(start, count), min(stop, count)))
    return splits


def _is_carried(column: str) -> bool:
    """Return whether a column is read as a field: all but the counters, and of these the time."""
    return column not in COUNTERS or column == TIMESTAMP


def field_name(column: str) -> str:
    """Return the name of the field of a LeRobot column."""
    return column.replace(".", "/")


def _why_not(name: str, feature: Mapping[str, Any]) -> str:
    """Return why a column is not read; "" when it is."""
    dtype = str(feature["dtype"])
    if dtype in ("image", "video"):
        return why_not_depth(feature) if is_depth(name, feature) else ""
    if dtype == "string":
        return "" if math.prod(feature["shape"]) == 1 else "a list of texts"
    if dtype == "language":
        return "a language annotation"
    try:
        is_number = np.dtype(dtype).kind in "biuf"
    except (TypeError, ValueError, SyntaxError):  # numpy reads "2,3f4" and the like with a parser of its own
        is_number = False
    return "" if is_number else f"a column of type '{dtype}'"


def _field(name: str, feature: Mapping[str, Any]) -> Field:
    dtype, shape = str(feature["dtype"]), tuple(int(size) for size in feature["shape"])
    if dtype in ("image", "video"):
        names = feature.get("names") or []
        channels_first = list(names)[:1] in (["channels"], ["channel"])
        size = (*shape[1:], shape[0]) if channels_first else shape
        return (
            Field(name, "image", "float32", (*size[:2], 1))
            if is_depth(name, feature)
            else Field(name, "image", "uint8", size)
        )
    if dtype == "string":
        return Field(name, "text", "str", ())
    return Field(name, "number", dtype, () if shape == (1,) else shape)


def _numbers(table: Any, column: str, dtype: str, where: str) -> NDArray[Any]:
    """Return one of LeRobot's counters, (T,)."""
    return to_numbers(table[column], dtype, (), f"{where}: column '{column}'")


@functools.lru_cache(maxsize=16)
def _read_rows(path: Path, columns: tuple[str, ...], start: int, stop: int, changed_ns: int) -> Any:
    """Read rows of a table; of a file with many episodes, only their row groups are read."""
    table, first = read_rows(path, columns, start, stop)
    if first + len(table) < stop:
        raise DataError(f"{path} has {first + len(table)} rows, but meta/episodes says at least {stop}.")
    return table.slice(start - first, stop - start)


@functools.lru_cache(maxsize=4)
def _read_metadata(path: Path, changed_ns: int) -> dict[int, dict[str, Any]]:
    with malformed(f"{path}, a line,"):
        lines = [parse_json(line, path) for line in read_file(path, MAX_LINES_BYTES).splitlines()]
        return {int(line["episode"]): dict(line["metadata"]) for line in lines}
