"""LeRobot's dataset format, version 3, on disk: what lies where, and how each kind of file is read and written.

    meta/info.json                              features, rate, totals
    meta/tasks.parquet                          instruction <-> task_index
    meta/episodes/chunk-000/file-000.parquet    one row an episode: length, place, statistics
    meta/stats.json                             statistics of all episodes
    data/chunk-000/file-000.parquet             one row a step; frames are PNG inside the table
    meta/embodiment.json                        ours: what the numbers mean (core/embodiment.py), verbatim
    meta/recording.jsonl                        ours: one line an episode: seed, driver, success; corrected steps

Source: huggingface/lerobot 0.6.1, datasets/{dataset_metadata,dataset_writer,utils}.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_robot.core.durable import write_whole
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILES_PER_CHUNK = 1000

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EMBODIMENT = "meta/embodiment.json"
RECORDING = "meta/recording.jsonl"
LOCK = "meta/.lock"
DATA = "data"
EPISODES = "meta/episodes"

IMAGES = "observation.images."
STATE = "observation.state"
ACTION = "action"
EXECUTED = "action.executed"
SUCCESS = "next.success"
STAMP = "stamp_ns"
FRAME_STAMP = "stamp_ns."
"""And the camera's name: when that frame was captured; STAMP is the oldest of a step."""
INTERVENTION = "intervention"
POLICY_ACTION = "action.policy"
POLICY_ASKED = "policy_asked"

COUNTERS: Mapping[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that every LeRobot dataset has, and their types."""


def numbered_file(root: Path, folder: str, number: int) -> Path:
    """The n-th file of DATA or EPISODES."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return root / folder / f"chunk-{chunk:03d}" / f"file-{file:03d}.parquet"


def position(folder: str, number: int) -> dict[str, int]:
    """How an episode's row names the n-th file of a folder."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return {f"{folder}/chunk_index": chunk, f"{folder}/file_index": file}


def file_number(row: Mapping[str, Any], folder: str) -> int:
    """Inverse of `position`."""
    return int(row[f"{folder}/chunk_index"]) * FILES_PER_CHUNK + int(row[f"{folder}/file_index"])


def read_json(path: Path) -> Any:
    """Raises DataError when the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Is it the folder of a LeRobot dataset?") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error


def write_json(path: Path, content: Any) -> None:
    """The file appears whole, and is on the disk when this returns; raises OSError."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns.

    Raises:
        DataError: it is missing, damaged, or lacks a column.
    """
    with _opened(path, columns) as file:
        return file.read(columns=columns)


def read_rows(path: Path, columns: Sequence[str], start: int, stop: int) -> tuple[pa.Table, int]:
    """The row groups of a Parquet file that hold rows [start, stop), and the number of their first row.

    Raises:
        DataError: as `read_table`.
    """
    with _opened(path, columns) as file:
        groups, first, seen = [], 0, 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if seen < stop and seen + count > start:
                first = first if groups else seen
                groups.append(group)
            seen += count
        return file.read_row_groups(groups, columns=list(columns)), first


@contextlib.contextmanager
def _opened(path: Path, columns: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [column for column in columns or () if column not in names]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}. Available: {', '.join(names)}.")
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, although the dataset needs it.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {error}.") from error


def write_table(path: Path, table: pa.Table) -> None:
    """The file appears whole, and is on the disk when this returns; raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    write_whole(path, sink.getvalue())


def read_embodiment(root: Path) -> Embodiment:
    """The contract that a dataset was recorded with.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = root / EMBODIMENT
    if (root / INFO).is_file() and not path.is_file():
        raise DataError(
            f"{path} is missing, so nothing says what the numbers in {root} mean. `vla record` writes it. For one "
            "made elsewhere, copy it from a recording with the same arm, cameras and units, and check it."
        )
    try:
        return Embodiment.from_dict(read_json(path))
    except ContractError as error:
        raise DataError(f"{path}: {error}") from error


def require_same_embodiment(root: Path, there: Embodiment, here: Embodiment) -> None:
    """Raise DataError, with every field that differs, unless two embodiments are one.

    How far the state may reach is an estimate by which nothing is scaled, so it may differ.
    """
    theirs, ours = _contract(there), _contract(here)
    different = [f"{name} is {theirs[name]} there and {ours[name]} here" for name in ours if theirs[name] != ours[name]]
    if different:
        raise DataError(f"{root} was recorded with another embodiment: {'; '.join(different)}.")


def _contract(embodiment: Embodiment) -> dict[str, Any]:
    return {**embodiment.to_dict(), "state": [f"{dim.name} [{dim.unit}]" for dim in embodiment.state]}


def read_tasks(root: Path) -> list[str]:
    """Instructions in the order of their task_index."""
    rows = read_table(root / TASKS, ["task_index", "task"]).to_pylist()
    return [row["task"] for row in sorted(rows, key=lambda row: row["task_index"])]


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """lerobot looks instructions up in the index of a pandas table."""
    import pandas as pd
    import pyarrow as pa

    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    write_table(root / TASKS, pa.Table.from_pandas(frame))


def read_episode_rows(root: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of meta/episodes in order; none when no episode has been finished yet.

    Raises:
        DataError: a file is damaged, or episodes are missing.
    """
    paths = sorted((root / EPISODES).glob("*/*.parquet"))
    rows = [row for path in paths for row in read_table(path, columns).to_pylist()]
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        raise DataError(f"{root / EPISODES} does not list the episodes 0, 1, 2, ... in order; a file is missing there.")
    return rows


def read_recording(root: Path) -> list[dict[str, Any]]:
    """The lines of meta/recording.jsonl; none for a dataset that another program recorded.

    A last line that a crash cut short is left out: its episode was never finished. When an episode was written again
    after a crash, its last line counts.
    """
    path = root / RECORDING
    if not path.is_file():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        by_episode = {int(entry["episode"]): entry for entry in map(json.loads, whole)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no record of an episode: {error}.") from error
    return [by_episode[episode] for episode in sorted(by_episode)]
