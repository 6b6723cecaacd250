"""Writes LeRobot datasets, version 3. lerobot's own LeRobotDataset opens them, and can go on with them.

Why not lerobot's own writer: it keeps its Parquet files open for the length of a recording, so that a crash leaves
files that nothing can read, and it imports torch. Here each episode is a data file of its own and every file appears
whole, by a rename. The row in meta/episodes comes last and counts: without it an episode does not exist, and whatever
else a crash left of it is overwritten by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import DataError
from vla_robot.core.optional import require
from vla_robot.record.demonstration import Demonstration
from vla_robot.record.lerobot_layout import (
    ACTION,
    COUNTERS,
    DATA,
    EMBODIMENT,
    EPISODES,
    EXECUTED,
    FILES_PER_CHUNK,
    IMAGES,
    INFO,
    LOCK,
    RECORDING,
    STAMP,
    STATE,
    STATS,
    SUCCESS,
    file_number,
    numbered_file,
    position,
    read_embodiment,
    read_episode_rows,
    read_json,
    read_recording,
    read_tasks,
    require_same_embodiment,
    write_json,
    write_table,
    write_tasks,
    write_whole,
)
from vla_robot.record.stats import Stats, describe, describe_pixels, merge

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "v3.0"


class LeRobotWriter:
    """Writes demonstrations one by one; each is on disk, whole, when `write` returns.

    A dataset that exists is continued, never overwritten. Use it in a `with` block, or call `close`.
    """

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: the dataset's folder; made when it is missing. What its first episode looks like, all others must.

        Raises:
            DataError: the folder holds something else, is damaged, or is being written by another process.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("pyarrow", "data", "a LeRobot dataset")
        _require_dataset_or_nothing(root)
        self._root = root
        self._embodiment: Embodiment | None = None
        self._features: dict[str, Any] = {}
        self._tasks: list[str] = []
        self._stats: dict[str, Stats] = {}
        self._rows: list[dict[str, Any]] = []
        self._recorded: set[tuple[int, str]] = set()
        self._num_episodes = self._num_frames = self._data_file = self._episodes_file = 0
        self._lock: int | None = _lock(root)
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_episodes(self) -> int:
        return self._num_episodes

    @property
    def num_frames(self) -> int:
        return self._num_frames

    @property
    def recorded(self) -> frozenset[tuple[int, str]]:
        """(seed, driver) of every episode there is, so that a recording that was interrupted can go on."""
        return frozenset(self._recorded)

    def write(self, demonstration: Demonstration) -> None:
        """Append one episode.

        Raises:
            DataError: it does not fit the dataset, or the disk refuses.
        """
        features = features_of(demonstration)
        if self._embodiment is not None:
            require_same_embodiment(self._root, self._embodiment, demonstration.embodiment)
        if self._features and features != self._features:
            raise DataError(_difference(self._root, self._features, features))
        try:
            if self._embodiment is None:
                self._embodiment = demonstration.embodiment
                write_json(self._root / EMBODIMENT, self._embodiment.to_dict())
            self._features = features
            self._write_files(demonstration, self._embodiment.rate_hz)
        except OSError as error:
            raise DataError(f"cannot write to {self._root}: {error.strerror or error}.") from error

    def close(self) -> None:
        """Let another process write. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_up(self) -> None:
        """Begin a dataset, or continue one where its last whole episode ended."""
        root = self._root
        rows = read_episode_rows(root)
        if not rows:
            return
        self._embodiment = read_embodiment(root)
        info = read_json(root / INFO)
        self._features = {name: feature for name, feature in info["features"].items() if name not in COUNTERS}
        self._tasks = read_tasks(root)
        self._num_episodes = len(rows)
        self._num_frames = sum(row["length"] for row in rows)
        self._data_file = 1 + max(file_number(row, DATA) for row in rows)
        self._episodes_file = 1 + max(file_number(row, EPISODES) for row in rows)
        self._stats = _merged([_stats_of(row) for row in rows])
        self._recorded = self._keep_notes_of(len(rows))
        if info["total_episodes"] != len(rows):  # a crash came between the episode's row and the totals
            self._write_totals()

    def _keep_notes_of(self, num_episodes: int) -> set[tuple[int, str]]:
        """Drop notes on an episode that a crash kept from being finished, or that it cut short."""
        notes = [note for note in read_recording(self._root) if note["episode"] < num_episodes]
        write_whole(self._root / RECORDING, "".join(json.dumps(note) + "\n" for note in notes).encode())
        return {(note["seed"], note["driver"]) for note in notes}

    def _write_files(self, d: Demonstration, rate_hz: float) -> None:
        """Data, then our own notes, then the row that makes the episode count, then what is derived from all rows."""
        root = self._root
        columns = _columns(d, self._num_episodes, self._num_frames, self._task_index(d), rate_hz)
        stats = _episode_stats(d, columns)
        write_table(numbered_file(root, DATA, self._data_file), _data_table(d, columns, self._all_features))
        if not self._num_episodes:
            self._write_totals()  # so that a dataset with a row always has its description
        self._note(d)
        row = self._row(d, stats)
        write_table(numbered_file(root, EPISODES, self._episodes_file), _rows_table([*self._rows, row]))
        self._rows.append(row)
        self._num_episodes += 1
        self._num_frames += len(d)
        self._data_file += 1
        self._recorded.add((d.seed, d.driver))
        self._stats = _merged([self._stats, stats] if self._stats else [stats])
        self._write_totals()

    def _task_index(self, demonstration: Demonstration) -> int:
        if demonstration.instruction not in self._tasks:
            self._tasks.append(demonstration.instruction)
            write_tasks(self._root, self._tasks)
        return self._tasks.index(demonstration.instruction)

    def _note(self, d: Demonstration) -> None:
        line = {"episode": self._num_episodes, "seed": d.seed, "driver": d.driver, "success": d.succeeded}
        with (self._root / RECORDING).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _row(self, d: Demonstration, stats: Mapping[str, Stats]) -> dict[str, Any]:
        return {
            "episode_index": self._num_episodes,
            "tasks": [d.instruction],
            "length": len(d),
            **position(DATA, self._data_file),
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + len(d),
            **{f"stats/{name}/{key}": value.tolist() for name, s in stats.items() for key, value in s.items()},
            **position(EPISODES, self._episodes_file),
        }

    def _write_totals(self) -> None:
        plain = {name: {key: value.tolist() for key, value in s.items()} for name, s in self._stats.items()}
        write_json(self._root / STATS, plain)
        write_json(self._root / INFO, self._info())

    @property
    def _all_features(self) -> dict[str, Any]:
        return self._features | {name: _feature(dtype, [1], None) for name, dtype in COUNTERS.items()}

    def _info(self) -> dict[str, Any]:
        assert self._embodiment is not None  # set with the first episode, before anything is written
        rate_hz = self._embodiment.rate_hz
        return {
            "codebase_version": VERSION,
            "fps": int(rate_hz) if rate_hz == int(rate_hz) else rate_hz,
            "features": self._all_features,
            "total_episodes": self._num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "robot_type": self._embodiment.name,
            "splits": {"train": f"0:{self._num_episodes}"},
        }


