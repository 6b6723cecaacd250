"""Tests of reading datasets of TensorFlow Datasets, and of refusing damaged ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.rlds.example import encode
from vla_robot.data.formats.rlds.reader import RldsDataset, open_rlds
from vla_robot.data.formats.rlds.tfrecord import frame_record

CopySample = Callable[[str], Path]

MEAN_GREY_LEVELS = 3.0
"""How far two JPEG decoders may be apart on average."""


def version_folder(sample: Path) -> Path:
    return next(path for path in sample.iterdir() if path.is_dir())


def shard_of(sample: Path, pattern: str = "*tfrecord*") -> Path:
    return sorted(version_folder(sample).glob(pattern))[0]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def read_all(dataset: RldsDataset) -> None:
    for index in range(len(dataset)):
        dataset.episode(index)


def test_every_field_is_what_tensorflow_reads(sample: Path) -> None:
    with np.load(sample / "expected.npz") as expected:
        datasets = {split: open_rlds(sample, split) for split in {key.split("/")[0] for key in expected.files}}
        assert {split: len(dataset) for split, dataset in datasets.items()} == dict(
            next(iter(datasets.values())).splits
        )
        for key in expected.files:
            split, number, field = key.split("/", 2)
            episode = datasets[split].episode(int(number))
            if field == "instruction":
                assert set(episode.instructions()) == {str(expected[key])}
            elif field.startswith("first_frame/"):
                camera = field.replace("first_frame", "observation")
                frame = episode.frames(camera).decode(0)
                difference = np.abs(frame.astype(int) - expected[key])
                is_png = datasets[split].features.steps[camera].encoding == "png"
                assert difference.max() == 0 if is_png else difference.mean() < MEAN_GREY_LEVELS
            else:
                np.testing.assert_array_equal(episode.numbers(field), expected[key], strict=True)


def test_a_frame_comes_alone_as_it_comes_with_its_episode(sample: Path) -> None:
    dataset = open_rlds(sample, "all")
    for index in range(len(dataset)):
        for camera in dataset.features.cameras:
            frames = dataset.episode(index, [camera]).frames(camera)
            assert [dataset.encoded(index, camera, t) for t in range(len(frames))] == [
                frames.encoded(t) for t in range(len(frames))
            ]


def test_an_episode_knows_its_metadata_and_only_the_fields_that_were_asked_for(copy_sample: CopySample) -> None:
    episode = open_rlds(copy_sample("bridge_orig")).episode(0, ["action"])
    assert list(episode.steps) == ["action"]
    assert episode.metadata["episode_metadata/has_language"].dtype == np.bool_
    assert isinstance(episode.metadata["episode_metadata/file_path"], str)


def test_a_field_with_two_dimensions_keeps_them(copy_sample: CopySample) -> None:
    episode = open_rlds(copy_sample("fractal20220817_data")).episode(0)
    assert episode.numbers("observation/orientation_box").shape == (len(episode), 2, 3)
    assert episode.numbers("observation/workspace_bounds").shape == (len(episode), 3, 3)


def test_a_part_holds_the_episodes_that_it_names(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    whole = open_rlds(sample, "all")
    halves = open_rlds(sample, "train[:50%]+train[50%:]+val")
    assert halves.lengths.tolist() == whole.lengths.tolist()
    np.testing.assert_array_equal(
        open_rlds(sample, "val[-1:]").episode(0).numbers("action"), whole.episode(len(whole) - 1).numbers("action")
    )


@pytest.mark.parametrize("piece_bytes", [1, 1000, 2**24])
def test_a_dataset_opens_at_an_fsspec_url(
    copy_sample: CopySample, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr("vla_robot.data.formats.rlds.index.PIECE_BYTES", piece_bytes)
    fsspec = pytest.importorskip("fsspec")
    sample = copy_sample("bridge_orig")
    memory = fsspec.filesystem("memory")
    memory.put(str(version_folder(sample)), "/remote/bridge_orig/1.0.0", recursive=True)
    there, here = open_rlds("memory://remote/bridge_orig"), open_rlds(f"file://{sample}")
    assert there.location == "memory://remote/bridge_orig/1.0.0"
    for number in range(len(here)):
        np.testing.assert_array_equal(there.episode(number).numbers("action"), here.episode(number).numbers("action"))
        assert there.encoded(number, "observation/image_0", 1) == here.encoded(number, "observation/image_0", 1)


def test_an_unknown_kind_of_url_is_a_users_error() -> None:
    with pytest.raises(DataError, match=r"nowhere://x cannot be opened"):
        open_rlds("nowhere://x")


def test_a_store_whose_package_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def refuse(url: str) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(MissingDependencyError, match=r"gs://x cannot be opened: Please install gcsfs"):
        open_rlds("gs://x")


def test_the_newest_version_is_taken(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    old = version_folder(sample)
    shutil.copytree(old, sample / "1.10.0")
    shutil.copytree(old, sample / "1.9.0")
    dataset = open_rlds(sample)
    assert dataset.location.endswith("1.10.0")
    assert dataset.notes == (f"{sample} holds several versions: 1.10.0 is read, not 1.9.0, 1.0.0.",)
    assert open_rlds(old).location == str(old)
    assert open_rlds(old).notes == ()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: next(folder.glob("*val*")).unlink(), "1 of 4 shards are missing"),
        (lambda folder: (folder / "features.json").unlink(), "without features.json"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "without dataset_info.json"),
        (lambda folder: (folder / "dataset_info.json").write_text("{"), "dataset_info.json is not valid JSON"),
    ],
)
def test_of_two_versions_the_newest_whole_one_is_taken(
    copy_sample: CopySample, spoil: Callable[[Path], None], why: str
) -> None:
    sample = copy_sample("bridge_orig")
    shutil.copytree(version_folder(sample), sample / "2.0.0")
    spoil(sample / "2.0.0")
    dataset = open_source(sample)
    assert isinstance(dataset, RldsDataset) and dataset.location.endswith("1.0.0")
    (note,) = dataset.notes
    assert note.startswith(f"{sample} holds several versions: 1.0.0 is read, not 2.0.0 ({why}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same(copy_sample: CopySample, method: str) -> None:
    dataset = open_rlds(copy_sample("bridge_orig"))
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        there = pool.submit(dataset.episode, 1, ["action"]).result()
    np.testing.assert_array_equal(there.numbers("action"), dataset.episode(1).numbers("action"))
    assert len(pickle.dumps(dataset)) < 1000  # only the arguments for opening it


# -- the index -------------------------------------------------------------------------------------


def index_file(sample: Path) -> Path:
    return version_folder(sample) / ".vla_index" / "train.index"


def test_the_index_is_made_once(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    read: list[tuple[int, int]] = []
    open_rlds(sample, on_progress=lambda done, total: read.append((done, total)))
    assert read == [(1, 2), (2, 2)]
    made = index_file(sample).stat().st_mtime_ns
    open_rlds(sample, on_progress=lambda done, total: read.append((done, total)))
    assert len(read) == 2
    assert index_file(sample).stat().st_mtime_ns == made


def test_only_a_shard_that_changed_is_read_again(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    open_rlds(sample)
    first, second = sorted(version_folder(sample).glob("*train*"))
    shutil.copyfile(first, second)
    read: list[tuple[int, int]] = []
    dataset = open_rlds(sample, on_progress=lambda done, total: read.append((done, total)))
    assert read == [(1, 1)]
    np.testing.assert_array_equal(dataset.episode(0).numbers("action"), dataset.episode(1).numbers("action"))
    assert dataset.encoded(0, "observation/image_0", 2) == dataset.encoded(1, "observation/image_0", 2)


def test_an_index_that_is_damaged_is_made_again(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    open_rlds(sample)
    index_file(sample).write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    read_all(open_rlds(sample))


def test_data_that_cannot_be_written_has_its_index_in_the_cache(
    copy_sample: CopySample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = copy_sample("bridge_orig")
    monkeypatch.setattr(os, "access", lambda *_: False)
    open_rlds(sample)
    assert not index_file(sample).exists()
    assert len(list((tmp_path / "cache").rglob("train.index"))) == 1


def test_no_frame_is_held_in_memory_by_the_index(copy_sample: CopySample) -> None:
    dataset = open_rlds(copy_sample("bridge_orig"))
    assert isinstance(dataset._indices[0].frames, np.memmap)


# -- damage ----------------------------------------------------------------------------------------


def test_a_flipped_byte_is_reported_with_shard_record_and_offset(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard = shard_of(sample, "*train*")
    flip(shard, 5000)
    with pytest.raises(DataError, match=rf"{shard.name}, record 0 at byte 0: the checksum of its content is wrong"):
        open_rlds(sample)
    dataset = open_rlds(sample, skip_corrupt=True)
    assert (len(dataset), dataset.num_skipped) == (1, 1)
    read_all(dataset)


def test_a_truncated_shard_is_reported_and_the_rest_is_read(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard = shard_of(sample, "*train*")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{shard.name}, record 0 at byte 0: the file ends 100 bytes before"):
        open_rlds(sample)
    assert open_rlds(sample, skip_corrupt=True).num_skipped == 1


def test_a_damaged_length_loses_the_rest_of_its_shard(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard = shard_of(sample, "*train*")
    shard.write_bytes(shard.read_bytes() * 3)
    info_file = version_folder(sample) / "dataset_info.json"
    info_file.write_text(info_file.read_text().replace('"1"', '"3"', 1))
    assert len(open_rlds(sample)) == 4
    flip(shard, 0)
    with pytest.raises(
        DataError, match=r"the checksum of its length is wrong; 2 more are lost, since the records after"
    ):
        open_rlds(sample)
    dataset = open_rlds(sample, skip_corrupt=True)
    assert (len(dataset), dataset.num_skipped) == (1, 3)


def test_a_shard_cut_between_records_is_reported(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard_of(sample, "*train*").write_bytes(b"")
    with pytest.raises(DataError, match=r"the shard holds 0 records, but dataset_info.json says 1"):
        open_rlds(sample)


def test_boundaries_do_not_move_when_a_record_is_skipped(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    whole = open_rlds(sample).episode(1).numbers("action")
    flip(shard_of(sample, "*train*"), 5000)
    np.testing.assert_array_equal(open_rlds(sample, "train[1:]", skip_corrupt=True).episode(0).numbers("action"), whole)
    assert len(open_rlds(sample, "train[:1]", skip_corrupt=True)) == 0


def test_damage_after_the_index_was_made_is_reported_too(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    dataset = open_rlds(sample)
    flip(shard_of(sample, "*train*"), 5000)
    with pytest.raises(DataError, match=r"record 0 at byte \d+: the checksum of its content is wrong, and was right"):
        dataset.episode(0)


def test_a_frame_that_is_no_image_names_its_step(copy_sample: CopySample) -> None:
    frames = open_rlds(copy_sample("bridge_orig")).episode(0).frames("observation/image_0")
    broken = type(frames)(files=[b"nothing"], field=frames.field, where=frames.where)  # type: ignore[call-arg]
    with pytest.raises(
        DataError, match=r"record 0 at byte \d+, field 'observation/image_0', step 0: the frame is no JPEG"
    ):
        broken.decode(0)


# -- mistakes of a user -----------------------------------------------------------------------------


def test_a_missing_shard_is_named(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard = shard_of(sample, "*train*")
    shard.unlink()
    with pytest.raises(DataError, match=rf"1 of 2 shards of split 'train' are missing, first {shard.name}"):
        open_rlds(sample)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_missing_description_is_named(copy_sample: CopySample, name: str) -> None:
    sample = copy_sample("bridge_orig")
    (version_folder(sample) / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing, without which its shards cannot be read"):
        open_rlds(version_folder(sample))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"so it is no RLDS dataset. It has: notes.txt"):
        open_rlds(tmp_path)
    with pytest.raises(DataError, match=r"nothing_here does not exist"):
        open_rlds(tmp_path / "nothing_here")


def test_unknown_names_are_answered_with_the_nearest(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    with pytest.raises(DataError, match=r"unknown split 'vall'; did you mean 'val'\?"):
        open_rlds(sample, "vall")
    dataset = open_rlds(sample)
    with pytest.raises(DataError, match=r"unknown field 'actoin'; did you mean 'action'\?"):
        dataset.episode(0, ["actoin"])
    with pytest.raises(DataError, match=r"cameras: unknown field 'action'"):
        dataset.encoded(0, "action", 0)
    with pytest.raises(IndexError, match=r"episode 99 of 2"):
        dataset.episode(99)
    with pytest.raises(IndexError, match=r"step 999 of"):
        dataset.encoded(0, "observation/image_0", 999)


def change_features(sample: Path, change: Callable[[dict], None]) -> None:
    path = version_folder(sample) / "features.json"
    tree = json.loads(path.read_text())
    change(tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"])
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("action", {"dtype": "int64"}, r"field 'steps/action' holds floats, but features.json says int64"),
        ("action", {"shape": {"dimensions": ["9"]}}, r"field 'steps/action' holds \d+ numbers, which do not fill"),
        ("is_last", {"dtype": "float32"}, r"field 'steps/is_last' holds integers, but features.json says float32"),
    ],
)
def test_a_field_that_is_not_what_the_description_says_is_named(
    copy_sample: CopySample, field: str, change: dict, message: str
) -> None:
    sample = copy_sample("bridge_orig")
    change_features(sample, lambda steps: steps[field]["tensor"].update(change))
    with pytest.raises(DataError, match=rf"record 0 at byte \d+: {message}"):
        open_rlds(sample).episode(0)


def test_metadata_that_are_damaged_do_not_stop_a_reader_of_other_fields(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    path = version_folder(sample) / "features.json"
    path.write_text(path.read_text().replace('"file_path"', '"file_name"'))
    dataset = open_rlds(sample)
    episode = dataset.episode(0, ["action"])
    assert "episode_metadata/file_name" not in episode.metadata and "episode_metadata/episode_id" in episode.metadata
    with pytest.raises(DataError, match="the record has no field 'episode_metadata/file_name'"):
        dataset.episode(0)


def test_a_field_that_no_record_has_is_named(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    change_features(sample, lambda steps: steps.update(speed=steps["reward"]))
    with pytest.raises(DataError, match=r"the record has no field 'steps/speed', which features.json lists as float32"):
        open_rlds(sample).episode(0)


def test_an_episode_without_an_instruction_is_named(copy_sample: CopySample) -> None:
    episode = open_rlds(copy_sample("bridge_orig")).episode(0, ["action"])
    with pytest.raises(DataError, match=r"record 0 at byte \d+: no instruction. Looked for language_instruction"):
        episode.instructions()


def add_record(sample: Path, record: bytes) -> str:
    """Add a record to the first shard. Return the shard's name."""
    shard = shard_of(sample, "*train*")
    shard.write_bytes(shard.read_bytes() + frame_record(record))
    info_file = version_folder(sample) / "dataset_info.json"
    info_file.write_text(info_file.read_text().replace('"1"', '"2"', 1))
    return shard.name


