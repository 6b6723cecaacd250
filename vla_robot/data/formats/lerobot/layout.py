"""Reads and writes the files of LeRobot's dataset format.

Version 3, which is read and written:

    meta/info.json                              features, rate, totals
    meta/tasks.parquet                          instruction <-> task_index
    meta/episodes/chunk-000/file-000.parquet    one row an episode: length, place, statistics
    meta/stats.json                             statistics of all episodes
    data/chunk-000/file-000.parquet             one row a step; frames are PNG inside the table
    meta/embodiment.json                        ours: the embodiment (core/embodiment.py), unchanged
    meta/recording.jsonl                        ours: one line an episode: seed, driver, success; corrected steps

Versions 2.0 and 2.1, which are only read, have a file for each episode:

    meta/info.json                              the same
    meta/tasks.jsonl                            {"task_index": 0, "task": "lift the cube"}
    meta/episodes.jsonl                         {"episode_index": 0, "tasks": ["lift the cube"], "length": 42}
    data/chunk-000/episode_000000.parquet       one row a step
    videos/chunk-000/NAME/episode_000000.mp4    one video a camera

Source: huggingface/lerobot 0.6.1, datasets/{dataset_metadata,dataset_writer,io_utils,utils}.py; 0.3.3 for version 2.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.embodiment import MAX_RATE_HZ, MIN_RATE_HZ, Embodiment, contract_differences
from vla_robot.core.errors import ContractError, DataError
from vla_robot.core.host.durable import write_whole
from vla_robot.core.untrusted import (
    MALFORMED,
    expand_template,
    malformed,
    parse_json,
    read_file,
    require_inside,
    require_links_inside,
    shortened,
)
from vla_robot.core.untrusted import read_json as read_any_json
from vla_robot.data.formats.bounds import MAX_EPISODES, MAX_PIXELS, MAX_STEPS, MAX_VALUE_BYTES, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILES_PER_CHUNK = 1000
MAX_FILES = 10**6
MAX_DIMENSIONS = 8
MAX_LINES_BYTES = 2**28
"""Largest size of a file with a line for each episode: more than a million lines."""

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
TASKS_V2 = "meta/tasks.jsonl"
EPISODES_V2 = "meta/episodes.jsonl"
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
"""Prefix, before a camera's name, of the column of its frames' capture times; STAMP is the oldest of a step."""
STEP = "control_step"
"""Number of the step in the episode as it was driven. It jumps where the arm rested. Where steps were lost, it
continues in the dataset's next episode."""
INTERVENTION = "intervention"
POLICY_ACTION = "action.policy"
POLICY_ASKED = "policy_asked"

TASK_INDEX = "task_index"
TIMESTAMP = "timestamp"