def features_of(demonstration: Demonstration) -> dict[str, Any]:
    """LeRobot's description of each column, counters left out.

    Raises:
        DataError: the demonstration's cameras or shapes are not its embodiment's.
    """
    embodiment = demonstration.embodiment
    cameras = [camera.name for camera in embodiment.cameras]
    if sorted(demonstration.cameras) != sorted(cameras):
        raise DataError(
            f"a demonstration has the cameras {', '.join(sorted(demonstration.cameras)) or 'none'}, but the embodiment "
            f"'{embodiment.name}' has {', '.join(cameras) or 'none'}."
        )
    state, action = [dim.name for dim in embodiment.state], list(embodiment.action.names)
    _require_numbers(STATE, demonstration.states, (len(demonstration), len(state)))
    _require_numbers(ACTION, demonstration.actions, (len(demonstration), len(action)))
    _require_numbers(EXECUTED, demonstration.executed, (len(demonstration), len(action)))
    sizes = {name: (demonstration.cameras[name].height, demonstration.cameras[name].width) for name in cameras}
    images = {IMAGES + n: _feature("image", [h, w, 3], ["height", "width", "channels"]) for n, (h, w) in sizes.items()}
    return images | {
        STATE: _feature("float32", [len(state)], state),
        ACTION: _feature("float32", [len(action)], action),
        EXECUTED: _feature("float32", [len(action)], action),
        SUCCESS: _feature("bool", [1], None),
        STAMP: _feature("int64", [1], None),
    }


