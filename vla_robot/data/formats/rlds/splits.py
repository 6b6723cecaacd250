"""Reads dataset_info.json, with the splits and shards of a dataset, and expressions such as "train[:95%]".

The syntax is that of TensorFlow Datasets: "train", "val[10:20]", "train[:10%]", "train[90%:]+val", and "all".

Source: tensorflow/datasets 4.9.10, core/splits.py (percentages are rounded to the closest episode), core/naming.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_robot.core.errors import DataError, unknown
from vla_robot.core.untrusted import malformed, require_name

INFO_FILE = "dataset_info.json"
FILE_FORMAT = "tfrecord"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
ALL = "all"
MAX_EPISODES = 2**31 - 1
"""Largest number of episodes in one shard."""
PART = re.compile(r"(?P<name>[^\[\]+]+)(?:\[(?P<start>-?\d{1,18}%?)?:(?P<stop>-?\d{1,18}%?)?\])?")


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
        name: e.g. "train".
        shards: file names in order.
        lengths: number of episodes in each shard.
        lacks_lengths: whether dataset_info.json lacks the shards' lengths although the split has content.
    """

    name: str
    shards: tuple[str, ...]
    lengths: tuple[int, ...]
    lacks_lengths: bool = False

    @property
    def num_episodes(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class DatasetInfo:
    """The content of dataset_info.json.

    Attributes:
        name: the dataset's name.
        version: the dataset's version, e.g. "1.0.0".
        splits: the splits, by name.
    """

    name: str
    version: str
    splits: Mapping[str, Split]


@dataclass(frozen=True)
class Part:
    """Episodes [start, stop) of a split."""

    split: str
    start: int
    stop: int


def parse_info(content: Any, where: str) -> DatasetInfo:
    """Return the content of a dataset_info.json.

    Raises:
        DataError: a value is missing or malformed, a name could leave the folder, or the shards are no TFRecords.
    """
    with malformed(where):
        name, form = require_name(content["name"], "the dataset", where), str(content.get("fileFormat", FILE_FORMAT))
        if form != FILE_FORMAT:
            raise DataError(f"{where}: fileFormat is '{form}'; only '{FILE_FORMAT}' is read.")
        splits = [_split(name, split, where) for split in content["splits"]]
        version = require_name(content["version"], "the version", where)
        return DatasetInfo(name, version, {split.name: split for split in splits})


def parse_parts(expression: str, splits: Mapping[str, Split], where: str) -> list[Part]:
    """Return the parts of splits that an expression names, in its order.

    Raises:
        DataError: the expression is malformed, or names a split that does not exist or has no shard lengths.
    """
    parts = [piece for text in expression.split("+") for piece in _part(text.strip(), splits, where)]
    for part in parts:
        _require_lengths(splits[part.split], where)
    return parts


def _require_lengths(split: Split, where: str) -> None:
    if split.lacks_lengths:
        raise DataError(
            f"{where}: split '{split.name}' has no shardLengths, so its shards and episodes are not known. Fetch "
            f"{INFO_FILE} again from where the dataset came from. If it is like that there, TensorFlow Datasets counts "
            "the episodes and writes the file anew: tfds.folder_dataset.write_metadata(data_dir=FOLDER, "
            "features=tfds.features.FeatureConnector.from_config(FOLDER))."
        )


def shard_name(dataset: str, split: str, number: int, count: int, template: str = TEMPLATE) -> str:
    """Return the file name of a shard."""
    words = {
        "DATASET": dataset,
        "SPLIT": split,
        "FILEFORMAT": FILE_FORMAT,
        "SHARD_INDEX": f"{number:05d}",
        "NUM_SHARDS": f"{count:05d}",
        "SHARD_X_OF_Y": f"{number:05d}-of-{count:05d}",
    }
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], template)


def _split(dataset: str, content: Mapping[str, Any], where: str) -> Split:
    name = require_name(content["name"], "a split", where)
    lengths = tuple(int(length) for length in content.get("shardLengths", []))
    if not all(0 <= length <= MAX_EPISODES for length in lengths):
        raise DataError(f"{where}: the shardLengths of split '{name}' are not all numbers from 0 to {MAX_EPISODES}.")
    template = str(content.get("filepathTemplate") or TEMPLATE)
    shards = [shard_name(dataset, name, number, len(lengths), template) for number in range(len(lengths))]
    names = tuple(require_name(shard, "a shard", where) for shard in shards)
    counts = content | content.get("statistics", {})  # older versions of TensorFlow Datasets count there
    has_content = any(int(counts.get(key) or 0) for key in ("numBytes", "numShards", "numExamples"))
    return Split(name, names, lengths, lacks_lengths=not lengths and has_content)


def _part(text: str, splits: Mapping[str, Split], where: str) -> list[Part]:
    match = PART.fullmatch(text)
    if match is None:
        raise DataError(f"'{text}' is no split. Write 'train', 'train[:95%]', 'val[10:20]', 'train+val' or 'all'.")
    name = match["name"]
    if name != ALL and name not in splits:
        raise DataError(f"{where}: " + unknown("split", name, [*splits, ALL]))
    chosen = list(splits) if name == ALL else [name]
    return [_slice(splits[split], match["start"], match["stop"]) for split in chosen]


def _slice(split: Split, start: str | None, stop: str | None) -> Part:
    first = 0 if start is None else _absolute(start, split.num_episodes)
    last = split.num_episodes if stop is None else _absolute(stop, split.num_episodes)
    return Part(split.name, first, max(first, last))


def _absolute(boundary: str, count: int) -> int:
    """Return a boundary as a number in 0..count; a negative one counts from the end."""
    value = round(int(boundary[:-1]) * count / 100) if boundary.endswith("%") else int(boundary)
    return min(max(value + count if value < 0 else value, 0), count)
