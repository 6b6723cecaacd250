"""Writes RLDS datasets that TensorFlow Datasets, and every loader built on it, reads back.

    with RldsWriter(Path("data/mine"), "mine", features) as writer:
        writer.write(episode)
        writer.finish()

TensorFlow Datasets needs the number of shards in each file's name, which is known only at the end. Until `finish`,
episodes are appended to files in .partial/; after a crash, those files are read back, and writing continues after the
last whole record.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from vla_robot.core.episode import Episode
from vla_robot.core.errors import DataError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.closeable import Closeable
from vla_robot.core.host.durable import make_folder, rename, sync_file, sync_folder, writing
from vla_robot.data.formats.lerobot.layout import read_json, write_json
from vla_robot.data.formats.rlds.encode import encode_episode
from vla_robot.data.formats.rlds.features import FEATURES_FILE, Features, parse_features, to_tree
from vla_robot.data.formats.rlds.splits import FILE_FORMAT, INFO_FILE, TEMPLATE, parse_info, shard_name
from vla_robot.data.formats.rlds.tfrecord import FOOTER, Record, frame_record, require_crc, walk
from vla_robot.data.formats.storage import LocalFolder

PARTIAL = ".partial"
PLAN = "finish.json"
SHARD_BYTES = 256 * 2**20
"""A shard is closed when it has grown beyond this; TensorFlow Datasets aims at shards of about this size."""


class RldsWriter(Closeable):
    """A writer of one split of a dataset, episode by episode. Use it in a `with` block, or call `close`.

    Attributes:
        folder: folder of the version, with all files.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        features: Features,
        version: str = "1.0.0",
        split: str = "train",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """
        Args:
            root: the dataset's folder; files go to root/version.
            name: the dataset's name.
            features: fields of every episode.
            version: the dataset's version, three numbers with dots.
            split: the split to write; other splits in the folder stay.
            shard_bytes: size beyond which a shard is closed.

        Raises:
            DataError: the folder has the split already or other features, another process writes to it, or writing to
                disk failed.
            MissingDependencyError: the extra [data] is not installed.
        """
        require_crc()
        self.folder = root / version
        self._partial = self.folder / PARTIAL / split
        self._name, self._version, self._split, self._features = name, version, split, features
        self._shard_bytes = shard_bytes
        self._file: BinaryIO | None = None
        self._lengths: list[int] = []
        self._claim = Claim(self.folder)
        try:
            with writing(self.folder):
                self._require_place()
                self._take_up()
        except BaseException:
            self._claim.release()
            raise

    @property
    def num_episodes(self) -> int:
        """Number of written episodes, with those from before a crash."""
        return sum(self._lengths)

    def write(self, episode: Episode) -> None:
        """Append one episode.

        Raises:
            DataError: the episode does not fit the features, or writing to disk failed.
        """
        record = frame_record(encode_episode(episode, self._features))
        with writing(self.folder, self._what_is_safe):
            file = self._open()
            file.write(record)
            file.flush()
        self._lengths[-1] += 1

    def finish(self) -> None:
        """Rename the shards and write their descriptions. No episode can be written afterwards.

        Raises:
            DataError: there is no episode, or writing to disk failed.
        """
        if not self.num_episodes:
            raise DataError(f"no episode was written to {self.folder}.")
        with writing(self.folder, self._what_is_safe):
            self._close_shard()
            write_json(self._partial / PLAN, {"lengths": self._lengths})  # after a crash the next writer renames on
            self._move_shards(self._lengths)

    def close(self) -> None:
        """Stop; opening the same split again continues it. May be called twice.

        Raises:
            DataError: writing to disk failed.
        """
        try:
            with writing(self.folder, self._what_is_safe):
                self._close_shard()
        finally:
            self._claim.release()

    def _close_shard(self) -> None:
        """Close the current shard and sync it to the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                sync_file(file)

    def _what_is_safe(self) -> str:
        return f"Its {self.num_episodes} finished episodes are safe in {self._partial}."

    def _require_place(self) -> None:
        plan = self._partial / PLAN
        if plan.is_file():  # a crash came while the shards were renamed
            self._move_shards(json.loads(plan.read_text())["lengths"])
        if self._split in written_splits(self.folder):
            raise DataError(f"{self.folder} has the split '{self._split}' already. Choose another folder.")
        features = self.folder / FEATURES_FILE
        if features.is_file() and parse_features(json.loads(features.read_text()), str(features)) != self._features:
            raise DataError(f"{features} describes other fields than those to be written. Choose another folder.")

    def _take_up(self) -> None:
        """Count the whole records that exist, and cut off a partial one."""
        make_folder(self._partial)
        storage = LocalFolder(self._partial)
        for number in range(len(storage.files())):
            path = self._part(number)
            size, records, end = path.stat().st_size, 0, 0
            for found in walk(lambda offset, count, p=path: storage.read(p.name, offset, count), size):
                if not isinstance(found, Record):
                    break
                records, end = records + 1, found.offset + len(found.content) + FOOTER.size
            os.truncate(path, end)
            self._lengths.append(records)

    def _open(self) -> BinaryIO:
        """Open the file for the next record."""
        if self._file is not None and self._file.tell() > self._shard_bytes:
            self._close_shard()
            self._lengths.append(0)
        if not self._lengths:
            self._lengths.append(0)
        if self._file is None:
            self._file = self._part(len(self._lengths) - 1).open("ab")
            sync_folder(self._partial)
        return self._file

    def _part(self, number: int) -> Path:
        return self._partial / f"{number:05d}"

    def _move_shards(self, lengths: list[int]) -> None:
        names = [shard_name(self._name, self._split, number, len(lengths)) for number in range(len(lengths))]
        for number, name in enumerate(names):
            if self._part(number).exists():
                rename(self._part(number), self.folder / name)
        num_bytes = sum((self.folder / name).stat().st_size for name in names)
        write_json(self.folder / FEATURES_FILE, to_tree(self._features))
        write_json(self.folder / INFO_FILE, self._info_with(lengths, num_bytes))
        shutil.rmtree(self.folder / PARTIAL / self._split)

    def _info_with(self, lengths: list[int], num_bytes: int) -> dict[str, Any]:
        path = self.folder / INFO_FILE
        info = json.loads(path.read_text()) if path.is_file() else None
        return info_with(info, self._name, self._version, self._split, lengths, num_bytes)


def info_with(
    info: dict[str, Any] | None, name: str, version: str, split: str, lengths: list[int], num_bytes: int
) -> dict[str, Any]:
    """Return the content of a dataset_info.json with one more split.

    Args:
        info: the content so far; None for a new dataset.
        name: the dataset's name.
        version: the dataset's version.
        split: the split's name.
        lengths: number of episodes of each shard.
        num_bytes: size of all shards.
    """
    added = {
        "name": split,
        "filepathTemplate": TEMPLATE,
        "numBytes": str(num_bytes),  # protobuf's JSON writes 64-bit numbers as strings
        "shardLengths": [str(length) for length in lengths],
    }
    new = {"name": name, "version": version, "fileFormat": FILE_FORMAT, "moduleName": "vla_robot", "splits": []}
    there = info or new
    return there | {"splits": [*there["splits"], added]}


def written_splits(folder: Path) -> dict[str, int]:
    """Return finished split of a version's folder -> number of its episodes."""
    path = folder / INFO_FILE
    if not path.is_file():
        return {}
    return {name: split.num_episodes for name, split in parse_info(read_json(path), str(path)).splits.items()}
