"""Where each record and each frame of a split begins: found by reading every shard once, kept in one file.

The file lies beside the data, in .vla_index/, or in the user's cache folder where the data cannot be written. It is
mapped into memory, so that any number of workers share one copy. Each shard's size and time of change stand in it; a
shard that changed is read again, and so is one whose records the index does not account for; the others are not.

    | u64: length of the header | header: JSON | records (R,) | frames (steps, cameras) |
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import make_folder, rename, sync_file
from vla_robot.core.untrusted import MAX_JSON_BYTES, malformed, parse_json, require_inside
from vla_robot.data.formats.rlds.decode import count_steps
from vla_robot.data.formats.rlds.example import BYTES, byte_places, places
from vla_robot.data.formats.rlds.features import Features
from vla_robot.data.formats.rlds.splits import Split
from vla_robot.data.formats.rlds.storage import Stamp, Storage
from vla_robot.data.formats.rlds.tfrecord import FOOTER, HEADER, Damage, ReadAt, Record, walk

FORMAT = 2
FOLDER = ".vla_index"
THREADS = 8
"""Shards that are read at once while an index is made: reading waits for a disk or a network."""
PIECE_BYTES = 16 * 2**20
"""How much of a remote shard one request brings; each thread holds that much."""

RECORD = np.dtype([("shard", "<u4"), ("number", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("steps", "<u4")])
FRAME = np.dtype([("offset", "<u8"), ("size", "<u4")])


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
        num_empty: intact records of no steps, which are not among `records`.
    """

    shards: tuple[str, ...]
    records: NDArray[Any]
    frames: NDArray[Any]
    first_frames: NDArray[np.int64]
    damaged: tuple[DamagedRecord, ...]
    num_empty: int


@dataclass(frozen=True)
class _ShardIndex:
    """What is known of one shard."""

    name: str
    stamp: Stamp
    records: NDArray[Any]
    frames: NDArray[Any]
    damaged: tuple[DamagedRecord, ...]
    num_empty: int


@dataclass(frozen=True)
class _ShardNote:
    """What the file of an index says of one shard in its header."""

    name: str
    stamp: Stamp
    records: int
    steps: int
    damaged: tuple[DamagedRecord, ...]
    num_empty: int

    @classmethod
    def of(cls, note: Any) -> _ShardNote:
        """Raises one of `untrusted.MALFORMED` when the note has another form."""
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
        known |= _scan_all(storage, split, stamps, stale, features, on_progress)
        _write(path, [known[name] for name in split.shards], features)
    return _map(path, features)


def _fits(shard: _ShardIndex, length: int) -> bool:
    """Whether an earlier index accounts for each record that dataset_info.json counts in a shard.

    The index may have come with the data. Records whose numbers follow each other stand one behind the other in the
    shard; what lies between others was empty or damaged, and is told.
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
    """What an earlier index knows; nothing when there is none, or one of another format."""
    header = _header(path)
    if header is None or header.get("cameras") != list(features.cameras):
        return []
    try:
        index = _map(path, features)
    except DataError:  # it is made anew
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
    """None when there is no index of ours; it lies among the data, so another may have written it."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            header = parse_json(file.read(min(int.from_bytes(file.read(8), "little"), MAX_JSON_BYTES + 1)), path)
    except (OSError, DataError):
        return None
    return header if isinstance(header, dict) and header.get("format") == FORMAT else None


def _map(path: Path, features: Features) -> SplitIndex:
    """
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
    """Every record belongs to the shard and lies inside it, and each shard has the steps that its records have."""
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes, but its header describes {size}.")
    stops = np.cumsum([shard.records for shard in shards])
    for number, (shard, stop) in enumerate(zip(shards, stops.tolist(), strict=True)):
        part = records[stop - shard.records : stop]
        ends = part["offset"].astype(np.float64) + part["size"]
        if (part["shard"] != number).any() or (ends > shard.stamp.size).any() or part["steps"].sum() != shard.steps:
            raise DataError(f"{path}: the records of shard {shard.name} are not what its header describes.")


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # nothing cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)
