"""Where each record and each frame of a split begins: found by reading every shard once, kept in one file.

The file lies beside the data, in .vla_index/, or in the user's cache folder where the data cannot be written. It is
mapped into memory, so that any number of workers share one copy. Each shard's size and time of change stand in it; a
shard that changed is read again, the others are not.

    | u64: length of the header | header: JSON | records (R,) | frames (steps, cameras) |
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.record.rlds.decode import count_steps
from vla_robot.record.rlds.example import BYTES, byte_places, places
from vla_robot.record.rlds.features import Features
from vla_robot.record.rlds.splits import Split
from vla_robot.record.rlds.storage import Stamp, Storage
from vla_robot.record.rlds.tfrecord import Damage, ReadAt, Record, walk

FORMAT = 1
FOLDER = ".vla_index"
THREADS = 8
"""Shards that are read at once while an index is made: reading waits for a disk or a network."""
PIECE_BYTES = 16 * 2**20
"""How much of a remote shard one request brings; each thread holds that much."""

RECORD = np.dtype([("shard", "<u4"), ("number", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("steps", "<u4")])
FRAME = np.dtype([("offset", "<u8"), ("size", "<u4")])

OnProgress = Callable[[int, int], None]
"""Called with shards done and shards in all."""


@dataclass(frozen=True)
class DamagedRecord:
    """A record that was found unreadable.

    Attributes:
        shard: file name.
        number: its place in the shard, from 0.
        offset: where it begins in the shard, in bytes.
        reason: what is wrong.
        lost: how many episodes are lost with it.
    """

    shard: str
    number: int
    offset: int
    reason: str
    lost: int

    def __str__(self) -> str:
        more = f"; with it {self.lost - 1} more, since what follows cannot be found" if self.lost > 1 else ""
        return f"{self.shard}, record {self.number} at byte {self.offset}: {self.reason}{more}"


@dataclass(frozen=True)
class SplitIndex:
    """One split, indexed.

    Attributes:
        shards: file names in order.
        records: (R,) RECORD, the intact ones in order.
        frames: (steps of all records, cameras) FRAME, from the shard's first byte.
        first_frames: (R,) the first row of each record in `frames`.
        damaged: what could not be read.
    """

    shards: tuple[str, ...]
    records: NDArray[Any]
    frames: NDArray[Any]
    first_frames: NDArray[np.int64]
    damaged: tuple[DamagedRecord, ...]


@dataclass(frozen=True)
class _ShardIndex:
    """What is known of one shard."""

    name: str
    stamp: Stamp
    records: NDArray[Any]
    frames: NDArray[Any]
    damaged: tuple[DamagedRecord, ...]


def load_index(
    storage: Storage,
    split: Split,
    features: Features,
    cache: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> SplitIndex:
    """The index of a split, made or brought up to date where needed.

    Args:
        storage: the dataset's folder.
        split: which one.
        features: what its records hold.
        cache: folder for the file; None takes the usual place.
        on_progress: called after each shard that had to be read.

    Raises:
        DataError: a shard is missing, or no folder can be written.
    """
    stamps = _stamps(storage, split)
    folder = cache or _usual_folder(storage)
    path = folder / f"{split.name}.index"
    known = {shard.name: shard for shard in _read(path, features)}
    stale = [i for i, name in enumerate(split.shards) if name not in known or known[name].stamp != stamps[i]]
    if stale or list(known) != list(split.shards):
        known |= _scan_all(storage, split, stamps, stale, features, on_progress)
        _write(path, [known[name] for name in split.shards], features)
    return _map(path, features)


def _scan_all(
    storage: Storage,
    split: Split,
    stamps: Sequence[Stamp],
    stale: Sequence[int],
    features: Features,
    on_progress: OnProgress,
) -> dict[str, _ShardIndex]:
    made: dict[str, _ShardIndex] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        shards = pool.map(lambda i: _scan(storage, split.shards[i], split.lengths[i], stamps[i], features), stale)
        for done, shard in enumerate(shards, start=1):
            made[shard.name] = shard
            on_progress(done, len(stale))
    return made


def _scan(storage: Storage, shard: str, length: int, stamp: Stamp, features: Features) -> _ShardIndex:
    """Read a shard from end to end."""
    records: list[tuple[int, int, int, int, int]] = []
    frames: list[NDArray[Any]] = []
    damaged: list[DamagedRecord] = []
    seen = 0
    for found in walk(_reader(storage, shard, stamp.size), stamp.size):
        seen = found.number + 1
        if isinstance(found, Damage):
            lost = max(length - found.number, 1) if found.ends_shard else 1
            damaged.append(DamagedRecord(shard, found.number, found.offset, found.reason, lost))
            seen = max(seen, length) if found.ends_shard else seen
            continue
        try:
            steps, rows = _frames_of(found, features)
        except DataError as error:
            damaged.append(DamagedRecord(shard, found.number, found.offset, str(error), 1))
            continue
        records.append((0, found.number, found.offset, len(found.content), steps))
        frames.append(rows)
    if seen != length:
        reason = f"the shard holds {seen} records, but dataset_info.json says {length}"
        damaged.append(DamagedRecord(shard, min(seen, length), stamp.size, reason, max(length - seen, 0)))
    kept = [record for record in records if record[1] < length]
    rows = np.concatenate(frames[: len(kept)]) if kept else np.empty((0, len(features.cameras)), FRAME)
    return _ShardIndex(shard, stamp, np.array(kept, RECORD), rows, tuple(damaged))


def _reader(storage: Storage, shard: str, size: int) -> ReadAt:
    """Reads a remote shard in pieces: a request for each record would take far longer."""
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
    """How many steps an episode has, and (steps, cameras) where each of its frames lies."""
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
            f"first {missing[0]}. Was the download finished?"
        )
    return [files[name] for name in split.shards]


def _usual_folder(storage: Storage) -> Path:
    """Beside the data, or where a user's caches are."""
    if storage.local is not None and os.access(storage.local, os.W_OK):
        return storage.local / FOLDER
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    location = str(storage.local.resolve()) if storage.local is not None else storage.location
    return home / "vla_robot" / "rlds" / hashlib.sha256(location.encode()).hexdigest()[:16]


