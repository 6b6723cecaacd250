"""Indexes the offsets of all records and frames of a split, by reading every shard once, in one file.

The file is beside the data, in .vla_index/, or in the user's cache folder where the data cannot be written. It is
mapped into memory, so that all workers share one copy. It holds each shard's size and time of change: a shard that
changed, or whose records the index does not account for, is read again.

    | u64: length of the header | header: JSON | records (R,) | frames (steps, cameras) |
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.cluster.local import LocalRunner
from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, rename, sync_file
from vla_robot.core.host.user_cache import user_cache
from vla_robot.core.ports import TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.core.untrusted import MAX_JSON_BYTES, malformed, parse_json, require_inside
from vla_robot.data.formats.rlds.decode import count_steps
from vla_robot.data.formats.rlds.example import BYTES, byte_places, places
from vla_robot.data.formats.rlds.features import Features
from vla_robot.data.formats.rlds.splits import Split
from vla_robot.data.formats.rlds.tfrecord import FOOTER, HEADER, Damage, ReadAt, Record, walk
from vla_robot.data.formats.storage import Stamp, Storage

FORMAT = 2
FOLDER = ".vla_index"
THREADS = 8
"""Number of shards that are read at once while an index is made, since reading waits for a disk or a network."""
PIECE_BYTES = 16 * 2**20
"""Size of one request to a remote shard; each thread holds that much."""

SCAN_NEEDS = Resources(cpus=1.0, memory_mb=500)
"""What reading a shard takes: a piece of it, and its largest record."""

RECORD = np.dtype([("shard", "<u4"), ("number", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("steps", "<u4")])
FRAME = np.dtype([("offset", "<u8"), ("size", "<u4")])


@dataclass(frozen=True)
class DamagedRecord:
    """A record that cannot be read.

    Attributes:
        shard: file name of its shard.
        number: number of the record in the shard, from 0.
        offset: offset of the record in the shard [bytes].
        reason: what is wrong.
        lost: number of episodes that are lost with it.
    """

    shard: str
    number: int
    offset: int
    reason: str
    lost: int

    def __str__(self) -> str:
        more = f"; {self.lost - 1} more are lost, since the records after it cannot be found" if self.lost > 1 else ""
        return f"{self.shard}, record {self.number} at byte {self.offset}: {self.reason}{more}"


@dataclass(frozen=True)
class SplitIndex:
    """The index of one split.

    Attributes:
        shards: file names in order.
        records: (R,) RECORD, the intact records in order.
        frames: (steps of all records, cameras) FRAME, with offsets from the shard's first byte.
        first_frames: (R,) first row of each record in `frames`.
        damaged: records that could not be read.
        num_empty: number of intact records without steps, which are not in `records`.
    """

    shards: tuple[str, ...]
    records: NDArray[Any]
    frames: NDArray[Any]
    first_frames: NDArray[np.int64]
    damaged: tuple[DamagedRecord, ...]
    num_empty: int


@dataclass(frozen=True)
class _ShardIndex:
    """The index of one shard."""

    name: str
    stamp: Stamp
    records: NDArray[Any]
    frames: NDArray[Any]
    damaged: tuple[DamagedRecord, ...]
    num_empty: int


@dataclass(frozen=True)
class _ShardNote:
    """The entry of one shard in the header of an index file."""

    name: str
    stamp: Stamp
    records: int
    steps: int
    damaged: tuple[DamagedRecord, ...]
    num_empty: int

    @classmethod
    def of(cls, note: Any) -> _ShardNote:
        """Return the entry from its JSON. Raise one of `untrusted.MALFORMED` when it has another form."""
        size, token = note["stamp"]
        records, steps = int(note["records"]), int(note["steps"])
        if not (0 <= records <= size and 0 <= steps <= size):  # a record and a step take a byte at least
            raise ValueError(f"{records} records and {steps} steps in {size} bytes")
        damaged = tuple(
            DamagedRecord(**{**d, **{name: int(d[name]) for name in ("number", "offset", "lost")}})
            for d in note["damaged"]
        )
        num_empty = int(note["empty"])
        if min(num_empty, *(d.lost for d in damaged), 0) < 0:
            raise ValueError(f"{num_empty} empty episodes, or less than none lost")
        return cls(str(note["name"]), Stamp(int(size), str(token)), records, steps, damaged, num_empty)


def load_index(
    storage: Storage,
    split: Split,
    features: Features,
    cache: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
    runner: TaskRunner | None = None,
) -> SplitIndex:
    """Return the index of a split; make or update it first where needed.

    Args:
        storage: the dataset's folder.
        split: the split.
        features: fields of its records.
        cache: folder for the file; None takes .vla_index beside the data, or the user's cache folder.
        on_progress: called after each shard that had to be read.
        runner: where shards are read; None for threads of this process.

    Raises:
        DataError: a shard is missing, or no folder can be written.
    """
    stamps = _stamps(storage, split)
    folder = cache or _usual_folder(storage)
    if storage.local is not None and cache is None and folder.parent == storage.local:
        require_inside(storage.local, Path(FOLDER) / f"{split.name}.index")
    path = folder / f"{split.name}.index"
    noted = _read(path, features)
    known = {shard.name: shard for shard in noted}
    stale = [
        i
        for i, name in enumerate(split.shards)
        if name not in known or known[name].stamp != stamps[i] or not _fits(known[name], split.lengths[i])
    ]
    if stale or [shard.name for shard in noted] != list(split.shards):
        known |= _scan_all(storage, split, stamps, stale, features, on_progress, runner)
        _write(path, [known[name] for name in split.shards], features)
    return _map(path, features)


def _fits(shard: _ShardIndex, length: int) -> bool:
    """Return whether an earlier index accounts for each record that dataset_info.json counts in a shard.

    The index may have come with the data. Records with consecutive numbers must be adjacent in the shard; between
    others there were empty or damaged records, which the index counts.
    """
    numbers, starts, sizes = (shard.records[name].astype(np.int64) for name in ("number", "offset", "size"))
    lost = sum(damage.lost for damage in shard.damaged if damage.number < length)
    if len(numbers) + shard.num_empty + lost != length or (numbers >= length).any():
        return False
    missing = np.diff(numbers, prepend=-1) - 1
    ends = np.concatenate([[0], starts + sizes + FOOTER.size])
    between = starts - HEADER.size - ends[:-1]
    return bool(np.where(missing == 0, between == 0, (missing > 0) & (between > 0)).all())


def _scan_all(
    storage: Storage,
    split: Split,
    stamps: Sequence[Stamp],
    stale: Sequence[int],
    features: Features,
    on_progress: OnProgress,
    runner: TaskRunner | None,
) -> dict[str, _ShardIndex]:
    made: dict[str, _ShardIndex] = {}
    if not stale:
        return made
    place = runner or LocalRunner(THREADS)
    count = min(len(stale), THREADS if place.is_here else place.most_workers(SCAN_NEEDS))
    jobs = [(split.shards[i], split.lengths[i], stamps[i]) for i in stale]
    with (
        place.workers(nullcontext, count, SCAN_NEEDS) as workers,
        closing(workers.run(_ScanShard(storage, features), jobs)) as found,
    ):
        for shard in found:
            made[shard.name] = shard
            on_progress(len(made), len(stale))
    return made


@dataclass(frozen=True)
class _ScanShard:
    """A task: indexes one shard."""

    storage: Storage
    features: Features

    def __call__(self, state: None, job: tuple[str, int, Stamp], should_stop: ShouldStop) -> _ShardIndex:
        return _scan(self.storage, *job, self.features)


def _scan(storage: Storage, shard: str, length: int, stamp: Stamp, features: Features) -> _ShardIndex:
    """Read a whole shard, and index it."""
    records: list[tuple[int, int, int, int, int]] = []
    frames: list[NDArray[Any]] = []
    damaged: list[DamagedRecord] = []
    seen = num_empty = 0
    for found in walk(_reader(storage, shard, stamp.size), stamp.size):
        seen = found.number + 1
        if isinstance(found, Damage):
            lost = max(length - found.number, 1) if found.ends_shard else 1
            damaged.append(DamagedRecord(shard, found.number, found.offset, found.reason, lost))
            seen = max(seen, length) if found.ends_shard else seen
            continue
        try:
            with malformed("the record"):
                steps, rows = _frames_of(found, features)
        except DataError as error:
            damaged.append(DamagedRecord(shard, found.number, found.offset, str(error), 1))
            continue
        if steps == 0:
            num_empty += found.number < length
            continue
        records.append((0, found.number, found.offset, len(found.content), steps))
        frames.append(rows)
    if seen != length:
        reason = f"the shard holds {seen} records, but dataset_info.json says {length}"
        damaged.append(DamagedRecord(shard, min(seen, length), stamp.size, reason, max(length - seen, 0)))
    kept = [record for record in records if record[1] < length]
    rows = np.concatenate(frames[: len(kept)]) if kept else np.empty((0, len(features.cameras)), FRAME)
    return _ShardIndex(shard, stamp, np.array(kept, RECORD), rows, tuple(damaged), num_empty)


def _reader(storage: Storage, shard: str, size: int) -> ReadAt:
    """Return a function that reads a shard; a remote one in pieces, since a request for each record is slow."""
    if storage.local is not None:
        return lambda offset, count: storage.read(shard, offset, count)
    piece, start = b"", 0

    def read_at(offset: int, count: int) -> bytes:
        nonlocal piece, start
        count = min(count, size - offset)
        if not start <= offset <= offset + count <= start + len(piece):
            piece, start = storage.read(shard, offset, min(max(count, PIECE_BYTES), size - offset)), offset
        return piece[offset - start : offset - start + count]

    return read_at


def _frames_of(record: Record, features: Features) -> tuple[int, NDArray[Any]]:
    """Return the number of an episode's steps, and the offset and size of each frame, (steps, cameras) FRAME."""
    lists = places(record.content)
    steps = count_steps(record.content, lists, features)
    rows = np.zeros((steps, len(features.cameras)), FRAME)
    for column, camera in enumerate(features.cameras):
        place = lists.get(features.steps[camera].path)
        found = byte_places(record.content, place) if place is not None and place.kind == BYTES else []
        if len(found) != steps:
            raise DataError(f"field '{camera}' has {len(found)} frames, but the episode {steps} steps")
        rows[:, column] = found
    rows["offset"] += record.offset
    return steps, rows


