"""Tests of HDF5 files that are built as the writers of robomimic, MimicGen, Isaac Lab and LIBERO build them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.hdf5 import open_hdf5
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.recognise import explain_unknown, facts_at, recognise
from vla_robot.data.pipeline.mixture import Member, notes_of, open_parts, open_table_of
from vla_robot.recipe.oxe import Cameras, SourceRecipe

ROBOMIMIC_ENV = {"env_name": "Lift", "type": 1, "env_version": "1.5.1", "env_kwargs": {"control_freq": 20}}
RECIPE = SourceRecipe(
    "source",
    ("action",),
    action_encoding="eef_pos",
    instruction="language_instruction",
    cameras=Cameras("observation/agentview_image"),
)


def write_robomimic(
    path: Path,
    lengths: Sequence[int],
    masks: Mapping[str, Sequence[str]] | None = None,
    env_args: Any = ROBOMIMIC_ENV,
    lang: str = "lift the cube",
) -> Path:
    """Write a file as robomimic's dataset_states_to_obs.py and create_hdf5_filter_key do."""
    rng = np.random.default_rng(len(lengths))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.create_dataset("actions", data=rng.uniform(-1, 1, (length, 7)))
            demo.create_dataset("states", data=rng.normal(size=(length, 32)))
            demo.create_dataset("rewards", data=np.zeros(length))
            demo.create_dataset("dones", data=(np.arange(length) == length - 1).astype(np.int64))
            for group in ("obs", "next_obs"):
                frames = rng.integers(0, 256, (length, 8, 9, 3), np.uint8)
                demo.create_dataset(f"{group}/agentview_image", data=frames, compression="gzip")
                demo.create_dataset(f"{group}/robot0_eef_pos", data=rng.normal(size=(length, 3)))
            demo.attrs["model_file"] = "<mujoco/>"
            if lang:
                demo.attrs["ep_meta"] = json.dumps({"lang": lang})
            demo.attrs["num_samples"] = length
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        for name, demos in (masks or {}).items():
            file[f"mask/{name}"] = np.array(list(demos), dtype="S")
    return path


