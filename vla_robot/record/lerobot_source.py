"""Reads LeRobot datasets, version 3, whoever wrote them: frames in the tables or in videos.

Tables are read with pyarrow and videos decoded by lerobot's own decoder, one episode at a time. Its LeRobotDataset
would do, but it asks the network for what it does not find, imports torch to read a number, and decodes every frame of
a step to give one; tests hold the two against each other.

Version 2.1 is converted first, by lerobot's own tool; the error says how.

Fields are named as in other sources, "/" for ".": "observation/state", "action". A camera's "observation.images.front"
is "observation/images/front", and the task of each step is "language_instruction".
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.optional import require
from vla_robot.core.untrusted import expand_template, require_inside, require_links_inside
from vla_robot.record import png
from vla_robot.record.lerobot_layout import (
    COUNTERS,
    DATA,
    INFO,
    file_number,
    numbered_file,
    read_episode_rows,
    read_json,
    read_rows,
    read_tasks,
)
from vla_robot.record.part import episodes_of
from vla_robot.record.source import Column, EncodedFrames, Episode, Field, require_fields, require_index

INSTRUCTION = "language_instruction"
TASK_INDEX = "task_index"
TIMESTAMP = "timestamp"
METADATA = "meta/episode_metadata.jsonl"
"""Ours: one line of JSON an episode, what its source said once about it."""
BLOCK = 64
"""Frames of a video that are decoded together: 59 MB at 480 x 640."""
TOLERANCE_S = 1e-4
"""How far a frame of a video may be from its step; lerobot's default."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames in a video file; decoded in blocks, since a video cannot be entered at every frame.

    Attributes:
        path: the video.
        timestamps: (T,) seconds from its beginning.
        where: dataset and episode, for error messages.
    """

    path: Path
    timestamps: tuple[float, ...]
    where: str

    def __len__(self) -> int:
        return len(self.timestamps)

    def encoded(self, step: int) -> bytes:
        return png.encode(self.decode(step))

    def decode(self, step: int) -> NDArray[Any]:
        block, place = divmod(range(len(self))[step], BLOCK)
        return _decode_block(self, block)[place]


class LeRobotSource:
    """Episodes of a LeRobot dataset, in order. An `EpisodeSource`; open it with `open_lerobot`."""

    def __init__(self, root: Path, split: str) -> None:
        """
        Args:
            root: the dataset's folder.
            split: "train" for all episodes, a part of it such as "train[:95%]", or "all".

        Raises:
            DataError: no dataset of version 3, damaged, empty, or an unknown split.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("pyarrow", "data", "a LeRobot dataset")
        self._root, self._split = root, split
        self._info = _read_info(root)
        require_links_inside(root)
        rows = read_episode_rows(root)
        if not rows:
            raise DataError(f"{root} holds no finished episode.")
        self._splits = _splits(self._info, len(rows))
        self._numbers = episodes_of(split, self._splits, str(root))
        self._rows = rows
        self._tasks = read_tasks(root)
        self._columns = {_field_name(name): name for name in self._info["features"] if _is_carried(name)}
        self._fields = {n: _field(n, self._info["features"][column]) for n, column in self._columns.items()}
        self._fields[INSTRUCTION] = Field(INSTRUCTION, "text", "str", ())
        self._lengths = np.array([rows[number]["length"] for number in self._numbers], dtype=np.int64)
        self._first_in_file = _first_rows(rows)

    def __reduce__(self) -> tuple[Callable[[], LeRobotSource], tuple[()]]:
        return functools.partial(LeRobotSource, self._root, self._split), ()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def name(self) -> str:
        return self._root.name

    @property
    def location(self) -> str:
        return str(self._root)

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self._root

    @property
    def splits(self) -> Mapping[str, int]:
        """Every split and how many episodes it has."""
        return {name: len(episodes) for name, episodes in self._splits.items()}

    @property
    def fields(self) -> dict[str, Field]:
        return self._fields

    @property
    def metadata_fields(self) -> dict[str, Field]:
        """Nothing that LeRobot describes; `episode` gives what a conversion kept."""
        return {}

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._lengths

    @property
    def rate_hz(self) -> float | None:
        return float(self._info["fps"])

    @property
    def robot(self) -> str:
        """LeRobot's robot_type."""
        return str(self._info.get("robot_type") or "")

    @property
    def lerobot_features(self) -> Mapping[str, Any]:
        """info.json's own description of each column."""
        return self._info["features"]

    def column_of(self, field: str) -> str:
        """LeRobot's name of a field."""
        return self._columns[field]

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        names = require_fields(fields, self._fields, str(self._root))
        number = self._numbers[index]
        where = f"{self._root}, episode {number}"
        stored = [self._columns[name] for name in names if name != INSTRUCTION and not self._is_video(name)]
        table = self._table(number, [*stored, TASK_INDEX, TIMESTAMP])
        steps = {name: self._column(name, table, number, where) for name in names}
        return Episode(index, self._metadata().get(number, {}), steps, int(self._lengths[index]), where)

    def encoded(self, index: int, field: str, step: int) -> bytes:
        require_index(index, len(self), "episode")
        require_index(step, int(self._lengths[index]), "step")
        cameras = {name: f for name, f in self._fields.items() if f.kind == "image"}
        require_fields([field], cameras, f"{self._root}, cameras")
        return self.episode(index, [field]).frames(field).encoded(step)

    def _table(self, number: int, columns: list[str]) -> Any:
        row = self._rows[number]
        file = file_number(row, DATA)
        path = numbered_file(self._root, DATA, file)
        changed_ns = path.stat().st_mtime_ns if path.is_file() else 0
        start = row["dataset_from_index"] - self._first_in_file[file]
        return _read_rows(path, tuple(dict.fromkeys(columns)), start, start + row["length"], changed_ns)

    def _column(self, name: str, table: Any, number: int, where: str) -> Column:
        if name == INSTRUCTION:
            return tuple(self._task(task, where) for task in table[TASK_INDEX].to_pylist())
        field = self._fields[name]
        if self._is_video(name):
            return self._video(name, table[TIMESTAMP].to_pylist(), number, where)
        values = table[self._columns[name]]
        if field.kind == "image":
            return EncodedFrames([self._file_of(cell, where, name) for cell in values.to_pylist()], field, where)
        if field.kind == "text":
            return tuple(str(text) for text in values.to_pylist())
        return _numbers(values, field)

    def _task(self, index: int, where: str) -> str:
        if not 0 <= index < len(self._tasks):
            raise DataError(f"{where} has task_index {index}, but there are {len(self._tasks)} tasks.")
        return self._tasks[index]

    def _file_of(self, cell: Mapping[str, Any] | None, where: str, name: str) -> bytes:
        if cell is None or not cell["bytes"]:
            raise DataError(f"{where}: field '{name}' has a step without its frame inside the table.")
        return cell["bytes"]

    def _is_video(self, name: str) -> bool:
        return name != INSTRUCTION and self._info["features"][self._columns[name]]["dtype"] == "video"

    def _video(self, name: str, timestamps: list[float], number: int, where: str) -> VideoFrames:
        column, row = self._columns[name], self._rows[number]
        place = {kind: row[f"videos/{column}/{kind}_index"] for kind in ("chunk", "file")}
        values = {"video_key": column, "chunk_index": int(place["chunk"]), "file_index": int(place["file"])}
        said = f"{self._root / INFO}, video_path"
        path = require_inside(self._root, expand_template(self._info.get("video_path"), values, said), said)
        start = float(row[f"videos/{column}/from_timestamp"])
        return VideoFrames(path, tuple(start + t for t in timestamps), where)

    def _metadata(self) -> dict[int, dict[str, Any]]:
        path = self._root / METADATA
        return _read_metadata(path, path.stat().st_mtime_ns) if path.is_file() else {}


