"""Cuts the first records of datasets that TensorFlow Datasets wrote into tests/golden/rlds_samples, bytes unchanged.

    python tests/tools/cut_rlds_samples.py FOLDER tests/golden/rlds_samples

FOLDER holds NAME/VERSION/{dataset_info.json, features.json, shards} and NAME/expected.npz, what TensorFlow reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from vla_robot.data.formats.rlds.splits import parse_info
from vla_robot.data.formats.rlds.tfrecord import Record, frame_record, walk
from vla_robot.data.formats.storage import LocalFolder

RECORDS_PER_SHARD = 1


def cut(source: Path, destination: Path) -> None:
    """One dataset: of each shard, the first record."""
    destination.mkdir(parents=True)
    content = json.loads((source / "dataset_info.json").read_text())
    info = parse_info(content, str(source))
    kept: dict[str, list[int]] = {}
    for split in info.splits.values():
        before = np.cumsum([0, *split.lengths])
        for shard, first in zip(split.shards, before, strict=False):
            size = (source / shard).stat().st_size
            folder = LocalFolder(source)
            records = walk(lambda offset, count, f=folder, s=shard: f.read(s, offset, count), size)
            chosen = [r for r, _ in zip(records, range(RECORDS_PER_SHARD), strict=False) if isinstance(r, Record)]
            (destination / shard).write_bytes(b"".join(frame_record(record.content) for record in chosen))
            kept.setdefault(split.name, []).extend(int(first) + record.number for record in chosen)
    for split in content["splits"]:
        split["shardLengths"] = [str(RECORDS_PER_SHARD)] * len(split["shardLengths"])
        split["numBytes"] = str(sum((destination / s).stat().st_size for s in info.splits[split["name"]].shards))
    (destination / "dataset_info.json").write_text(json.dumps(content, indent=2) + "\n")
    (destination / "features.json").write_bytes((source / "features.json").read_bytes())
    _cut_expected(source.parent / "expected.npz", destination.parent / "expected.npz", kept)


def _cut_expected(source: Path, destination: Path, kept: dict[str, list[int]]) -> None:
    """Episodes are numbered anew, in order."""
    chosen: dict[str, np.ndarray] = {}
    with np.load(source) as expected:
        for key in expected.files:
            split, number, field = key.split("/", 2)
            if int(number) in kept[split]:
                chosen[f"{split}/{kept[split].index(int(number)):03d}/{field}"] = expected[key]
    np.savez_compressed(destination, **chosen)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    for info_file in sorted(Path(sys.argv[1]).glob("*/*/dataset_info.json")):
        cut(info_file.parent, Path(sys.argv[2]) / info_file.parent.relative_to(sys.argv[1]))