def steps_of(source: Any) -> list[str]:
    """Return the names of the demonstrations."""
    return [source.episode(i, []).metadata["demonstration"] for i in range(len(source))]


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A file of three demonstrations of 4, 5 and 6 steps, in masks that overlap."""
    masks = {
        "train": ["demo_0", "demo_1"],
        "valid": ["demo_1", "demo_2"],
        "50_percent": ["demo_0"],
        "50_percent_train": ["demo_0", "demo_2"],
    }
    return write_robomimic(tmp_path / "masked.hdf5", (4, 5, 6), masks)


def test_each_demonstration_is_in_one_split(masked: Path) -> None:
    everything = open_hdf5(masked, "all")
    assert everything.splits == {"train": 2, "val": 1}
    assert steps_of(everything) == ["demo_0", "demo_1", "demo_2"]
    assert steps_of(open_hdf5(masked, "train")) == ["demo_0", "demo_1"]
    assert steps_of(open_hdf5(masked, "val")) == ["demo_2"]
    assert "in both masks train and valid; they train and do not validate: demo_1" in everything.notes[0]


def test_other_masks_are_read_by_name_and_each_demonstration_once(masked: Path) -> None:
    assert steps_of(open_hdf5(masked, "50_percent_train")) == ["demo_0", "demo_2"]
    assert steps_of(open_hdf5(masked, "train+50_percent_train")) == ["demo_0", "demo_1", "demo_2"]
    assert open_hdf5(masked).subsets == {"50_percent": 1, "50_percent_train": 2}
    with pytest.raises(DataError, match=r"unknown split '20_percent'; did you mean '50_percent'"):
        open_hdf5(masked, "20_percent")


def test_statistics_see_each_demonstration_once(masked: Path, tmp_path: Path) -> None:
    parts, table = open_table_of(Member("toy", RECIPE, str(masked), 1.0), cache=tmp_path / "cache")
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "val": 1}
    assert (table.statistics["num_transitions"], table.statistics["num_trajectories"]) == (15, 3)
    with h5py.File(masked) as file:
        data: Any = file["data"]
        actions = np.concatenate([data[f"demo_{i}/actions"][:] for i in range(3)])
    np.testing.assert_allclose(table.statistics["action"]["mean"], actions.mean(axis=0), atol=1e-6)
    assert any("demo_1" in note for note in notes_of(parts.values()))


def test_demonstrations_in_no_mask_are_a_split_of_their_own(tmp_path: Path) -> None:
    masks = {"train": ["demo_0"], "valid": ["demo_2"], "20_percent": ["demo_9"]}
    source = open_hdf5(write_robomimic(tmp_path / "rest.hdf5", (4, 5, 6), masks), "all")
    assert source.splits == {"train": 1, "val": 1, "rest": 1}
    assert any("they are the split 'rest': demo_1" in note for note in source.notes)
    assert any("named by a mask and not in the file: demo_9" in note for note in source.notes)


def test_without_a_mask_train_validation_demonstrations_are_not_in_train(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "valid.hdf5", (4, 5, 6), {"valid": ["demo_1"]})
    assert open_hdf5(path, "all").splits == {"train": 2, "val": 1}
    assert steps_of(open_hdf5(path)) == ["demo_0", "demo_2"]


@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_file_of_few_demonstrations_without_masks_has_an_instruction(tmp_path: Path, count: int) -> None:
    path = write_robomimic(tmp_path / "few.hdf5", [4] * count)
    parts = open_parts(str(path))
    assert {name: len(part) for name, part in parts.items()} == {"train": count, "val": 0}
    assert all("language_instruction" in part.fields for part in parts.values())
    _, table = open_table_of(Member("toy", RECIPE, str(path), 1.0), cache=tmp_path / "cache")
    assert table.texts == ("lift the cube",)


# -- attributes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "open it",
        b"open it",
        np.bytes_("open it"),
        np.array(["open it"], dtype="S"),
        np.array([b"open", b"it"]),
        np.array(["open", "it"], dtype=object),
        '"open it"',
    ],
)
@pytest.mark.parametrize("place", ["data", "data/demo_0"])
def test_an_instruction_may_be_text_bytes_or_an_array(tmp_path: Path, value: Any, place: str) -> None:
    path = write_robomimic(tmp_path / "told.hdf5", (4,), lang="")
    with h5py.File(path, "a") as file:
        file[place].attrs["language_instruction"] = value
    source = open_hdf5(path)
    assert set(source.episode(0).instructions()) == {"open it"}
    convert(source, tmp_path / "lerobot", "lerobot", Options())
    assert set(open_source(tmp_path / "lerobot").episode(0).instructions()) == {"open it"}


@pytest.mark.parametrize("as_value", [str.encode, np.bytes_, lambda text: np.array([text], dtype=object)])
def test_json_may_be_bytes_or_an_array(tmp_path: Path, as_value: Any) -> None:
    path = write_robomimic(tmp_path / "told.hdf5", (4,), lang="")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = as_value(json.dumps(ROBOMIMIC_ENV))
        file["data"].attrs["problem_info"] = as_value(json.dumps({"language_instruction": ["open", "it"]}))
    source = open_hdf5(path)
    assert (source.rate_hz, source.episode(0).instructions()[0]) == (20.0, "open it")


@pytest.mark.parametrize(
    ("env_args", "rate_hz"),
    [
        ({"env_kwargs": None}, None),
        ({"env_kwargs": {"control_freq": None}}, None),
        ({"env_kwargs": {"control_freq": "fast"}}, None),
        ({"env_kwargs": {"control_freq": 0}}, None),
        ({"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2}, None),
        ({"env_name": "Isaac", "type": 2, "sim_args": {"dt": 0.01, "decimation": 5, "render_interval": 2}}, 20.0),
        ("", None),
        ([], None),
        (ROBOMIMIC_ENV, 20.0),
    ],
)
def test_the_control_rate_is_known_or_not(tmp_path: Path, env_args: Any, rate_hz: float | None) -> None:
    assert open_hdf5(write_robomimic(tmp_path / "rate.hdf5", (4,), env_args=env_args)).rate_hz == rate_hz


def test_demonstrations_of_which_only_some_have_an_instruction(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "some.hdf5", (4, 5))
    with h5py.File(path, "a") as file:
        del file["data/demo_1"].attrs["ep_meta"]
    source = open_hdf5(path)
    assert [source.episode(i).texts("language_instruction")[0] for i in range(2)] == ["lift the cube", ""]
    with pytest.raises(DataError, match=r"demo_1: the instruction .* is empty"):
        source.episode(1).instructions()


# -- what is not a step ------------------------------------------------------------------------------------------------


def test_a_file_of_mimicgen_is_read(tmp_path: Path) -> None:
    """The file is written as by MimicGen's write_demo_to_hdf5 and its merge."""
    path, lengths = tmp_path / "mimicgen.hdf5", (3, 6)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.create_dataset("actions", data=np.full((length, 7), number, np.float64))
            demo.create_dataset("states", data=np.zeros((length, 12)))
            demo.create_dataset("obs/agentview_image", data=np.zeros((length, 8, 9, 3), np.uint8), compression="gzip")
            demo.create_dataset("datagen_info/eef_pose", data=np.zeros((length, 4, 4)))
            demo.create_dataset("datagen_info/object_poses/cubeA", data=np.zeros((length, 4, 4)))
            demo.create_dataset("datagen_info/subtask_term_signals/grasp", data=np.zeros(length, np.int64))
            # Three subtasks, which is also the number of steps of the first demonstration.
            demo.create_dataset("src_demo_inds", data=np.array([4, 0, 7]))
            demo.create_dataset("src_demo_labels", data=np.ones((length, 1), np.int64))
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["num_samples"] = length
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(ROBOMIMIC_ENV)
    source = open_hdf5(path)
    assert source.left_out == {"src_demo_inds": "3 values that do not belong to the steps"}
    for index, length in enumerate(lengths):
        episode = source.episode(index)
        np.testing.assert_array_equal(episode.numbers("action"), np.full((length, 7), index))
        assert episode.numbers("src_demo_labels").shape == (length, 1)
        assert episode.numbers("datagen_info/object_poses/cubeA").shape == (length, 4, 4)