def _feature(dtype: str, shape: list[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def _require_numbers(name: str, values: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise DataError(f"{name} has shape {values.shape}, expected {shape}: steps x dimensions of the embodiment.")
    if not np.isfinite(values).all():
        raise DataError(
            f"{name} holds numbers that are not finite, in step {int(np.argwhere(~np.isfinite(values))[0, 0])}."
        )


def _require_dataset_or_nothing(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; a dataset is a folder.")
    if root.exists() and any(path.name != "meta" for path in root.iterdir()) and not (root / INFO).is_file():
        raise DataError(f"{root} is not empty and holds no {INFO}, so it is no LeRobot dataset. Choose another folder.")


def _lock(root: Path) -> int:
    """A lock that the system lets go of when this process ends, however it ends."""
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DataError(f"{root} is being written by another process. Wait, or record to another folder.") from error
    return descriptor


def _difference(root: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    def shape(feature: Mapping[str, Any] | None) -> str:
        return "absent" if feature is None else f"{feature['dtype']} {feature['shape']}"

    different = [
        f"{name} is {shape(there.get(name))} there and {shape(here.get(name))} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    return (
        f"an episode does not fit {root}: {'; '.join(different)}. Record with the same options, or to another folder."
    )


def _columns(d: Demonstration, episode: int, first_index: int, task: int, rate_hz: float) -> dict[str, NDArray[Any]]:
    """Every column of an episode that is made of numbers."""
    step = np.arange(len(d))
    return {
        STATE: d.states.astype(np.float32),
        ACTION: d.actions.astype(np.float32),
        EXECUTED: d.executed.astype(np.float32),
        SUCCESS: d.success,
        STAMP: d.stamps_ns,
        "timestamp": (step / rate_hz).astype(np.float32),
        "frame_index": step,
        "episode_index": np.full(len(d), episode),
        "index": first_index + step,
        "task_index": np.full(len(d), task),
    }


def _data_table(d: Demonstration, columns: Mapping[str, NDArray[Any]], features: Mapping[str, Any]) -> pa.Table:
    """(T rows) with the types and the notes that lerobot's own tables have."""
    import pyarrow as pa

    arrays = {IMAGES + name: _image_array(camera.png) for name, camera in d.cameras.items()}
    for name, values in columns.items():
        flat = pa.array(values.ravel())
        arrays[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    notes = {"info": {"features": {name: _hugging_face_type(feature) for name, feature in features.items()}}}
    table = pa.table({name: arrays[name] for name in features})
    return table.replace_schema_metadata({"huggingface": json.dumps(notes)})


def _image_array(png: Sequence[bytes]) -> pa.StructArray:
    import pyarrow as pa

    return pa.StructArray.from_arrays([pa.array(png, pa.binary()), pa.nulls(len(png), pa.string())], ["bytes", "path"])


def _hugging_face_type(feature: Mapping[str, Any]) -> dict[str, Any]:
    """How the package `datasets` names a column's type."""
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    number = {"dtype": feature["dtype"], "_type": "Value"}
    return number if feature["shape"] == [1] else {"feature": number, "length": feature["shape"][0], "_type": "List"}


def _rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def _episode_stats(d: Demonstration, columns: Mapping[str, NDArray[Any]]) -> dict[str, Stats]:
    images = {IMAGES + name: describe_pixels(c.pixel_counts, len(c.png)) for name, c in d.cameras.items()}
    return images | {name: describe(values) for name, values in columns.items()}


def _stats_of(row: Mapping[str, Any]) -> dict[str, Stats]:
    """The statistics in a row of meta/episodes."""
    stats: dict[str, Stats] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            feature, _, key = name.removeprefix("stats/").rpartition("/")
            stats.setdefault(feature, {})[key] = np.asarray(value)
    return stats


def _merged(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    return {name: merge([part[name] for part in parts]) for name in parts[0]}