def test_an_episode_without_steps_is_left_out_and_counted(copy_sample: CopySample) -> None:
    sample = copy_sample("fractal20220817_data")
    names = open_rlds(sample, cache=sample / "index").features.steps.values()
    empty = {leaf.path: np.empty(0, leaf.stored_dtype) for leaf in names if leaf.field.kind == "number"}
    add_record(sample, encode(empty | {leaf.path: [] for leaf in names if leaf.field.kind != "number"}))
    for _ in range(2):  # the second time, the index is read
        dataset = open_rlds(sample)
        assert (len(dataset), dataset.num_skipped) == (2, 0)
        assert dataset.notes == ("Episodes of 0 steps that were left out: 1.",)
        read_all(dataset)


def test_a_record_of_something_else_is_reported(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    shard = add_record(sample, b"\xff not an example")
    with pytest.raises(DataError, match=rf"{shard}, record 1 at byte \d+: the record is no tf.train.Example"):
        open_rlds(sample)


def test_a_camera_with_missing_frames_is_reported(copy_sample: CopySample) -> None:
    sample = copy_sample("bridge_orig")
    steps = open_rlds(sample, cache=sample / "index").features.steps.values()
    flags = {leaf.path: np.ones(2, np.int64) for leaf in steps if leaf.field.dtype == "bool"}
    shard = add_record(sample, encode(flags | {"steps/discount": np.ones(2, np.float32)}))
    with pytest.raises(DataError, match=rf"{shard}, record 1 at .* 'observation/image_0' has 0 frames, but"):
        open_rlds(sample)