def open_lerobot(root: Path | str, split: str = "train") -> LeRobotSource:
    """A LeRobot dataset, or a part of it.

    Args:
        root: the dataset's folder.
        split: "train" for all episodes, a part of it such as "train[:95%]", or "all".

    Raises:
        DataError: no dataset of version 3, damaged, empty, or an unknown split.
        MissingDependencyError: the extra [data] is not installed.
    """
    return LeRobotSource(Path(root), split)


def _read_info(root: Path) -> dict[str, Any]:
    info = read_json(root / INFO)
    version = str(info.get("codebase_version", "none"))
    if not version.startswith("v3"):
        raise DataError(
            f"{root / INFO} says version {version}; only v3.0 is read. lerobot converts v2.1 in place: "
            f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={root.name} --root={root} "
            "--push-to-hub=false"
        )
    for key in ("fps", "features"):
        if key not in info:
            raise DataError(f"{root / INFO} has no field '{key}'.")
    return info


def _splits(info: Mapping[str, Any], count: int) -> dict[str, list[int]]:
    """LeRobot writes a split as "0:50"; datasets in the wild all have one, "train"."""
    splits: dict[str, list[int]] = {}
    for name, text in (info.get("splits") or {"train": f"0:{count}"}).items():
        first, _, last = str(text).partition(":")
        splits[name] = list(range(int(first), min(int(last), count)))
    return splits