def test_a_file_of_isaac_lab_is_read(tmp_path: Path) -> None:
    """The file is written as by Isaac Lab's HDF5DatasetFileHandler."""
    path, lengths = tmp_path / "isaac.hdf5", (4, 7)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Lift-Cube-Franka-IK-Rel-v0", "type": 2})
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["seed"], demo.attrs["success"] = length, number, True
            values = {
                "initial_state/articulation/robot/root_pose": np.zeros((1, 7), np.float32),
                "initial_state/articulation/robot/joint_position": np.zeros((1, 9), np.float32),
                "initial_state/rigid_object/cube/root_pose": np.zeros((1, 7), np.float32),
                "states/articulation/robot/joint_position": np.zeros((length, 9), np.float32),
                "obs/actions": np.zeros((length, 7), np.float32),
                "obs/table_cam": np.full((length, 6, 8, 3), number, np.uint8),
                "obs/datagen_info/eef_pose/franka": np.zeros((length, 4, 4), np.float32),
                "actions": np.full((length, 7), number, np.float32),
                "processed_actions": np.zeros((length, 8), np.float32),
            }
            for name, array in values.items():
                demo.create_dataset(name, data=array, compression="gzip")
    source = open_hdf5(path)
    assert (source.rate_hz, source.left_out) == (None, {"initial_state": "the state before the first step"})
    assert "initial_state: the state before the first step" in source.notes[0]
    episode = source.episode(1)
    np.testing.assert_array_equal(episode.numbers("action"), np.ones((7, 7)))
    assert episode.numbers("states/articulation/robot/joint_position").shape == (7, 9)
    assert episode.frames("observation/table_cam").decode(6).max() == 1
    with pytest.raises(DataError, match=r"'initial_state' is not read: the state before the first step"):
        source.episode(0, ["initial_state"])