def _write(path: Path, shards: Sequence[_ShardIndex], features: Features) -> None:
    """The file appears whole or not at all, also when several processes make it at once."""
    records = [shard.records.copy() for shard in shards]
    for number, part in enumerate(records):
        part["shard"] = number
    header = json.dumps({"format": FORMAT, "cameras": features.cameras, "shards": [_describe(s) for s in shards]})
    text = header.encode() + b" " * (-len(header.encode()) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in [*records, *(shard.frames for shard in shards)]:
                file.write(part.tobytes())
        os.replace(file.name, path)
    except OSError as error:
        raise DataError(
            f"cannot write the index {path}: {error.strerror}. Choose a folder with XDG_CACHE_HOME."
        ) from error


def _describe(shard: _ShardIndex) -> dict[str, Any]:
    counts = {"records": len(shard.records), "steps": len(shard.frames)}
    return {"name": shard.name, "stamp": shard.stamp, **counts, "damaged": [asdict(d) for d in shard.damaged]}


def _read(path: Path, features: Features) -> list[_ShardIndex]:
    """What an earlier index knows; nothing when there is none, or one of another format."""
    header = _header(path)
    if header is None or tuple(header["cameras"]) != features.cameras:
        return []
    index = _map(path, features)
    shards: list[_ShardIndex] = []
    record = step = 0
    for shard in header["shards"]:
        last_record, last_step = record + shard["records"], step + shard["steps"]
        damaged = tuple(DamagedRecord(**d) for d in shard["damaged"])
        parts = index.records[record:last_record], index.frames[step:last_step]
        shards.append(_ShardIndex(shard["name"], Stamp(*shard["stamp"]), *parts, damaged))
        record, step = last_record, last_step
    return shards


def _header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, OverflowError, MemoryError):  # absent, or no index of ours
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _map(path: Path, features: Features) -> SplitIndex:
    header = _header(path)
    if header is None:
        raise DataError(f"the index {path} was damaged while it was in use. Run the command again.")
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    num_records, num_steps = (sum(shard[what] for shard in header["shards"]) for what in ("records", "steps"))
    records = _mapped(path, RECORD, start, (num_records,))
    frames = _mapped(path, FRAME, start + records.nbytes, (num_steps, len(features.cameras)))
    steps = records["steps"].astype(np.int64)
    damaged = tuple(DamagedRecord(**d) for shard in header["shards"] for d in shard["damaged"])
    return SplitIndex(tuple(s["name"] for s in header["shards"]), records, frames, np.cumsum(steps) - steps, damaged)


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # nothing cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)