def _first_rows(rows: list[dict[str, Any]]) -> dict[int, int]:
    """Data file -> the dataset's index of its first row."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(file_number(row, DATA), row["dataset_from_index"])
    return first


def _is_carried(column: str) -> bool:
    """Every counter but the time follows from the episode and the step."""
    return column not in COUNTERS or column == TIMESTAMP


def _field_name(column: str) -> str:
    return column.replace(".", "/")


def _field(name: str, feature: Mapping[str, Any]) -> Field:
    dtype, shape = str(feature["dtype"]), tuple(int(size) for size in feature["shape"])
    if dtype in ("image", "video"):
        names = feature.get("names") or []
        channels_first = list(names)[:1] in (["channels"], ["channel"])
        return Field(name, "image", "uint8", (*shape[1:], shape[0]) if channels_first else shape)
    if dtype == "string":
        return Field(name, "text", "str", ())
    return Field(name, "number", dtype, () if shape == (1,) else shape)


def _numbers(values: Any, field: Field) -> NDArray[Any]:
    """A column of numbers, or of lists of lists of them -> (T, *shape)."""
    import pyarrow as pa

    flat = values.combine_chunks()
    while pa.types.is_nested(flat.type):
        flat = flat.storage if isinstance(flat, pa.ExtensionArray) else flat.flatten()
    numbers = flat.to_numpy(zero_copy_only=False).astype(field.dtype)
    return numbers.reshape(len(values), *(size or 0 for size in field.shape))


@functools.lru_cache(maxsize=16)
def _read_rows(path: Path, columns: tuple[str, ...], start: int, stop: int, changed_ns: int) -> Any:
    """Some rows of a table; of a file with many episodes, the row groups alone that hold them."""
    table, first = read_rows(path, columns, start, stop)
    if first + len(table) < stop:
        raise DataError(f"{path} has {first + len(table)} rows, but meta/episodes says at least {stop}.")
    return table.slice(start - first, stop - start)


@functools.lru_cache(maxsize=4)
def _read_metadata(path: Path, changed_ns: int) -> dict[int, dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(line["episode"]): line["metadata"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no metadata of an episode: {error}.") from error


@functools.lru_cache(maxsize=4)
def _decode_block(frames: VideoFrames, block: int) -> NDArray[np.uint8]:
    """(up to BLOCK, H, W, 3). Some blocks are kept, so that reading step by step decodes once."""
    require("lerobot", "data", f"decoding {frames.path}")
    from lerobot.datasets.video_utils import decode_video_frames

    if not frames.path.is_file():
        raise DataError(f"{frames.where}: the video {frames.path} is missing.")
    timestamps = list(frames.timestamps[block * BLOCK : (block + 1) * BLOCK])
    try:
        decoded = decode_video_frames(frames.path, timestamps, TOLERANCE_S, return_uint8=True)
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        raise DataError(f"{frames.where}: the video {frames.path} cannot be decoded: {error}.") from error
    return np.ascontiguousarray(decoded.numpy().transpose(0, 2, 3, 1))
