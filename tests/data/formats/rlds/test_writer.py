"""Tests of writing RLDS: round trips, crashes, and reading by TensorFlow Datasets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.episode import Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.data.formats.rlds.features import Features, Leaf
from vla_robot.data.formats.rlds.reader import RldsDataset, open_rlds
from vla_robot.data.formats.rlds.writer import PARTIAL, RldsWriter
from vla_robot.data.formats.source import EncodedFrames

CopySample = Callable[[str], Path]


def write(root: Path, source: RldsDataset, **options: Any) -> None:
    with RldsWriter(root, "mine", source.features, **options) as writer:
        for index in range(writer.num_episodes, len(source)):
            writer.write(source.episode(index))
        writer.finish()


def require_equal(ours: RldsDataset, theirs: RldsDataset) -> None:
    assert ours.fields == theirs.fields
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for index in range(len(theirs)):
        there, here = theirs.episode(index), ours.episode(index)
        assert here.metadata == there.metadata
        for name, column in there.steps.items():
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(here.steps[name], column, strict=True)
            elif isinstance(column, EncodedFrames):
                assert here.frames(name).encoded(0) == column.encoded(0)
            else:
                assert here.steps[name] == column


def test_what_was_read_is_written_back(sample: Path, tmp_path: Path) -> None:
    source = open_rlds(sample)
    write(tmp_path / "out", source)
    require_equal(open_rlds(tmp_path / "out"), source)
    assert not list((tmp_path / "out").rglob(f"{PARTIAL}/*"))


def test_splits_are_written_one_after_another(copy_sample: CopySample, tmp_path: Path) -> None:
    sample = copy_sample("bridge_orig")
    for split in ("train", "val"):
        write(tmp_path / "out", open_rlds(sample, split), split=split)
    require_equal(open_rlds(tmp_path / "out", "val"), open_rlds(sample, "val"))
    assert open_rlds(tmp_path / "out").splits == {"train": 2, "val": 2}
    with pytest.raises(DataError, match=r"has the split 'val' already"):
        RldsWriter(tmp_path / "out", "mine", open_rlds(sample).features, split="val")


def test_a_shard_that_is_full_is_followed_by_another(copy_sample: CopySample, tmp_path: Path) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    write(tmp_path / "out", source, shard_bytes=1)
    names = sorted(path.name for path in (tmp_path / "out" / "1.0.0").glob("mine-*"))
    assert names == [f"mine-train.tfrecord-0000{n}-of-00004" for n in range(4)]
    require_equal(open_rlds(tmp_path / "out"), source)


@pytest.mark.parametrize("torn", [0, 1, 1000])
def test_writing_continues_after_a_crash(copy_sample: CopySample, tmp_path: Path, torn: int) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    with RldsWriter(tmp_path / "out", "mine", source.features) as writer:
        writer.write(source.episode(0))
        writer.write(source.episode(1))
    part = tmp_path / "out" / "1.0.0" / PARTIAL / "train" / "00000"
    os.truncate(part, part.stat().st_size - torn)
    with RldsWriter(tmp_path / "out", "mine", source.features) as writer:
        assert writer.num_episodes == (1 if torn else 2)
    write(tmp_path / "out", source)
    require_equal(open_rlds(tmp_path / "out"), source)


def test_after_a_crash_while_shards_are_renamed_the_next_writer_renames_the_rest(
    copy_sample: CopySample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    rename, moved = os.replace, []

    def crash_at_the_second(old: Path, new: Path) -> None:
        if ".tfrecord" in str(new):
            moved.append(new)
            if len(moved) == 2:
                raise OSError(5, "the power is gone")
        rename(old, new)

    monkeypatch.setattr(os, "replace", crash_at_the_second)
    with pytest.raises(DataError, match=r"the power is gone"):
        write(tmp_path / "out", source, shard_bytes=1)
    with pytest.raises(DataError, match=r"has the split 'train' already"):
        RldsWriter(tmp_path / "out", "mine", source.features)
    require_equal(open_rlds(tmp_path / "out"), source)


def test_a_dataset_has_one_writer(copy_sample: CopySample, tmp_path: Path) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    with RldsWriter(tmp_path / "out", "mine", source.features) as writer:
        for split in ("train", "val"):
            with pytest.raises(DataError, match=rf"out/1\.0\.0 is being written by process {os.getpid()} "):
                RldsWriter(tmp_path / "out", "mine", source.features, split=split)
        writer.write(source.episode(0))
        writer.finish()
    assert open_rlds(tmp_path / "out").splits == {"train": 1}


def test_a_finished_split_survives_a_power_cut(copy_sample: CopySample, tmp_path: Path, power_cut: Any) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    write(tmp_path / "out", source, shard_bytes=1)
    survivors = {name: content for name, content in power_cut.survivors(tmp_path).items() if name.startswith("out/")}
    for name, content in survivors.items():
        (tmp_path / "after" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "after" / name).write_bytes(content)
    require_equal(open_rlds(tmp_path / "after" / "out"), source)


def test_a_full_disk_keeps_the_episodes_before_and_writing_goes_on(
    copy_sample: CopySample, small_disk: Callable[[int], Path]
) -> None:
    source = open_rlds(copy_sample("bridge_orig"), "all")
    disk = small_disk(700)
    with pytest.raises(DataError, match=r"No space left on device\. Its [1-9]\d* finished episodes are safe in .*Make"):
        write(disk / "out", source, shard_bytes=1)
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    write(disk / "out", source, shard_bytes=1)
    require_equal(open_rlds(disk / "out"), source)


def leaf(name: str, kind: Any, dtype: str, *shape: int | None, sequences: int = 1, encoding: str = "none") -> Leaf:
    return Leaf(f"steps/{name}", Field(name, kind, dtype, shape), sequences, encoding)


UNUSUAL = {
    "boxes": leaf("boxes", "number", "float32", None, 2, sequences=2),
    "words": leaf("words", "text", "str", None, sequences=2),
    "map": leaf("map", "number", "float64", 2, 3, encoding="zlib"),
    "grid": leaf("grid", "number", "int32", None, None, encoding="bytes"),
    "big": leaf("big", "number", "uint64"),
    "blob": leaf("blob", "text", "bytes"),
}


def unusual_episode() -> Episode:
    steps: dict[str, Any] = {
        "boxes": (np.ones((1, 2), np.float32), np.zeros((0, 2), np.float32)),
        "words": (("a", "bü"), ()),
        "map": np.arange(12.0).reshape(2, 2, 3),
        "grid": (np.ones((1, 2), np.int32), np.ones((2, 1), np.int32)),
        "big": np.array([2**64 - 1, 0], np.uint64),
        "blob": (b"\xff\x00", b""),
    }
    return Episode(0, {}, steps, 2, "made up")


def test_unusual_fields_survive(tmp_path: Path) -> None:
    with RldsWriter(tmp_path / "out", "mine", Features(UNUSUAL, {})) as writer:
        writer.write(unusual_episode())
        writer.finish()
    dataset = open_rlds(tmp_path / "out")
    assert dict(dataset.features.steps) == UNUSUAL
    got, expected = dataset.episode(0).steps, unusual_episode().steps
    for name in ("map", "big"):
        np.testing.assert_array_equal(got[name], expected[name], strict=True)
    for name in ("boxes", "grid"):
        for ours, theirs in zip(got[name], expected[name], strict=True):  # type: ignore[arg-type]
            np.testing.assert_array_equal(ours, theirs, strict=True)
    assert (got["words"], got["blob"]) == (expected["words"], expected["blob"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"big": np.array([1, 2])}, r"made up: field 'big' is int64 \(\), expected uint64 \(\)"),
        ({"big": np.zeros((2, 3), np.uint64)}, r"field 'big' is uint64 \(3,\), expected uint64 \(\)"),
        ({"blob": (b"",)}, r"field 'blob' has 1 values, the episode 2"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    episode = unusual_episode()
    with RldsWriter(tmp_path / "out", "mine", Features(UNUSUAL, {})) as writer:
        with pytest.raises(DataError, match=message):
            writer.write(replace(episode, steps={**episode.steps, **change}))
        without = {name: column for name, column in episode.steps.items() if name != "map"}
        with pytest.raises(DataError, match=r"field 'map' is missing. Available: big, blob"):
            writer.write(replace(episode, steps=without))
        with pytest.raises(DataError, match=r"no episode was written"):
            writer.finish()


def test_other_fields_are_not_added_to_a_dataset(copy_sample: CopySample, tmp_path: Path) -> None:
    write(tmp_path / "out", open_rlds(copy_sample("bridge_orig")))
    with pytest.raises(DataError, match=r"features.json describes other fields than those to be written"):
        RldsWriter(tmp_path / "out", "mine", Features(UNUSUAL, {}), split="val")


@pytest.mark.slow
@pytest.mark.skipif("VLA_TFDS_PYTHON" not in os.environ, reason="VLA_TFDS_PYTHON names no Python that has TFDS")
def test_tensorflow_datasets_reads_it_back(copy_sample: CopySample, tmp_path: Path, repository: Path) -> None:
    sample = copy_sample("fractal20220817_data")
    write(tmp_path / "out", open_rlds(sample))
    with RldsWriter(tmp_path / "odd", "odd", Features(UNUSUAL, {})) as writer:
        writer.write(unusual_episode())
        writer.finish()
    folders = [str(next(f.glob("*/features.json")).parent) for f in (sample, tmp_path / "out", tmp_path / "odd")]
    script = repository / "tests" / "tools" / "read_with_tfds.py"
    command = [os.environ["VLA_TFDS_PYTHON"], str(script), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    there, here, odd = json.loads(done.stdout.splitlines()[-1])
    assert here == there
    assert (odd["episodes"], odd["steps"], len(odd["fields"])) == (1, 2, len(UNUSUAL))
