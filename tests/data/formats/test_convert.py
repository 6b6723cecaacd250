"""Tests of conversions: round trips are equal, interrupted ones continue, and lost fields are listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_robot.core.episode import Episode, Field
from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import Converted, convert
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.layout import read_json
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.rlds.features import Features, Leaf
from vla_robot.data.formats.rlds.reader import RldsDataset
from vla_robot.data.formats.rlds.writer import RldsWriter

MakeDemo = Callable[..., Demonstration]
GOLDEN = Path(__file__).parents[2] / "golden" / "rlds_samples"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sample(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def require_equal(ours: EpisodeSource, theirs: EpisodeSource, names: Mapping[str, str] | None = None) -> None:
    """Assert that every field of theirs is in ours, with equal numbers and texts and the same files of frames."""
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for index in range(len(theirs)):
        there, here = theirs.episode(index), ours.episode(index)
        for name, column in there.steps.items():
            other = here.steps[(names or {}).get(name, name)]
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(other, column, strict=True)
            elif isinstance(column, tuple):
                assert other == column
            else:
                assert not isinstance(other, (np.ndarray, tuple))
                assert [other.encoded(t) for t in range(len(other))] == [column.encoded(t) for t in range(len(column))]


@pytest.mark.parametrize("name", NAMES)
def test_rlds_to_lerobot_and_back_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    there = open_source(sample(name, tmp_path))
    assert convert(there, tmp_path / "lerobot", "lerobot", Options(rate_hz=5)) == Converted(2, 2, ())
    between = open_source(tmp_path / "lerobot")
    assert (between.rate_hz, between.episode(0).instructions()) == (5.0, there.episode(0).instructions())
    convert(between, tmp_path / "again", "rlds", Options())
    again = open_source(tmp_path / "again")
    assert isinstance(again, RldsDataset)
    assert isinstance(there, RldsDataset)
    assert again.features == there.features
    require_equal(again, there)
    assert [again.episode(i).metadata for i in range(2)] == [there.episode(i).metadata for i in range(2)]


def test_lerobot_to_rlds_and_back_is_the_same_to_the_bit(tmp_path: Path, make_demo: MakeDemo) -> None:
    with LeRobotWriter(tmp_path / "demos") as writer:
        for seed in range(3):
            writer.write(make_demo(seed=seed, steps=3 + seed, instruction=f"task {seed % 2}"))
    there = open_source(tmp_path / "demos")
    convert(there, tmp_path / "rlds", "rlds", Options())
    between = open_source(tmp_path / "rlds")
    assert {
        "observation/front",
        "observation/state",
        "action",
        "action.executed",
        "is_last",
        "language_instruction",
    } <= set(between.fields)
    assert between.episode(0).numbers("is_last").tolist() == [False, False, True]
    convert(between, tmp_path / "again", "lerobot", Options())
    again = open_source(tmp_path / "again")
    assert set(again.fields) == set(there.fields)
    require_equal(again, there)
    assert read_json(tmp_path / "again/meta/info.json") == read_json(tmp_path / "demos/meta/info.json")
    ours, theirs = open_demos(tmp_path / "again"), open_demos(tmp_path / "demos")
    assert ours.embodiment == theirs.embodiment
    np.testing.assert_array_equal(ours.actions, theirs.actions)


def hdf5(path: Path, instruction: str) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, length in enumerate((3, 4)):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["ep_meta"] = json.dumps({"lang": instruction})
            demo["actions"] = rng.normal(size=(length, 7))
            demo["rewards"] = rng.normal(size=length)
            demo["obs/eef_pos"] = rng.normal(size=(length, 3))
            demo["obs/agentview_image"] = rng.integers(0, 256, (length, 16, 18, 3), dtype=np.uint8)
    return path


def test_hdf5_to_lerobot_keeps_every_digit_and_pixel(tmp_path: Path) -> None:
    there = open_source(hdf5(tmp_path / "demo.hdf5", "lift"))
    assert convert(there, tmp_path / "out", "lerobot", Options(rate_hz=20)).lost == ()
    here = open_source(tmp_path / "out")
    require_equal(here, there, {"observation/agentview_image": "observation/images/agentview_image"})
    assert here.episode(1).instructions() == ("lift",) * 4
    assert here.episode(1).metadata == {"demonstration": "demo_1"}


def test_hdf5_to_rlds_says_that_digits_are_lost(tmp_path: Path) -> None:
    there = open_source(hdf5(tmp_path / "demo.hdf5", "lift"))
    converted = convert(there, tmp_path / "out", "rlds", Options(name="mine"))
    assert "action: float64 is stored as float32, which keeps 7 digits" in converted.lost
    here = open_source(tmp_path / "out")
    assert here.name == "mine"
    np.testing.assert_array_equal(here.episode(0).numbers("action"), there.episode(0).numbers("action").astype("f4"))
    frames, theirs = (s.episode(0).frames("observation/agentview_image") for s in (here, there))
    np.testing.assert_array_equal(frames.decode(1), theirs.decode(1))
    assert here.episode(1).metadata == {"episode_metadata/demonstration": "demo_1"}


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_opens_what_was_converted(tmp_path: Path, lerobot_dataset: Any) -> None:
    source = open_source(sample("fractal20220817_data", tmp_path))
    convert(source, tmp_path / "out", "lerobot", Options(rate_hz=3))
    dataset = lerobot_dataset("test/out", root=tmp_path / "out")
    assert (len(dataset), dataset.fps) == (source.lengths.sum(), 3)
    episode, item = source.episode(0), dataset[2]
    np.testing.assert_array_equal(item["action.world_vector"], episode.numbers("action/world_vector")[2])
    np.testing.assert_array_equal(
        item["observation.orientation_box"], episode.numbers("observation/orientation_box")[2]
    )
    pixels = (item["observation.images.image"].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(pixels, episode.frames("observation/image").decode(2))
    assert item["task"] == episode.instructions()[2]


class StopError(Exception):
    """An error that stands for a crash."""


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
def test_an_interrupted_conversion_goes_on(to: Any, tmp_path: Path) -> None:
    source = open_source(sample("bridge_orig", tmp_path), "all")
    options = Options(split="train", rate_hz=5)

    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        convert(source, tmp_path / "out", to, options, stop_after_two)
    seen: list[tuple[int, int]] = []
    converted = convert(source, tmp_path / "out", to, options, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    assert (converted.episodes, converted.new) == (4, 2)
    assert convert(source, tmp_path / "out", to, options).new == 0
    np.testing.assert_array_equal(
        open_source(tmp_path / "out").episode(3).numbers("action"), source.episode(3).numbers("action")
    )


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
def test_a_folder_with_another_conversion_is_refused(to: Any, tmp_path: Path) -> None:
    options = Options(rate_hz=5)
    convert(open_source(sample("bridge_orig", tmp_path)), tmp_path / "out", to, options)
    with pytest.raises(
        DataError, match=r"holds another conversion, of rlds 'bridge_orig'|describes other fields|already"
    ):
        convert(open_source(sample("libero_spatial_no_noops", tmp_path)), tmp_path / "out", to, options)


def test_splits_are_converted_one_after_another(tmp_path: Path) -> None:
    folder = sample("bridge_orig", tmp_path)
    for split in ("train", "val"):
        convert(open_source(folder, split), tmp_path / "out", "rlds", Options(split=split, name="b"))
    assert open_source(tmp_path / "out", "val").splits == {"train": 2, "val": 2}


def test_the_error_for_a_missing_rate_or_instruction_names_the_option(tmp_path: Path) -> None:
    rlds = open_source(sample("bridge_orig", tmp_path))
    with pytest.raises(DataError, match=r"how many steps a second it has, which LeRobot needs. Give it with --rate-hz"):
        convert(rlds, tmp_path / "a", "lerobot", Options())
    mute = open_source(hdf5(tmp_path / "mute.hdf5", ""))
    with pytest.raises(DataError, match=r"data/demo_0: no instruction.* give it with --instruction"):
        convert(mute, tmp_path / "b", "lerobot", Options(rate_hz=5))
    convert(mute, tmp_path / "c", "lerobot", Options(rate_hz=5, instruction="lift it"))
    converted = open_source(tmp_path / "c")
    assert converted.episode(0).instructions() == ("lift it",) * 3
    with pytest.raises(DataError, match=r"says 5 steps per second, but --rate-hz is 7"):
        convert(converted, tmp_path / "d", "lerobot", Options(rate_hz=7))
    with pytest.raises(DataError, match=r"there is no episode to convert"):
        convert(open_source(tmp_path / "c", "train[:0]"), tmp_path / "e", "rlds", Options())


def test_what_lerobot_cannot_hold_is_listed_and_the_rest_converted(tmp_path: Path) -> None:
    fields = {
        "boxes": Leaf("steps/boxes", Field("boxes", "number", "float32", (None, 2)), 2),
        "blob": Leaf("steps/blob", Field("blob", "text", "bytes", ()), 1),
        "note": Leaf("steps/note", Field("note", "text", "str", ()), 1),
        "action": Leaf("steps/action", Field("action", "number", "float32", (1,)), 1),
        "language_instruction": Leaf("steps/language_instruction", Field("language_instruction", "text", "str", ()), 1),
    }
    boxes = (np.ones((1, 2), np.float32), np.ones((2, 2), np.float32))
    steps: dict[str, Any] = {
        "boxes": boxes,
        "blob": (b"1", b"\xff"),
        "note": ("a", "b"),
        "action": np.ones((2, 1), np.float32),
        "language_instruction": ("lift", "drop"),
    }
    with RldsWriter(tmp_path / "odd", "odd", Features(fields, {})) as writer:
        writer.write(Episode(0, {}, steps, 2, "made up"))
        writer.finish()
    converted = convert(open_source(tmp_path / "odd"), tmp_path / "out", "lerobot", Options(rate_hz=5))
    assert converted.lost == (
        "boxes: LeRobot has no columns of shape ? x 2",
        "blob: LeRobot has no columns of bytes",
    )
    here = open_source(tmp_path / "out").episode(0)
    assert (here.texts("note"), here.instructions()) == (("a", "b"), ("lift", "drop"))
    convert(open_source(tmp_path / "out"), tmp_path / "again", "rlds", Options())
    assert open_source(tmp_path / "again").episode(0).numbers("action").shape == (2, 1)
