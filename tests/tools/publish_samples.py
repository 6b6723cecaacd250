"""Gives the golden RLDS samples the structure that their datasets are published in.

    python tests/tools/publish_samples.py tests/golden/rlds_samples

The samples were recorded with fewer fields. What the published structure has beside them is added with invented values
(tests/tools/publish_rlds.py), behind the bytes that are there, and features.json is written anew; a field that is there
stays as it is, and so does the size of the frames, which is the records' own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from publish_rlds import STEPS, Field, feature, features_tree, framed, invent_field, message, schemas

from vla_robot.data.formats.rlds.example import count, places
from vla_robot.data.formats.rlds.features import Leaf, parse_features
from vla_robot.data.formats.rlds.splits import parse_info
from vla_robot.data.formats.rlds.tfrecord import Record, walk
from vla_robot.data.formats.storage import LocalFolder

SIZE = [112, 112, 3]
"""Of the samples' frames: height, width, channels."""


def publish(folder: Path, fields: dict[str, Field]) -> None:
    """One dataset's version folder."""
    described = parse_features(json.loads((folder / "features.json").read_text()), str(folder))
    there: dict[str, Leaf] = {leaf.path: leaf for leaf in (*described.steps.values(), *described.episode.values())}
    if unknown := there.keys() - fields.keys():
        sys.exit(f"{folder} has fields that are not published: {', '.join(sorted(unknown))}")
    sized = {path: {**field, "shape": SIZE} if field["class"] == "Image" else field for path, field in fields.items()}
    rng = np.random.default_rng(0)
    info_file = folder / "dataset_info.json"
    content = json.loads(info_file.read_text())
    for split in content["splits"]:
        for shard in parse_info(content, str(info_file)).splits[split["name"]].shards:
            records = [completed(record, sized, number, rng) for number, record in enumerate(read(folder, shard))]
            (folder / shard).write_bytes(b"".join(map(framed, records)))
        sizes = [(folder / shard).stat().st_size for shard in parse_info(content, "").splits[split["name"]].shards]
        split["numBytes"] = str(sum(sizes))
    info_file.write_text(json.dumps(content, indent=2) + "\n")
    (folder / "features.json").write_text(json.dumps(features_tree(sized), indent=2) + "\n")


def read(folder: Path, shard: str) -> list[bytes]:
    storage = LocalFolder(folder)
    found = walk(lambda offset, size: storage.read(shard, offset, size), (folder / shard).stat().st_size)
    return [record.content for record in found if isinstance(record, Record)]


def completed(record: bytes, fields: dict[str, Field], number: int, rng: np.random.Generator) -> bytes:
    """The record with the fields that it lacks; two messages behind one another are one with the entries of both."""
    lists = places(record)
    steps = count(record, lists[STEPS + "is_first"])
    entries = b""
    for path, field in fields.items():
        if path not in lists:
            values: Any = invent_field(path, field, steps if path.startswith(STEPS) else 1, number, rng)
            entries += message(1, message(1, path.encode()) + message(2, feature(field, values)))
    return record + message(1, entries) if entries else record


if __name__ == "__main__":
    for dataset in sorted(Path(sys.argv[1]).glob("*/*.*.*")):
        publish(dataset, schemas()[dataset.parent.name]["features"])
