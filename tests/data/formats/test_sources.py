"""Tests of LeRobot and HDF5 datasets as sources of episodes, and of opening datasets of any format."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.hdf5 import Hdf5Dataset, open_hdf5
from vla_robot.data.formats.lerobot import video as lerobot_video
from vla_robot.data.formats.lerobot.source import LeRobotSource, open_lerobot
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.png import decode
from vla_robot.data.formats.rlds.reader import RldsDataset

MakeDemo = Callable[..., Demonstration]
GOLDEN = Path(__file__).parents[2] / "golden" / "rlds_samples"


@pytest.fixture
def lerobot(tmp_path: Path, make_demo: MakeDemo) -> Path:
    root = tmp_path / "demos"
    with LeRobotWriter(root) as writer:
        for seed, instruction in enumerate(["lift", "open", "lift"]):
            writer.write(make_demo(seed=seed, steps=3 + seed, instruction=instruction))
    return root


def make_hdf5(path: Path, lengths: tuple[int, ...] = (3, 5), instruction: str = "lift the cube") -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            if instruction:
                demo.attrs["ep_meta"] = json.dumps({"lang": instruction})
            demo["actions"] = rng.normal(size=(length, 7))
            demo["dones"] = np.arange(length) == length - 1
            for name in ("obs", "next_obs"):
                demo[f"{name}/eef_pos"] = rng.normal(size=(length, 3))
                demo[f"{name}/agentview_image"] = rng.integers(0, 256, (length, 8, 9, 3), dtype=np.uint8)
    return path


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    return make_hdf5(tmp_path / "demo.hdf5")


# -- LeRobot -----------------------------------------------------------------------------------------------------------


def test_a_lerobot_dataset_is_read_as_it_was_recorded(lerobot: Path, make_demo: MakeDemo) -> None:
    source = open_lerobot(lerobot)
    assert (len(source), source.lengths.tolist(), source.rate_hz) == (3, [3, 4, 5], 10.0)
    for index, instruction in enumerate(["lift", "open", "lift"]):
        demo, episode = make_demo(seed=index, steps=3 + index), source.episode(index)
        np.testing.assert_array_equal(episode.numbers("action"), demo.actions.astype(np.float32), strict=True)
        np.testing.assert_array_equal(episode.numbers("stamp_ns"), demo.stamps_ns, strict=True)
        np.testing.assert_array_equal(episode.numbers("next/success"), demo.success, strict=True)
        assert episode.instructions() == (instruction,) * len(demo)
        frames = episode.frames("observation/images/front")
        assert [frames.encoded(t) for t in range(len(frames))] == list(demo.cameras["front"].png)
        assert source.encoded(index, "observation/images/wrist", 1) == demo.cameras["wrist"].png[1]


def test_parts_of_a_lerobot_dataset(lerobot: Path) -> None:
    assert open_lerobot(lerobot, "train[1:]").lengths.tolist() == [4, 5]
    assert open_lerobot(lerobot, "all").splits == {"train": 3}
    with pytest.raises(DataError, match=r"demos: unknown split 'val'.* Available: all, train"):
        open_lerobot(lerobot, "val")


def test_fields_of_a_lerobot_dataset_are_found_or_answered_with_the_nearest(lerobot: Path) -> None:
    source = open_lerobot(lerobot)
    assert set(source.episode(0, ["action"]).steps) == {"action"}
    with pytest.raises(DataError, match=r"unknown field 'observation/stat'; did you mean 'observation/state'\?"):
        source.episode(0, ["observation/stat"])
    with pytest.raises(DataError, match=r"cameras: unknown field 'action'"):
        source.encoded(0, "action", 0)


def test_a_version_that_is_not_known_is_refused(lerobot: Path) -> None:
    info = lerobot / "meta" / "info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v1.6"'))
    with pytest.raises(DataError, match=r"says version v1.6; v2.0, v2.1 and v3.0 are read"):
        open_lerobot(lerobot)


def test_a_lerobot_table_that_is_too_short_is_named(lerobot: Path) -> None:
    files = sorted((lerobot / "data").rglob("*.parquet"))
    shutil.copyfile(files[0], files[2])
    with pytest.raises(DataError, match=r"file-002.parquet has 3 rows, but meta/episodes says at least 5"):
        open_lerobot(lerobot).episode(2)


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("use_videos", [False, True])
def test_what_lerobot_writes_is_read_as_lerobot_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lerobot_dataset: Any, use_videos: bool
) -> None:
    features = {
        "observation.images.front": {
            "dtype": "video" if use_videos else "image",
            "shape": (64, 64, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (2,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "pose": {"dtype": "float32", "shape": (2, 3), "names": None},
    }
    root = tmp_path / "theirs"
    dataset = lerobot_dataset.create("test/theirs", fps=10, features=features, root=root, use_videos=use_videos)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(lerobot_video, "BLOCK", 4)
    for length in (4, 6):
        for _ in range(length):
            frame = {name: rng.normal(size=f["shape"]).astype(np.float32) for name, f in features.items()}
            frame["observation.images.front"] = np.full((64, 64, 3), rng.integers(256), np.uint8)
            dataset.add_frame({**frame, "task": f"task of {length}"})
        dataset.save_episode()
    dataset.finalize()
    reopened, source = lerobot_dataset("test/theirs", root=root), open_lerobot(root)
    assert source.lengths.tolist() == [4, 6]
    for index in range(10):
        number, step = (0, index) if index < 4 else (1, index - 4)
        episode, item = source.episode(number), reopened[index]
        for field, column in (("action", "action"), ("observation/state", "observation.state"), ("pose", "pose")):
            np.testing.assert_array_equal(episode.numbers(field)[step], item[column])
        pixels = (item["observation.images.front"].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(episode.frames("observation/images/front").decode(step), pixels)
        assert episode.instructions()[step] == item["task"]
    convert(source, tmp_path / "rlds", "rlds", Options())
    converted = open_source(tmp_path / "rlds").episode(1).frames("observation/front")
    ours = source.episode(1).frames("observation/images/front")
    for step in range(6):
        np.testing.assert_array_equal(converted.decode(step), ours.decode(step))


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def test_demonstrations_of_robomimic_are_read(hdf5: Path) -> None:
    source = open_hdf5(hdf5)
    assert (len(source), source.lengths.tolist(), source.rate_hz, source.name) == (2, [3, 5], 20.0, "demo")
    with h5py.File(hdf5) as file:
        for index in range(2):
            demo: Any = file[f"data/demo_{index}"]
            episode = source.episode(index)
            np.testing.assert_array_equal(episode.numbers("action"), demo["actions"][:], strict=True)
            np.testing.assert_array_equal(episode.numbers("observation/eef_pos"), demo["obs/eef_pos"][:], strict=True)
            np.testing.assert_array_equal(episode.numbers("done"), demo["dones"][:], strict=True)
            frame = demo["obs/agentview_image"][2]
            np.testing.assert_array_equal(episode.frames("observation/agentview_image").decode(2), frame)
            np.testing.assert_array_equal(decode(source.encoded(index, "observation/agentview_image", 2)), frame)
            assert episode.instructions() == ("lift the cube",) * len(episode)
    assert not any("next_obs" in name for name in source.fields)


def test_demonstrations_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    source = open_hdf5(make_hdf5(tmp_path / "many.hdf5", tuple(range(1, 13))))
    assert source.lengths.tolist() == list(range(1, 13))


def test_masks_are_splits(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["mask/train"] = np.array([b"demo_1"])
        file["mask/valid"] = np.array([b"demo_0"])
    assert open_hdf5(hdf5).lengths.tolist() == [5]
    assert open_hdf5(hdf5, "val").lengths.tolist() == [3]
    assert open_hdf5(hdf5, "all").splits == {"train": 1, "val": 1}


def test_the_instruction_of_libero_is_found(tmp_path: Path) -> None:
    path = make_hdf5(tmp_path / "libero.hdf5", instruction="")
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
    assert set(open_hdf5(path).episode(0).instructions()) == {"open the drawer"}


def test_demonstrations_without_an_instruction_read_and_say_so_when_asked(tmp_path: Path) -> None:
    source = open_hdf5(make_hdf5(tmp_path / "mute.hdf5", instruction=""))
    assert "language_instruction" not in source.fields
    with pytest.raises(DataError, match=r"mute.hdf5, data/demo_0: no instruction"):
        source.episode(0).instructions()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda demo: demo.__delitem__("obs/eef_pos"), r"has no data/demo_1/obs/eef_pos, although the first"),
        (lambda demo: _replace(demo, "obs/eef_pos", np.zeros((5, 2))), r"'observation/eef_pos' is float64 2, in the"),
        (lambda demo: _replace(demo, "dones", np.zeros(4, bool)), r"'done' has 4 values, but the episode 5 steps"),
    ],
)
def test_a_malformed_demonstration_is_named(hdf5: Path, damage: Callable[[Any], None], message: str) -> None:
    with h5py.File(hdf5, "a") as file:
        damage(file["data/demo_1"])
    with pytest.raises(DataError, match=message):
        open_hdf5(hdf5).episode(1)


def test_demonstrations_of_no_steps_are_left_out_and_noted(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        _replace(file["data/demo_0"], "actions", np.zeros((0, 7)))
    source = open_hdf5(hdf5)
    assert (source.lengths.tolist(), source.notes) == ([5], ("Episodes of 0 steps that were left out: 1.",))
    with h5py.File(hdf5, "a") as file:
        _replace(file["data/demo_1"], "actions", np.zeros((0, 7)))
    with pytest.raises(DataError, match=r"each of its 2 demonstrations has no steps"):
        open_hdf5(hdf5)


def _replace(group: Any, name: str, values: Any) -> None:
    del group[name]
    group[name] = values


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("not at all")
    with pytest.raises(DataError, match=r"text.hdf5 is no readable HDF5 file"):
        open_hdf5(tmp_path / "text.hdf5")
    with pytest.raises(DataError, match=r"none.hdf5 does not exist"):
        open_hdf5(tmp_path / "none.hdf5")
    with contextlib.closing(h5py.File(tmp_path / "other.hdf5", "w")) as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match=r"holds no demonstrations: there is no data/NAME/actions. It has: weights"):
        open_hdf5(tmp_path / "other.hdf5")


# -- whatever it is ----------------------------------------------------------------------------------------------------


def test_a_dataset_is_opened_by_what_it_is(
    lerobot: Path, hdf5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rlds = tmp_path / "bridge_orig"
    shutil.copytree(GOLDEN / "bridge_orig", rlds)
    assert isinstance(open_source(lerobot), LeRobotSource)
    assert isinstance(open_source(hdf5), Hdf5Dataset)
    assert isinstance(open_source(rlds), RldsDataset)
    assert isinstance(open_source(rlds / "1.0.0", "val"), RldsDataset)
    for path in (lerobot, hdf5, rlds):
        source = open_source(path, "train[:1]")
        again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own object, as a worker gets it
        np.testing.assert_array_equal(again.episode(0).numbers("action"), source.episode(0).numbers("action"))


def test_a_folder_of_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"is no dataset: neither RLDS .* nor LeRobot .* It has: notes.txt"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        open_source(tmp_path / "nowhere")