def _stamps(storage: Storage, split: Split) -> list[Stamp]:
    files = storage.files()
    missing = [name for name in split.shards if name not in files]
    if missing:
        raise DataError(
            f"{storage.location}: {len(missing)} of {len(split.shards)} shards of split '{split.name}' are missing, "
            f"first {missing[0]}. Finish the download."
        )
    return [files[name] for name in split.shards]


def _usual_folder(storage: Storage) -> Path:
    """Return the folder of the index: beside the data, or in the user's cache folder where that is not writable."""
    if storage.local is not None and os.access(storage.local, os.W_OK):
        return storage.local / FOLDER
    location = str(storage.local.resolve()) if storage.local is not None else storage.location
    return user_cache("rlds") / hashlib.sha256(location.encode()).hexdigest()[:16]


def _write(path: Path, shards: Sequence[_ShardIndex], features: Features) -> None:
    """Write an index file and rename it, so that it is never partial, even with several processes."""
    records = [shard.records.copy() for shard in shards]
    for number, part in enumerate(records):
        part["shard"] = number
    header = json.dumps({"format": FORMAT, "cameras": features.cameras, "shards": [_describe(s) for s in shards]})
    text = header.encode() + b" " * (-len(header.encode()) % 8)
    try:
        make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete_on_close=False) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in [*records, *(shard.frames for shard in shards)]:
                file.write(part.tobytes())
            sync_file(file)
            rename(Path(file.name), path)
    except OSError as error:
        raise DataError(
            f"cannot write the index {path}: {error.strerror}. Choose a folder with XDG_CACHE_HOME."
        ) from error


