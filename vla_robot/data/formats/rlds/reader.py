"""Reads RLDS datasets: folders of TFRecord shards as TensorFlow Datasets writes them.

    dataset = open_rlds("data/bridge_orig", "train[:95%]")
    dataset.episode(0).steps["action"]                 (T, 7) float32
    dataset.encoded(0, "observation/image_0", 12)      one JPEG, read from its place on disk

All shards are read once, when the index is made. Every checksum is checked then, and again when an episode is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.episode import Episode, OnProgress
from vla_robot.core.errors import DataError, unknown
from vla_robot.core.ports import TaskRunner
from vla_robot.core.untrusted import MAX_JSON_BYTES, parse_json
from vla_robot.data.formats.rlds.decode import decode_metadata, decode_steps
from vla_robot.data.formats.rlds.example import Place, places
from vla_robot.data.formats.rlds.features import FEATURES_FILE, Features, parse_features
from vla_robot.data.formats.rlds.index import SplitIndex, excerpt, load_index
from vla_robot.data.formats.rlds.splits import INFO_FILE, DatasetInfo, Part, parse_info, parse_parts
from vla_robot.data.formats.rlds.tfrecord import read_record, require_crc
from vla_robot.data.formats.source import require_fields, require_index, tell_empty, tell_left_out
from vla_robot.data.formats.storage import Storage, open_storage

MOST_DAMAGES_NAMED = 3


class RldsDataset:
    """An `EpisodeSource` of an RLDS dataset. Open it with `open_rlds`.

    Attributes:
        features: content of features.json: how records store the fields.
        version: the dataset's version, e.g. "1.0.0".
    """

    def __init__(
        self,
        storage: Storage,
        info: DatasetInfo,
        features: Features,
        parts: list[tuple[Part, SplitIndex]],
        reopen: Callable[[], RldsDataset],
        notes: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            storage: the folder of the dataset's version.
            info: content of its dataset_info.json.
            features: content of its features.json.
            parts: parts of the splits, in order, with the splits' indexes.
            reopen: function that opens the same dataset in another process.
            notes: notes on the folder for a user.
        """
        self._storage, self._info, self._parts = storage, info, [part for part, _ in parts]
        self.name, self.version, self.location = info.name, info.version, storage.location
        self.rate_hz = None  # RLDS stores no rate
        self.splits = {name: split.num_episodes for name, split in info.splits.items()}
        self.features, self.left_out = features, features.left_out
        self.metadata_fields = {name: leaf.field for name, leaf in features.episode.items()}
        self.fields = {name: leaf.field for name, leaf in features.steps.items()}
        self._camera_columns = {name: column for column, name in enumerate(features.cameras)}
        self._indices = [index for _, index in parts]
        self._reopen = reopen
        opened = list({id(index): index for index in self._indices}.values())
        self.skipped = tuple(damaged for index in opened for damaged in index.damaged)
        self.num_skipped = sum(damaged.lost for damaged in self.skipped)
        num_empty = sum(index.num_empty for index in opened)
        self.notes = (*notes, *tell_left_out(self.left_out), *tell_empty(num_empty))
        rows = [_rows_of(part, index, info) for part, index in parts]
        self._rows = np.concatenate(rows) if rows else np.empty(0, np.int64)
        self._part_of = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        self.lengths = np.concatenate(
            [index.records["steps"][r].astype(np.int64) for index, r in zip(self._indices, rows, strict=True)]
            or [np.empty(0, np.int64)]
        )

    def __reduce__(self) -> tuple[Callable[[], RldsDataset], tuple[()]]:
        """Pickle `reopen`, so that another process opens the files itself and maps the index."""
        return self._reopen, ()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shard_of(self) -> NDArray[np.int64]:
        """(E,) a number for each episode that is the same for those of one shard, and grows."""
        shards = [
            self._indices[part].records["shard"][row] for part, row in zip(self._part_of, self._rows, strict=True)
        ]
        pairs = np.stack([self._part_of, np.asarray(shards, np.int64)], axis=1)
        return np.cumsum((np.diff(pairs, axis=0, prepend=pairs[:1]) != 0).any(axis=1)) if len(pairs) else self._rows

    def excerpt(self, start: int, stop: int) -> RldsDataset:
        """Return episodes start to stop - 1 as a dataset that is pickled with its part of the index.

        No shard has to be read again to open it in another process.
        """
        part_of, rows = self._part_of[start:stop], self._rows[start:stop]
        parts = [
            (self._parts[number], excerpt(self._indices[number], rows[part_of == number]))
            for number in np.unique(part_of).tolist()
        ]
        return _excerpted(self._storage, self._info, self.features, parts)

    def where(self, index: int) -> str:
        """Return shard, record and offset of an episode, for error messages."""
        record, shard = self._record(index)
        return f"{self._storage.location}/{shard}, record {record['number']} at byte {record['offset']}"

    def episode(self, index: int, fields: Collection[str] | None = None) -> Episode:
        require_index(index, len(self), "episode")
        names = require_fields(fields, self.fields, self.location)
        where = self.where(index)
        content, steps = self._content(index), int(self.lengths[index])
        try:
            lists = places(content)
            columns = {n: decode_steps(self.features.steps[n], content, lists, steps, where) for n in names}
            metadata = self._metadata(content, lists, where, is_wanted=fields is None)
        except DataError as error:
            raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from error
        return Episode(index, metadata, columns, steps, where)

    def _metadata(self, content: bytes, lists: Mapping[str, Place], where: str, *, is_wanted: bool) -> dict[str, Any]:
        """Return the episode's metadata. Unless `is_wanted`, leave damaged values out."""
        values: dict[str, Any] = {}
        for name, leaf in self.features.episode.items():
            try:
                values[name] = decode_metadata(leaf, content, lists, where)
            except DataError:
                if is_wanted:
                    raise
        return values

    def encoded(self, index: int, field: str, step: int) -> bytes:
        require_index(index, len(self), "episode")
        require_index(step, int(self.lengths[index]), "step")
        if field not in self._camera_columns:
            raise DataError(f"{self.location}, cameras: " + unknown("field", field, self._camera_columns))
        split = self._indices[self._part_of[index]]
        record = self._rows[index]
        offset, size = split.frames[split.first_frames[record] + step, self._camera_columns[field]].tolist()
        shard = split.shards[split.records["shard"][record]]
        data = self._storage.read(shard, offset, size)
        if len(data) != size:
            raise DataError(f"{self.where(index)}: frame {step} of '{field}' is cut off; did {shard} change meanwhile?")
        return data

    def _content(self, index: int) -> bytes:
        record, shard = self._record(index)
        read_at = functools.partial(self._storage.read, shard)
        content = read_record(read_at, int(record["offset"]), int(record["size"]))
        if content is None:
            raise DataError(
                f"{self.where(index)}: the checksum of its content is wrong, and was right when the index was made. "
                "Fetch the shard again; opening the dataset again finds all other damage."
            )
        return content

    def _record(self, index: int) -> tuple[Any, str]:
        split = self._indices[self._part_of[index]]
        record = split.records[self._rows[index]]
        return record, split.shards[record["shard"]]