COUNTERS: Mapping[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Column that every LeRobot dataset has -> its type."""

ALIASES: Mapping[str, str] = {ACTION: "actions", STATE: "state"}
"""Column -> its other name, as openpi and others write it. The name of a camera may lack the prefix IMAGES, too."""


@dataclass(frozen=True)
class VideoPlace:
    """The place of an episode's frames of one camera.

    Attributes:
        path: the video file.
        start_s: time of the episode's first frame in it.
        stop_s: time at which the next episode begins in it; infinite for the last one.
    """

    path: Path
    start_s: float = 0.0
    stop_s: float = math.inf


@dataclass(frozen=True)
class EpisodePlace:
    """The place of an episode, in a dataset of any version.

    Attributes:
        length: number of its steps.
        table: the Parquet file with its rows.
        first_row: number of its first row in that file.
        videos: column -> place of its frames, for cameras that are stored as video.
    """

    length: int
    table: Path
    first_row: int
    videos: Mapping[str, VideoPlace]


def numbered_file(root: Path, folder: str, number: int) -> Path:
    """Return the path of the n-th file of DATA or EPISODES."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return root / folder / f"chunk-{chunk:03d}" / f"file-{file:03d}.parquet"


def position(folder: str, number: int) -> dict[str, int]:
    """Return the columns by which an episode's row names the n-th file of a folder."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return {f"{folder}/chunk_index": chunk, f"{folder}/file_index": file}


def file_number(row: Mapping[str, Any], folder: str) -> int:
    """Return the number of a file from an episode's row, the inverse of `position`."""
    return int(row[f"{folder}/chunk_index"]) * FILES_PER_CHUNK + int(row[f"{folder}/file_index"])


def read_json(path: Path) -> Any:
    """Read a JSON file. Raise DataError when it is missing, too large or malformed."""
    try:
        return read_any_json(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Is it the folder of a LeRobot dataset?") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never partial, and sync it to the disk. Raise OSError when that fails."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Raises:
        DataError: the file is missing, damaged, or lacks a column.
    """
    with _opened(path, columns) as file:
        return read_parquet(file, columns, range(file.num_row_groups), path)


def read_rows(path: Path, columns: Sequence[str], start: int, stop: int) -> tuple[pa.Table, int]:
    """Read the row groups of a Parquet file that hold rows [start, stop). Return them and the number of the first row.

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
        return read_parquet(file, columns, groups, path), first


@contextlib.contextmanager
def _opened(path: Path, columns: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no regular file.")
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [column for column in columns or () if column not in names]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}. Available: {', '.join(names)}.")
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, although the dataset needs it.") from error
    except (pa.ArrowException, OSError, *MALFORMED) as error:
        raise DataError(f"{path} is damaged: {shortened(error)}.") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that is never partial, and sync it to the disk. Raise OSError when that fails."""
    write_whole(path, parquet_of(table))


def parquet_of(table: pa.Table) -> pa.Buffer:
    """Return the content of a table's Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    return sink.getvalue()


def read_embodiment(root: Path) -> Embodiment:
    """Read the embodiment that a dataset was recorded with.

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
    """Raise DataError, with every field that differs, unless two embodiments have the same contract."""
    if different := contract_differences(there, here):
        raise DataError(f"{root} was recorded with another embodiment: {'; '.join(different)}.")


def read_info(root: Path) -> dict[str, Any]:
    """Read meta/info.json of a dataset of version 2.0, 2.1 or 3.

    Raises:
        DataError: the file is missing or incomplete, has another version, or a link leaves the folder.
    """
    info = read_json(root / INFO)
    require_links_inside(root)
    if not isinstance(info, dict):
        raise DataError(f"{root / INFO} is no JSON object.")
    version = str(info.get("codebase_version", "none"))
    if not version.startswith(("v2.", "v3.")):
        raise DataError(
            f"{root / INFO} says version {version}; v2.0, v2.1 and v3.0 are read. Record it again, or convert it with "
            "the lerobot that wrote it."
        )
    for key in ("fps", "features"):
        if key not in info:
            raise DataError(f"{root / INFO} has no field '{key}'.")
    with malformed(f"{root / INFO}, fps"):
        if not MIN_RATE_HZ <= float(info["fps"]) <= MAX_RATE_HZ:
            raise ValueError(f"{info['fps']} is outside {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}")
    with malformed(f"{root / INFO}, features"):
        for name, feature in info["features"].items():
            _require_feature(feature, f"{root / INFO}, features, '{shortened(name)}'")
    return info


def _require_feature(feature: Mapping[str, Any], where: str) -> None:
    """Raise DataError unless a column has a type and a shape that a value of one step can have."""
    with malformed(where):
        dtype, shape = feature["dtype"], [int(size) for size in feature["shape"]]
        if not isinstance(dtype, str) or len(shape) > MAX_DIMENSIONS or not all(size >= 0 for size in shape):
            raise ValueError(f"dtype {shortened(dtype)!r}, shape {shortened(shape)}")
        most = 3 * MAX_PIXELS if dtype in ("image", "video") else MAX_VALUE_BYTES
        if math.prod(shape) > most:
            raise ValueError(f"shape {shortened(shape)} has more than {most} values")


def is_version_2(info: Mapping[str, Any]) -> bool:
    """Return whether the dataset has a file for each episode."""
    return str(info.get("codebase_version")).startswith("v2.")


def read_tasks(root: Path, info: Mapping[str, Any]) -> dict[int, str]:
    """Read task_index -> instruction.

    Raises:
        DataError: the file is missing or damaged.
    """
    if is_version_2(info):
        rows = _read_lines(root / TASKS_V2, ("task_index", "task"))
        with malformed(root / TASKS_V2):
            return {int(row["task_index"]): str(row["task"]) for row in rows}
    table = read_table(root / TASKS)
    texts = next((name for name in ("task", _pandas_index(table)) if name in table.column_names), None)
    if TASK_INDEX not in table.column_names or texts is None:
        raise DataError(f"{root / TASKS} has no column task_index or no column of tasks: {table.column_names}.")
    with malformed(root / TASKS):
        pairs = zip(table[TASK_INDEX].to_pylist(), table[texts].to_pylist(), strict=True)
        return {int(index): str(text) for index, text in pairs if index is not None}


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Write meta/tasks.parquet, with the instructions as pandas index, where lerobot looks them up."""
    import pandas as pd
    import pyarrow as pa

    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    write_table(root / TASKS, pa.Table.from_pandas(frame))


def read_episode_rows(root: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of meta/episodes in order; none when no episode is finished.

    Raises:
        DataError: a file is damaged, or episodes are missing.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((root / EPISODES).glob("*/*.parquet")):
        table = read_table(path, columns)
        if len(rows) + len(table) > MAX_EPISODES:
            raise DataError(f"{path}: the dataset has more than {MAX_EPISODES} episodes.")
        with malformed(path):
            rows += [_checked(row, path) for row in table.to_pylist()]
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        raise DataError(f"{root / EPISODES} does not list the episodes 0, 1, 2, ... in order; a file is missing there.")
    return rows


_COUNTS: Mapping[str, int] = {
    "length": MAX_STEPS,
    "dataset_from_index": 2**53,
    "data/chunk_index": MAX_FILES,
    "data/file_index": MAX_FILES,
}
"""Column of meta/episodes that counts -> its largest value."""


def _checked(row: dict[str, Any], path: Path) -> dict[str, Any]:
    for name, most in _COUNTS.items():
        value = row.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise DataError(f"{path}: {name} of an episode is {shortened(value)}, expected a number from 0 to {most}.")
    return row


def read_places(root: Path, info: Mapping[str, Any]) -> list[EpisodePlace]:
    """Return the place of each episode, in order; none when no episode is finished.

    Raises:
        DataError: a file is damaged, or episodes are missing.
    """
    with malformed(root / EPISODES):
        videos = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
        return _places_v2(root, info, videos) if is_version_2(info) else _places_v3(root, info, videos)


def _places_v3(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[EpisodePlace]:
    rows = read_episode_rows(
        root, [*_PLACE_COLUMNS, *(f"videos/{name}/{key}" for name in videos for key in _VIDEO_KEYS)]
    )
    tables, first_rows = [numbered_file(root, DATA, file_number(row, DATA)) for row in rows], dict[Path, int]()
    for row, table in zip(rows, tables, strict=True):
        first_rows.setdefault(table, row["dataset_from_index"])
    films = {name: _videos_v3(root, info, rows, name) for name in videos}
    return [
        EpisodePlace(
            length=row["length"],
            table=tables[number],
            first_row=row["dataset_from_index"] - first_rows[tables[number]],
            videos={name: films[name][number] for name in videos},
        )
        for number, row in enumerate(rows)
    ]


_PLACE_COLUMNS = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")
_VIDEO_KEYS = ("chunk_index", "file_index", "from_timestamp")


def _videos_v3(root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> list[VideoPlace]:
    """Return the place of each episode's frames of a camera; one video holds those of many episodes."""
    numbers = [(int(row[f"videos/{name}/chunk_index"]), int(row[f"videos/{name}/file_index"])) for row in rows]
    path_of = {number: _video_path(root, info, name, *number) for number in dict.fromkeys(numbers)}
    paths = [path_of[number] for number in numbers]
    starts = [float(row[f"videos/{name}/from_timestamp"]) for row in rows]
    in_file: dict[Path, list[float]] = {}
    for path, start_s in zip(paths, starts, strict=True):
        in_file.setdefault(path, []).append(start_s)
    for of_file in in_file.values():
        of_file.sort()
    return [VideoPlace(p, start_s, _after(in_file[p], start_s)) for p, start_s in zip(paths, starts, strict=True)]


def _video_path(root: Path, info: Mapping[str, Any], name: str, chunk: int, file: int) -> Path:
    said = f"{root / INFO}, video_path"
    values = {"video_key": name, "chunk_index": chunk, "file_index": file}
    return require_inside(root, expand_template(info.get("video_path"), values, said), said)


def _after(starts: Sequence[float], start_s: float) -> float:
    """Return the time at which the next episode of the same video begins [s]; infinite after the last one."""
    following = bisect.bisect_right(starts, start_s)
    return starts[following] if following < len(starts) else math.inf


def _pandas_index(table: pa.Table) -> str:
    """Return the column that is the table's pandas index, where lerobot looks tasks up by any name."""
    with malformed("the notes of pandas in a table of tasks"):
        notes = parse_json(
            (table.schema.metadata or {}).get(b"pandas", b"{}"), "the notes of pandas in a table of tasks"
        )
        index = (notes.get("index_columns") or [""])[0]
        return index if isinstance(index, str) else ""


def _places_v2(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[EpisodePlace]:
    rows = sorted(_read_lines(root / EPISODES_V2, ("episode_index", "length")), key=lambda row: row["episode_index"])
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        raise DataError(f"{root / EPISODES_V2} does not list the episodes 0, 1, 2, ...; a line is missing there.")
    if len(rows) > MAX_EPISODES:
        raise DataError(f"{root / EPISODES_V2} lists more than {MAX_EPISODES} episodes.")
    for row in rows:
        _checked(row, root / EPISODES_V2)
    per_chunk = max(int(info.get("chunks_size") or FILES_PER_CHUNK), 1)
    for name in videos:
        require_inside(root, f"videos/{name}", f"{root / INFO}, features")
    places: list[EpisodePlace] = []
    for number, row in enumerate(rows):
        chunk, file = f"chunk-{number // per_chunk:03d}", f"episode_{number:06d}"
        films = {name: VideoPlace(root / "videos" / chunk / name / f"{file}.mp4") for name in videos}
        places.append(EpisodePlace(int(row["length"]), root / DATA / chunk / f"{file}.parquet", 0, films))
    return places


def _read_lines(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line, each with these fields."""
    try:
        lines = read_file(path, MAX_LINES_BYTES).splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    rows = [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or any(field not in row for field in fields):
            raise DataError(f"{path}, line {number}: expected an object with {' and '.join(fields)}.")
    return rows


def find_column(features: Mapping[str, Any], name: str) -> str:
    """Return the name of a column, or its other name if it has that one; the given name when there is neither."""
    other = name.removeprefix(IMAGES) if name.startswith(IMAGES) else ALIASES.get(name, name)
    return other if name not in features and other in features else name


def to_numbers(values: pa.ChunkedArray, dtype: str, shape: Sequence[int], what: str) -> NDArray[Any]:
    """Convert a column of numbers, or of lists (of lists ...) of numbers, to (T, *shape).

    Args:
        values: T rows.
        dtype: dtype of the result.
        shape: shape of one row's value.
        what: file, episode and field, for the error message.

    Raises:
        DataError: a value is null, has another shape, or is no number; the message names the step where there is one.
    """
    import pyarrow as pa

    flat: Any = values.combine_chunks()
    while True:
        if isinstance(flat, pa.ExtensionArray):
            flat = flat.storage
        if flat.null_count:
            raise DataError(
                f"{what} is null at step {_first_step(flat.is_null().to_numpy(zero_copy_only=False), len(values))}."
            )
        if not pa.types.is_nested(flat.type):
            break
        if pa.types.is_struct(flat.type) or pa.types.is_map(flat.type):
            raise DataError(f"{what} holds {flat.type} instead of numbers.")
        if not pa.types.is_fixed_size_list(flat.type):
            sizes = flat.value_lengths().to_numpy(zero_copy_only=False)
            if len(sizes) and (sizes != sizes[0]).any():
                odd = _first_step(sizes != sizes[0], len(values))
                raise DataError(f"{what} has another number of values at step {odd} than at step 0.")
        flat = flat.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type) or pa.types.is_boolean(flat.type)):
        raise DataError(f"{what} holds {flat.type} instead of numbers.")
    if len(flat) != len(values) * math.prod(shape):
        size = len(flat) // max(len(values), 1)
        raise DataError(f"{what} has {size} numbers a step, but info.json says shape {list(shape)}.")
    return flat.to_numpy(zero_copy_only=False).astype(dtype).reshape(len(values), *shape)


def has_null(values: pa.ChunkedArray) -> bool:
    """Return whether a value of the column, or a number in one of its lists, is null."""
    import pyarrow as pa

    flat: Any = values.combine_chunks()
    while not flat.null_count:
        if isinstance(flat, pa.ExtensionArray):
            flat = flat.storage
        elif pa.types.is_nested(flat.type) and not pa.types.is_struct(flat.type):
            flat = flat.flatten()
        else:
            return False
    return True


def _first_step(marks: NDArray[np.bool_], steps: int) -> int:
    """Return the step of the first True; each step has the same number of marks."""
    return int(np.argmax(marks)) // max(len(marks) // steps, 1)


def goes_on(note: Mapping[str, Any]) -> bool:
    """Return whether the episode of a line of meta/recording.jsonl ends at a gap, after which another part begins."""
    part, parts = note.get("part"), note.get("parts")
    return isinstance(part, int) and isinstance(parts, int) and part < parts


def read_recording(root: Path) -> list[dict[str, Any]]:
    """Read the lines of meta/recording.jsonl; none for a dataset that another program recorded.

    A last line that a crash cut short is left out, since its episode was not finished. When an episode was written
    again after a crash, its last line counts.
    """
    path = root / RECORDING
    if not path.is_file():
        return []
    with malformed(f"{path}, a line,"):
        text = read_file(path, MAX_LINES_BYTES).decode()
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        by_episode = {int(entry["episode"]): entry for entry in (parse_json(line, path) for line in whole)}
    return [by_episode[episode] for episode in sorted(by_episode)]