def _describe(shard: _ShardIndex) -> dict[str, Any]:
    counts = {"records": len(shard.records), "steps": len(shard.frames), "empty": shard.num_empty}
    return {"name": shard.name, "stamp": shard.stamp, **counts, "damaged": [asdict(d) for d in shard.damaged]}


def _read(path: Path, features: Features) -> list[_ShardIndex]:
    """Return the shards of an earlier index; none when there is none, or one of another format."""
    header = _header(path)
    if header is None or header.get("cameras") != list(features.cameras):
        return []
    try:
        index = _map(path, features)
    except DataError:  # a damaged index is made anew
        return []
    shards: list[_ShardIndex] = []
    record = step = 0
    for shard in map(_ShardNote.of, header["shards"]):
        last_record, last_step = record + shard.records, step + shard.steps
        parts = index.records[record:last_record], index.frames[step:last_step]
        shards.append(_ShardIndex(shard.name, shard.stamp, *parts, shard.damaged, shard.num_empty))
        record, step = last_record, last_step
    return shards


def _header(path: Path) -> dict[str, Any] | None:
    """Return the header of an index file; None when it is missing or has another form, as from another program."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            header = parse_json(file.read(min(int.from_bytes(file.read(8), "little"), MAX_JSON_BYTES + 1)), path)
    except (OSError, DataError):
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _map(path: Path, features: Features) -> SplitIndex:
    """Map an index file into memory.

    Raises:
        DataError: its parts do not fit together.
    """
    header = _header(path)
    if header is None:
        raise DataError(f"the index {path} was damaged while it was in use. Run the command again.")
    with malformed(path, also=(OSError,)):
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        shards = [_ShardNote.of(shard) for shard in header["shards"]]
        records = _mapped(path, RECORD, start, (sum(shard.records for shard in shards),))
        frames_shape = (sum(shard.steps for shard in shards), len(features.cameras))
        frames = _mapped(path, FRAME, start + records.nbytes, frames_shape)
        _require_consistent(path, shards, records, start + records.nbytes + frames.nbytes)
        steps = records["steps"].astype(np.int64)
        damaged = tuple(d for shard in shards for d in shard.damaged)
        names, num_empty = tuple(s.name for s in shards), sum(s.num_empty for s in shards)
        return SplitIndex(names, records, frames, np.cumsum(steps) - steps, damaged, num_empty)


def _require_consistent(path: Path, shards: Sequence[_ShardNote], records: NDArray[Any], size: int) -> None:
    """Raise DataError unless every record lies inside its shard, and each shard has the steps of its records."""
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes, but its header describes {size}.")
    stops = np.cumsum([shard.records for shard in shards])
    for number, (shard, stop) in enumerate(zip(shards, stops.tolist(), strict=True)):
        part = records[stop - shard.records : stop]
        ends = part["offset"].astype(np.float64) + part["size"]
        if (part["shard"] != number).any() or (ends > shard.stamp.size).any() or part["steps"].sum() != shard.steps:
            raise DataError(f"{path}: the records of shard {shard.name} are not what its header describes.")


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # an empty array cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


def excerpt(index: SplitIndex, rows: NDArray[np.int64]) -> SplitIndex:
    """Return the index of some records, whose arrays are small copies."""
    records = index.records[rows]
    steps = records["steps"].astype(np.int64)
    starts = index.first_frames[rows]
    places = [index.frames[start : start + count] for start, count in zip(starts, steps, strict=True)]
    frames = np.concatenate(places) if places else index.frames[:0]
    return SplitIndex(index.shards, records, np.asarray(frames), np.cumsum(steps) - steps, (), 0)