def test_scalars_texts_and_constants_are_left_out_and_listed(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "odd.hdf5", (3, 5))
    kind = np.dtype([("a", "i4"), ("b", "f4")])
    with h5py.File(path, "a") as file:
        for number, length in enumerate((3, 5)):
            demo: Any = file[f"data/demo_{number}"]
            demo["obs/goal"] = 0.5
            demo["obs/caption"] = "a cube"
            demo["obs/words"] = np.array([b"a"] * length)
            demo["obs/pairs"] = np.zeros(length, kind)
            demo["camera_matrix"] = np.eye(3)  # as many rows as the first demonstration has steps
            demo["subtasks"] = np.arange(2)
    source = open_hdf5(path)
    assert source.left_out == {
        "observation/goal": "one number for the whole episode",
        "observation/caption": "texts",
        "observation/words": "texts",
        "observation/pairs": f"values of type {kind}",
        "camera_matrix": "3 values that do not belong to the steps",
        "subtasks": "2 values that do not belong to the steps",
    }
    assert {len(source.episode(i).numbers("action")) for i in range(2)} == {3, 5}
    lost = convert(source, tmp_path / "lerobot", "lerobot", Options()).lost
    assert "subtasks: 2 values that do not belong to the steps is not read" in lost


def test_a_field_that_the_first_demonstration_lacks_is_listed(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "lacks.hdf5", (3, 5))
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/robot0_eef_pos"]
    source = open_hdf5(path)
    assert source.left_out == {"observation/robot0_eef_pos": "absent in demo_0"}
    assert source.episode(1).numbers("action").shape == (5, 7)


# -- a folder of files -------------------------------------------------------------------------------------------------


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    """A suite of ten tasks, as LIBERO's create_dataset.py writes its files."""
    suite = tmp_path / "libero_spatial"
    suite.mkdir()
    rng = np.random.default_rng(0)
    for task in range(10):
        with h5py.File(suite / f"put_the_bowl_{task}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            info = {
                "problem_name": "libero",
                "domain_name": "robosuite",
                "language_instruction": f'"put the bowl {task}"',
            }
            data.attrs["env_name"], data.attrs["problem_info"] = "libero", json.dumps(info)
            data.attrs["macros_image_convention"], data.attrs["tag"] = "opengl", "libero-v1"
            data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": {"control_freq": 20}})
            data.attrs["bddl_file_content"] = "(define (problem LIBERO))"
            for number in range(2):
                length, width = 3 + number, 70 + task  # the simulator's state has another width in each task
                demo = data.create_group(f"demo_{number}")
                states = rng.normal(size=(length, width))
                for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                    frames = np.full((length, 8, 8, 3), 10 * task + number, np.uint8)
                    demo.create_dataset(f"obs/{camera}", data=frames)
                for name, size in {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}.items():
                    demo.create_dataset(f"obs/{name}", data=rng.normal(size=(length, size)))
                demo.create_dataset("actions", data=np.full((length, 7), 10 * task + number, np.float64))
                demo.create_dataset("states", data=states)
                demo.create_dataset("robot_states", data=rng.normal(size=(length, 9)))
                demo.create_dataset("rewards", data=np.zeros(length, np.uint8))
                demo.create_dataset("dones", data=np.zeros(length, np.uint8))
                demo.attrs["num_samples"], demo.attrs["init_state"] = length, states[0]
                demo.attrs["model_file"] = "<mujoco/>"
            data.attrs["num_demos"], data.attrs["total"] = 2, 7
    return suite


def test_a_folder_of_files_is_one_dataset_with_the_task_of_each_file(libero: Path, tmp_path: Path) -> None:
    source = open_source(libero)
    assert (source.name, len(source), source.rate_hz) == ("libero_spatial", 20, 20.0)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own object, as a worker gets it
    for index in range(20):
        task, number = divmod(index, 2)
        episode = again.episode(index)
        assert set(episode.instructions()) == {f"put the bowl {task}"}
        assert episode.metadata == {"file": f"put_the_bowl_{task}_demo.hdf5", "demonstration": f"demo_{number}"}
        np.testing.assert_array_equal(episode.numbers("action"), np.full((3 + number, 7), 10 * task + number))
        assert episode.frames("observation/agentview_rgb").decode(2).max() == 10 * task + number
    assert any("Frames are stored upside down" in note for note in source.notes)
    assert "states" in source.left_out and "float64 70 in put_the_bowl_0_demo.hdf5" in source.left_out["states"]
    convert(source, tmp_path / "lerobot", "lerobot", Options())
    converted = open_source(tmp_path / "lerobot")
    assert [converted.episode(i).instructions()[0] for i in (0, 19)] == ["put the bowl 0", "put the bowl 9"]
    np.testing.assert_array_equal(converted.episode(19).numbers("action"), source.episode(19).numbers("action"))


