"""Converts any source to RLDS by tasks, each of which writes one whole shard, to a folder or to a URL of fsspec.

    conversion.json                         first: what is converted; another source is refused
    NAME-SPLIT.tfrecord-00007-of-00042      by one task each; appears when it is whole
    features.json, dataset_info.json        last: without them it is no dataset

The cuts depend on the source only, so that the number of shards is known before the first is written. The same command
writes the shards that are missing. A shard holds the same records as one that a single process writes; the cuts differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

from vla_robot.core.episode import OnProgress
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource, TaskRunner
from vla_robot.core.ports.tasks import Resources, ShouldStop
from vla_robot.core.untrusted import MAX_JSON_BYTES, parse_json
from vla_robot.data.formats.conversion_metadata import FILE, Converted, Options, begin_in, require_episodes
from vla_robot.data.formats.pieces import Piece, pieces_of
from vla_robot.data.formats.rlds.convert import VERSION, RldsConversion
from vla_robot.data.formats.rlds.encode import encode_episode
from vla_robot.data.formats.rlds.features import FEATURES_FILE, to_tree
from vla_robot.data.formats.rlds.splits import INFO_FILE, parse_info, shard_name
from vla_robot.data.formats.rlds.tfrecord import frame_record, require_crc
from vla_robot.data.formats.rlds.writer import PARTIAL, SHARD_BYTES, info_with
from vla_robot.data.formats.storage import Storage, open_storage

NEEDS = Resources(cpus=1.0, memory_mb=1000)
"""What writing a shard takes: one episode, decoded and encoded."""


def to_rlds_shards(
    source: EpisodeSource,
    destination: str,
    options: Options,
    runner: TaskRunner,
    on_progress: OnProgress = lambda done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:
    """Convert one split to RLDS by tasks, or continue its conversion.

    Args:
        source: the dataset.
        destination: path or URL of the new dataset's folder.
        options: values that the source does not give.
        runner: where the tasks run; they see the source's and the destination's paths, as on a shared disk, or URLs.
        on_progress: called with episodes done and in all.
        shard_bytes: about the largest size of a shard.

    Raises:
        DataError: the folder holds another dataset, the source lacks a value, or writing failed.
    """
    require_crc()
    require_episodes(source, options.split)
    plan = RldsConversion.of(source, options)
    root = open_storage(destination)
    name = options.name or root.location.rstrip("/").rpartition("/")[2]
    folder = root.inside(VERSION)
    begin_in(folder, FILE, plan.origin)
    info = _info(folder)
    if info is not None and plan.split in parse_info(info, f"{folder.location}/{INFO_FILE}").splits:
        return Converted(len(source), 0, plan.lost)
    _require_not_partial(folder, plan.split)
    pieces = pieces_of(source, _steps_of(source, plan, shard_bytes))
    shards = [shard_name(name, plan.split, number, len(pieces)) for number in range(len(pieces))]
    new = _write_missing(plan, folder, shards, pieces, runner, on_progress)
    _finish(plan, folder, name, info, shards, pieces)
    return Converted(len(source), new, plan.lost)


def _steps_of(source: EpisodeSource, plan: RldsConversion, shard_bytes: int) -> int:
    """Return about how many steps a shard holds, judged by the first episode."""
    record = encode_episode(plan.episode(source, 0), plan.features)
    return max(1, shard_bytes * int(source.lengths[0]) // max(len(record), 1))


def _write_missing(
    plan: RldsConversion,
    folder: Storage,
    shards: Sequence[str],
    pieces: Sequence[Piece],
    runner: TaskRunner,
    on_progress: OnProgress,
) -> int:
    """Write the shards that are not there; return the number of their episodes."""
    there = folder.files()
    jobs = [(shard, piece) for shard, piece in zip(shards, pieces, strict=True) if shard not in there]
    total, missing, new = sum(map(len, pieces)), sum(len(piece) for _, piece in jobs), 0
    if not jobs:
        return 0
    count = min(len(jobs), runner.most_workers(NEEDS))
    with (
        runner.workers(nullcontext, count, NEEDS) as workers,
        closing(workers.run(WriteShard(plan, folder), jobs)) as written,
    ):
        for episodes in written:
            new += episodes
            on_progress(total - missing + new, total)
    return new


@dataclass(frozen=True)
class WriteShard:
    """A task: writes one shard, one episode after the other."""

    plan: RldsConversion
    folder: Storage

    def __call__(self, state: None, job: tuple[str, Piece], should_stop: ShouldStop) -> int:
        """Return the number of episodes of the shard."""
        shard, piece = job
        with self.folder.writing(shard) as file:
            for _, index in piece.episodes():
                file.write(frame_record(encode_episode(self.plan.episode(piece.source, index), self.plan.features)))
        return len(piece)


def _finish(
    plan: RldsConversion,
    folder: Storage,
    name: str,
    info: dict[str, Any] | None,
    shards: Sequence[str],
    pieces: Sequence[Piece],
) -> None:
    files = folder.files()
    missing = [shard for shard in shards if shard not in files]
    if missing:
        raise DataError(f"{folder.location}: {len(missing)} shards disappeared, first {missing[0]}. Run this again.")
    num_bytes = sum(files[shard].size for shard in shards)
    lengths = [len(piece) for piece in pieces]
    _write_json(folder, FEATURES_FILE, to_tree(plan.features))
    _write_json(folder, INFO_FILE, info_with(info, name, VERSION, plan.split, lengths, num_bytes))


def _info(folder: Storage) -> dict[str, Any] | None:
    if INFO_FILE not in folder.files():
        return None
    where = f"{folder.location}/{INFO_FILE}"
    return parse_json(folder.read(INFO_FILE, size=MAX_JSON_BYTES + 1), where)


def _require_not_partial(folder: Storage, split: str) -> None:
    if folder.local is not None and (folder.local / PARTIAL / split).is_dir():
        raise DataError(
            f"{folder.location} holds a conversion without --cluster that was interrupted. Continue it without "
            "--cluster, or choose another folder."
        )


def _write_json(folder: Storage, name: str, content: Any) -> None:
    with folder.writing(name) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