def open_rlds(
    location: str | Path,
    split: str = "train",
    *,
    skip_corrupt: bool = False,
    cache: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> RldsDataset:
    """Open an RLDS dataset, or a part of it.

    Args:
        location: path or fsspec URL of the folder with features.json, or of the one above it, in which the newest
            complete version is read.
        split: "train", "val", "train[:95%]", "train[10:20]", "train+val" or "all".
        skip_corrupt: leave damaged records out, which `skipped` lists.
        cache: folder for the index; None takes .vla_index beside the data, or the user's cache folder.
        on_progress: called with shards done and shards in all while an index is made.

    Raises:
        DataError: there is no dataset, the split is unknown, or records are damaged without `skip_corrupt`.
        MissingDependencyError: the extra [data] is not installed.
    """
    require_crc()
    storage, notes = _version_folder(open_storage(location))
    info, features = read_description(storage)
    parts = parse_parts(split, info.splits, f"{storage.location}/{INFO_FILE}")
    names = dict.fromkeys(part.split for part in parts)
    indices = {name: load_index(storage, info.splits[name], features, cache, on_progress) for name in names}
    damaged = [f"{storage.location}/{d}" for name in names for d in indices[name].damaged]
    if damaged and not skip_corrupt:
        more = f" And {len(damaged) - MOST_DAMAGES_NAMED} more." if len(damaged) > MOST_DAMAGES_NAMED else ""
        raise DataError(
            f"{'; '.join(damaged[:MOST_DAMAGES_NAMED])}.{more} Fetch the file again, or leave out what is damaged "
            "with --skip-corrupt."
        )
    reopen = functools.partial(open_rlds, storage.location, split, skip_corrupt=skip_corrupt, cache=cache)
    return RldsDataset(storage, info, features, [(part, indices[part.split]) for part in parts], reopen, notes)


def _excerpted(
    storage: Storage, info: DatasetInfo, features: Features, parts: list[tuple[Part, SplitIndex]]
) -> RldsDataset:
    return RldsDataset(storage, info, features, parts, functools.partial(_excerpted, storage, info, features, parts))


def index_rlds(
    location: str, runner: TaskRunner, on_progress: OnProgress = lambda done, total: None, cache: Path | None = None
) -> None:
    """Make the index of every split whose shards changed, where a runner's tasks run, so that opening reads no shard.

    Raises:
        DataError: there is no dataset, or a shard is missing.
    """
    require_crc()
    storage, _ = _version_folder(open_storage(location))
    info, features = read_description(storage)
    for split in info.splits.values():
        load_index(storage, split, features, cache, on_progress, runner)


def describe_rlds(location: str | Path) -> tuple[str, DatasetInfo, Features]:
    """Return the folder that `open_rlds` would read, and its two descriptions; no shard is read.

    Raises:
        DataError: there is no dataset, or its description is damaged.
    """
    storage, _ = _version_folder(open_storage(location))
    return storage.location, *read_description(storage)


def read_description(storage: Storage) -> tuple[DatasetInfo, Features]:
    """Read dataset_info.json and features.json of a folder.

    Raises:
        DataError: a file is missing or malformed.
    """
    info, tree = (_read_json(storage, name) for name in (INFO_FILE, FEATURES_FILE))
    return (
        parse_info(info, f"{storage.location}/{INFO_FILE}"),
        parse_features(tree, f"{storage.location}/{FEATURES_FILE}"),
    )


def is_rlds(storage: Storage) -> bool:
    """Return whether the folder, or one of its versions, holds an RLDS dataset."""
    if INFO_FILE in storage.files():
        return True
    return any(INFO_FILE in storage.inside(version).files() for version in _versions(storage))


def _version_folder(storage: Storage) -> tuple[Storage, tuple[str, ...]]:
    """Return the folder of the newest complete version, or else of the newest one, and a note on the others."""
    files = storage.files()
    if INFO_FILE in files or FEATURES_FILE in files:
        return storage, ()
    versions = _versions(storage)
    if not versions:
        raise DataError(
            f"{storage.location} holds no {INFO_FILE} and no folder of a version such as 1.0.0, so it is no RLDS "
            f"dataset. It has: {', '.join([*sorted(files), *storage.folders()][:8]) or 'nothing'}."
        )
    if len(versions) == 1:
        return storage.inside(versions[0]), ()
    lacks = {version: _what_lacks(storage.inside(version)) for version in reversed(versions)}
    chosen = next((version for version, why in lacks.items() if not why), versions[-1])
    others = [f"{version} ({why})" if why else version for version, why in lacks.items() if version != chosen]
    note = f"{storage.location} holds several versions: {chosen} is read, not {', '.join(others)}."
    return storage.inside(chosen), (note,)


def _what_lacks(storage: Storage) -> str:
    """Return why a version's folder is incomplete; "" when it is complete."""
    files = storage.files()
    absent = [name for name in (INFO_FILE, FEATURES_FILE) if name not in files]
    if absent:
        return f"without {' and '.join(absent)}"
    try:
        info, _ = read_description(storage)
    except DataError as error:
        return str(error).removeprefix(f"{storage.location}/").rstrip(".")
    shards = [shard for split in info.splits.values() for shard in split.shards]
    missing = [shard for shard in shards if shard not in files]
    return f"{len(missing)} of {len(shards)} shards are missing" if missing else ""


def _versions(storage: Storage) -> list[str]:
    """Return the names of folders that are versions, the newest last."""
    names = [name for name in storage.folders() if all(part.isdigit() for part in name.split("."))]
    return sorted(names, key=lambda name: [int(part) for part in name.split(".")])


def _read_json(storage: Storage, name: str) -> Any:
    if name not in storage.files():
        raise DataError(
            f"{storage.location}/{name} is missing, without which its shards cannot be read. Fetch it from where "
            "the dataset came from; TensorFlow Datasets writes it beside the shards."
        )
    return parse_json(storage.read(name, size=MAX_JSON_BYTES + 1), f"{storage.location}/{name}")


def _rows_of(part: Part, index: SplitIndex, info: DatasetInfo) -> NDArray[np.int64]:
    """Return the rows of a part's intact records, (E,). Its boundaries count damaged records, too."""
    lengths = info.splits[part.split].lengths
    before = np.cumsum([0, *lengths])[:-1]
    place = before[index.records["shard"]] + index.records["number"]
    return np.flatnonzero((place >= part.start) & (place < part.stop))