def test_a_suite_that_is_called_like_a_published_dataset_is_not_taken_for_it(libero: Path) -> None:
    facts = facts_at(str(libero))
    assert facts.name == "libero_spatial" and recognise(facts) is None
    assert "No recipe is known for 'libero_spatial'" in explain_unknown(facts)


def test_a_link_out_of_a_folder_of_files_is_refused(libero: Path, tmp_path: Path) -> None:
    write_robomimic(tmp_path / "elsewhere.hdf5", (3,))
    (libero / "z.hdf5").symlink_to(tmp_path / "elsewhere.hdf5")
    with pytest.raises(DataError, match=r"z.hdf5 leaves the folder"):
        open_source(libero)


def test_files_that_do_not_make_one_dataset_are_refused(libero: Path) -> None:
    write_robomimic(libero / "other.hdf5", (3,), env_args={"env_kwargs": {"control_freq": 10}})
    with pytest.raises(DataError, match=r"do not make one dataset: the control rate is .*10 Hz in other.hdf5"):
        open_source(libero)
    with h5py.File(libero / "other.hdf5", "a") as file:
        file["data"].attrs["env_args"] = json.dumps(ROBOMIMIC_ENV)
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = np.zeros((3, 14))
    with pytest.raises(DataError, match=r"do not make one dataset: the actions are float64 14 in other.hdf5 and"):
        open_source(libero)


def test_masks_of_several_files_are_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    masks = {"train": ["demo_0"], "valid": ["demo_1"]}
    for name, own in {"a": masks, "b": masks, "c": None}.items():
        write_robomimic(folder / f"{name}.hdf5", (4, 5), own)
    source = open_hdf5(folder, "all")
    assert source.splits == {"train": 4, "val": 2}
    train = open_hdf5(folder, "train")
    assert [tuple(train.episode(i, []).metadata.values()) for i in range(4)] == [
        ("a.hdf5", "demo_0"), ("b.hdf5", "demo_0"), ("c.hdf5", "demo_0"), ("c.hdf5", "demo_1"),
    ]  # fmt: skip


# -- damage ------------------------------------------------------------------------------------------------------------


def test_damaged_demonstrations_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "damaged.hdf5", (3, 4, 5, 6))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/robot0_eef_pos"]
        actions: Any = file["data/demo_2/actions"]
        actions[3, 2] = np.nan
        place = file["data/demo_3/obs/agentview_image"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset + 10)
        raw.write(b"\xff" * 8)
    source = open_source(path, "train", skip_corrupt=True)
    assert (steps_of(source), source.num_skipped) == (["demo_0"], 3)
    told = [str(line) for line in source.skipped]
    assert "data/demo_1/obs/robot0_eef_pos" in told[0] and "field 'action' is not finite at step 3" in told[1]
    assert "data/demo_3/obs/agentview_image is damaged" in told[2]
    parts = open_parts(str(path), skip_corrupt=True)
    assert sum(len(part) for part in parts.values()) == 1
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own object, as a worker gets it
    assert steps_of(again) == ["demo_0"]


def test_a_file_that_cannot_be_opened_is_skipped_in_a_folder_alone(libero: Path) -> None:
    path = libero / "put_the_bowl_4_demo.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"put_the_bowl_4_demo.hdf5 is no readable HDF5 file"):
        open_source(libero)
    source = open_source(libero, skip_corrupt=True)
    assert (len(source), source.num_skipped) == (18, 1)
    with pytest.raises(DataError, match=r"put_the_bowl_4_demo.hdf5 is no readable HDF5 file"):
        open_source(path, skip_corrupt=True)
