"""Writes episodes of any features as a LeRobot dataset, version 3, which LeRobotDataset opens.

lerobot's own writer is not used since it keeps its Parquet files open during a recording, so that a crash leaves files
that cannot be read, and since it imports torch. Here each episode has a data file of its own, and every file is written
whole and then renamed. The row in meta/episodes is written last: without it an episode does not exist, and the next
episode overwrites all that a crash left of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import LEFT_BY_THE_KILLED, writing
from vla_robot.core.host.optional import require
from vla_robot.core.untrusted import require_links_inside
from vla_robot.data.formats.lerobot.layout import (
    COUNTERS,
    DATA,
    EPISODES,
    FILES_PER_CHUNK,
    INFO,
    LOCK,
    STATS,
    file_number,
    is_version_2,
    numbered_file,
    position,
    read_episode_rows,
    read_info,
    read_tasks,
    write_json,
    write_table,
    write_tasks,
)
from vla_robot.data.pipeline.stats import Stats, describe_finite, merge

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = "v3.0"
ROWS_PER_FILE = 100
"""Number of episodes in one file of meta/episodes, which is rewritten with each episode and so must stay small."""


@dataclass(frozen=True)
class EpisodeTable:
    """One episode of T steps, as a LeRobot dataset stores it.

    Attributes:
        features: column -> LeRobot's description, without the counters.
        columns: column -> (T, ...) numbers, or T texts.
        images: column -> T JPEG or PNG files.
        image_stats: column -> statistics of its pixels.
        tasks: (T) instructions.
        timestamps: (T,) time since the episode's begin [s]; None takes step / rate.
    """

    features: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any] | Sequence[str]]
    images: Mapping[str, Sequence[bytes]]
    image_stats: Mapping[str, Stats]
    tasks: Sequence[str]
    timestamps: NDArray[np.floating[Any]] | None = None

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(frozen=True)
class Place:
    """Where an episode stands in its dataset.

    Attributes:
        number: its number.
        data_file: number of its file.
        first_frame: frames of the episodes before it.
        tasks: instruction -> task_index.
    """

    number: int
    data_file: int
    first_frame: int
    tasks: Mapping[str, int]


@dataclass(frozen=True)
class Written:
    """An episode whose data file is on the disk; it does not count before its row is written.

    Attributes:
        features: column -> LeRobot's description, without the counters.
        tasks: its instructions, each once.
        length: steps.
        stats: column -> its statistics.
    """

    features: Mapping[str, Any]
    tasks: Sequence[str]
    length: int
    stats: Mapping[str, Stats]


@dataclass
class _State:
    """The state of the dataset after its last episode."""

    features: Mapping[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    stats: dict[str, Stats] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    num_episodes: int = 0
    num_frames: int = 0
    data_file: int = 0
    episodes_file: int = 0


class LeRobotTables:
    """A writer that appends episodes, and syncs each to the disk before `write` returns. It continues a dataset."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: the dataset's folder; made when it is missing. All episodes must have the features of the first one.

        Raises:
            DataError: the folder holds other files, is damaged, or is being written by another process.
            MissingDependencyError: the extra [data] is not installed.
        """
        require("pyarrow", "data", "a LeRobot dataset")
        _require_dataset_or_nothing(root)
        self._root = root
        self._state = _State()
        self._rate_hz: float | None = None
        self._robot = ""
        self._claim = Claim(root, LOCK)
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise

    @property
    def num_episodes(self) -> int:
        return self._state.num_episodes

    @property
    def num_frames(self) -> int:
        return self._state.num_frames

    @property
    def features(self) -> Mapping[str, Any]:
        """Column -> LeRobot's description, without the counters; empty before the first episode."""
        return self._state.features

    def write(
        self, episode: EpisodeTable, rate_hz: float, robot: str, before_it_counts: Callable[[], None] = lambda: None
    ) -> None:
        """Append one episode.

        Args:
            episode: the episode.
            rate_hz: steps per second.
            robot: LeRobot's robot_type.
            before_it_counts: called when the data is on the disk and the row in meta/episodes is not written yet.

        Raises:
            DataError: the episode does not fit the dataset, or writing to disk failed.
        """
        self._require_like(episode.features)
        with writing(self._root, self._what_is_safe):
            place = Place(self.num_episodes, self.next_file, self.num_frames, self.numbered(episode.tasks))
            written = write_data(self._root, place, episode, rate_hz)
        self.add(written, rate_hz, robot, before_it_counts)

    def add(
        self, written: Written, rate_hz: float, robot: str, before_it_counts: Callable[[], None] = lambda: None
    ) -> None:
        """Append the episode whose data file is the next one; the arguments are those of `write`.

        Raises:
            DataError: the episode does not fit the dataset, or writing to disk failed.
        """
        self._require_like(written.features)
        with writing(self._root, self._what_is_safe):
            self._rate_hz, self._robot, self._state.features = rate_hz, robot, written.features
            self._count(written, before_it_counts)

    @property
    def next_file(self) -> int:
        """Number of the next episode's data file."""
        return self._state.data_file

    def numbered(self, tasks: Sequence[str]) -> dict[str, int]:
        """Return instruction -> task_index of the dataset's tasks, and of new ones in their order behind them."""
        return {task: number for number, task in enumerate(dict.fromkeys([*self._state.tasks, *tasks]))}

    def close(self) -> None:
        """Release the folder for other writers. May be called twice."""
        self._claim.release()

    def _what_is_safe(self) -> str:
        return f"Its {self.num_episodes} finished episodes are safe."

    def _take_up(self) -> None:
        """Begin a dataset, or continue one after its last whole episode."""
        root = self._root
        require_links_inside(root)
        info = read_info(root) if (root / INFO).is_file() else {}
        if is_version_2(info):
            raise DataError(
                f"{root} is a LeRobot dataset of version {info['codebase_version']}; only v3.0 is written. "
                f"Choose another folder, or convert it into one first: vla data convert {root} NEW --to lerobot."
            )
        rows = read_episode_rows(root)
        for killed in (path for folder in ("meta", DATA) for path in root.glob(f"{folder}/**/{LEFT_BY_THE_KILLED}")):
            killed.unlink()
        if not rows:
            return
        self._rate_hz, self._robot = float(info["fps"]), str(info.get("robot_type") or "")
        self._state = _State(
            features={name: feature for name, feature in info["features"].items() if name not in COUNTERS},
            tasks=_in_order(root, read_tasks(root, info)),
            stats=_merged([_stats_of(row) for row in rows]),
            num_episodes=len(rows),
            num_frames=sum(row["length"] for row in rows),
            data_file=1 + max(file_number(row, DATA) for row in rows),
            episodes_file=1 + max(file_number(row, EPISODES) for row in rows),
        )
        if info["total_episodes"] != len(rows):  # a crash came between the episode's row and the totals
            self._write_totals()

    def _require_like(self, features: Mapping[str, Any]) -> None:
        if self._state.features and features != self._state.features:
            raise DataError(_difference(self._root, self._state.features, features))

    def _count(self, written: Written, before_it_counts: Callable[[], None]) -> None:
        """Write what comes before the row in meta/episodes, then the row, then the totals of all rows."""
        state = self._state
        if new := [task for task in written.tasks if task not in state.tasks]:
            state.tasks.extend(new)
            write_tasks(self._root, state.tasks)
        if not state.num_episodes:
            self._write_totals()  # before the first row, so that a dataset with a row always has its description
        before_it_counts()
        if len(state.rows) == ROWS_PER_FILE:
            state.rows, state.episodes_file = [], state.episodes_file + 1
        row = self._row(written)
        write_table(numbered_file(self._root, EPISODES, state.episodes_file), _rows_table([*state.rows, row]))
        state.rows.append(row)
        state.num_episodes += 1
        state.num_frames += written.length
        state.data_file += 1
        state.stats = _merged([state.stats, written.stats] if state.stats else [written.stats])
        self._write_totals()

    def _row(self, written: Written) -> dict[str, Any]:
        state = self._state
        return {
            "episode_index": state.num_episodes,
            "tasks": list(written.tasks),
            "length": written.length,
            **position(DATA, state.data_file),
            "dataset_from_index": state.num_frames,
            "dataset_to_index": state.num_frames + written.length,
            **{f"stats/{name}/{key}": value.tolist() for name, s in written.stats.items() for key, value in s.items()},
            **position(EPISODES, state.episodes_file),
        }

    def _write_totals(self) -> None:
        plain = {name: {key: value.tolist() for key, value in s.items()} for name, s in self._state.stats.items()}
        write_json(self._root / STATS, plain)
        write_json(self._root / INFO, self._info())

    def _info(self) -> dict[str, Any]:
        assert self._rate_hz is not None  # set with the first episode, before anything is written
        state, rate_hz = self._state, self._rate_hz
        return {
            "codebase_version": VERSION,
            "fps": int(rate_hz) if rate_hz == int(rate_hz) else rate_hz,
            "features": _all(state.features),
            "total_episodes": state.num_episodes,
            "total_frames": state.num_frames,
            "total_tasks": len(state.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "robot_type": self._robot,
            "splits": {"train": f"0:{state.num_episodes}"},
        }


def write_data(root: Path, place: Place, episode: EpisodeTable, rate_hz: float) -> Written:
    """Write the data file of an episode; `LeRobotTables.add` then appends the episode. Raises OSError."""
    table, written = data_of(place, episode, rate_hz)
    write_table(numbered_file(root, DATA, place.data_file), table)
    return written


def data_of(place: Place, episode: EpisodeTable, rate_hz: float) -> tuple[pa.Table, Written]:
    """Return the content of the data file of an episode, and what `LeRobotTables.add` needs when it is written."""
    columns = {**episode.columns, **_counters(episode, place, rate_hz)}
    table, stats = _table(episode, columns, _all(episode.features)), _episode_stats(episode, columns)
    return table, Written(episode.features, tuple(dict.fromkeys(episode.tasks)), len(episode), stats)


def feature(dtype: str, shape: Sequence[int], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return LeRobot's description of a column."""
    return {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names)}


def image_feature(height: int, width: int, channels: int = 3) -> dict[str, Any]:
    """Return LeRobot's description of a camera whose frames are in the table."""
    return feature("image", [height, width, channels], ["height", "width", "channels"])


def _require_dataset_or_nothing(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; a dataset is a folder.")
    if root.exists() and any(path.name != "meta" for path in root.iterdir()) and not (root / INFO).is_file():
        raise DataError(f"{root} is not empty and holds no {INFO}, so it is no LeRobot dataset. Choose another folder.")


def _in_order(root: Path, tasks: Mapping[int, str]) -> list[str]:
    """Return the instructions in the order of their task_index."""
    if sorted(tasks) != list(range(len(tasks))):
        raise DataError(f"{root}: its tasks are not numbered 0, 1, 2, ..., so no episode can be added to it.")
    return [tasks[index] for index in range(len(tasks))]


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


def _all(features: Mapping[str, Any]) -> dict[str, Any]:
    return {**features, **{name: feature(dtype, [1]) for name, dtype in COUNTERS.items()}}


def _counters(episode: EpisodeTable, place: Place, rate_hz: float) -> dict[str, NDArray[Any]]:
    """Return the columns of COUNTERS, (T,) each."""
    step = np.arange(len(episode))
    stamps = step / rate_hz if episode.timestamps is None else episode.timestamps
    return {
        "timestamp": stamps.astype(np.float32),
        "frame_index": step,
        "episode_index": np.full(len(episode), place.number),
        "index": place.first_frame + step,
        "task_index": np.array([place.tasks[task] for task in episode.tasks], dtype=np.int64),
    }


def _table(episode: EpisodeTable, columns: Mapping[str, Any], features: Mapping[str, Any]) -> pa.Table:
    """Return a table of T rows with the types and the metadata of lerobot's own tables."""
    import pyarrow as pa

    arrays = {name: _image_array(files) for name, files in episode.images.items()}
    arrays |= {name: _array(values) for name, values in columns.items()}
    notes = {"info": {"features": {name: _hugging_face_type(feature) for name, feature in features.items()}}}
    table = pa.table({name: arrays[name] for name in features})
    return table.replace_schema_metadata({"huggingface": json.dumps(notes)})


def _array(values: NDArray[Any] | Sequence[str]) -> Any:
    """Return an array of T rows: numbers (T, ...) as lists of lists, texts as they are."""
    import pyarrow as pa

    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    array = pa.array(values.ravel())
    inner = values.shape[1:]
    for size in reversed(inner):
        # In the package `datasets`, Array2D and higher are lists of lists without fixed sizes.
        array = (
            pa.FixedSizeListArray.from_arrays(array, size)
            if len(inner) == 1
            else pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
        )
    return array


def _image_array(files: Sequence[bytes]) -> pa.StructArray:
    import pyarrow as pa

    paths = pa.nulls(len(files), pa.string())
    return pa.StructArray.from_arrays([pa.array(files, pa.binary()), paths], ["bytes", "path"])


def _hugging_face_type(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of a column's type in the package `datasets`."""
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    number, shape = {"dtype": feature["dtype"], "_type": "Value"}, feature["shape"]
    if shape == [1]:
        return number
    if len(shape) == 1:
        return {"feature": number, "length": shape[0], "_type": "List"}
    return {"shape": shape, "dtype": feature["dtype"], "_type": f"Array{len(shape)}D"}


def _rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def _episode_stats(episode: EpisodeTable, columns: Mapping[str, Any]) -> dict[str, Stats]:
    numbers = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
    return {**episode.image_stats, **{name: describe_finite(values) for name, values in numbers.items()}}


def _stats_of(row: Mapping[str, Any]) -> dict[str, Stats]:
    """Return the statistics in a row of meta/episodes."""
    stats: dict[str, Stats] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            feature, _, key = name.removeprefix("stats/").rpartition("/")
            stats.setdefault(feature, {})[key] = np.asarray(value)
    return stats


def _merged(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    return {name: merge([part[name] for part in parts]) for name in parts[0]}
