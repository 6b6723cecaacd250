"""Tests of LeRobot datasets: lerobot opens ours, we open lerobot's, and a crash loses at most one episode."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.embodiment import CameraSpec
from vla_robot.core.errors import DataError
from vla_robot.core.image import resize
from vla_robot.data.demonstration import Corrections, Demonstration
from vla_robot.data.formats import png
from vla_robot.data.formats.lerobot import tables as lerobot_tables
from vla_robot.data.formats.lerobot import writer as lerobot_format
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.layout import (
    EMBODIMENT,
    INFO,
    RECORDING,
    STATS,
    file_number,
    numbered_file,
    position,
)
from vla_robot.data.formats.lerobot.writer import LeRobotWriter

MakeDemo = Callable[..., Demonstration]

WRITES = {lerobot_tables: ("write_json", "write_table", "write_tasks"), lerobot_format: ("write_json", "write_whole")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "demos"


def write(root: Path, *demonstrations: Demonstration) -> None:
    with LeRobotWriter(root) as writer:
        for demonstration in demonstrations:
            writer.write(demonstration)


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_opens_what_we_write(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    demos = [make_demo(seed=1, steps=3), make_demo(seed=2, steps=5, instruction="open the door", success=False)]
    write(root, *demos)
    dataset = lerobot_dataset("test/demos", root=root)
    assert (dataset.num_episodes, dataset.num_frames, len(dataset), dataset.fps) == (2, 8, 8, 10)
    for index, (demo, step) in enumerate([(demos[0], s) for s in range(3)] + [(demos[1], s) for s in range(5)]):
        item = dataset[index]
        np.testing.assert_array_equal(item["action"], demo.actions[step].astype(np.float32))
        np.testing.assert_array_equal(item["action.executed"], demo.executed[step].astype(np.float32))
        np.testing.assert_array_equal(item["observation.state"], demo.states[step].astype(np.float32))
        frame = png.decode(demo.cameras["wrist"].png[step])
        np.testing.assert_array_equal(item["observation.images.wrist"], frame.transpose(2, 0, 1) / np.float32(255))
        assert item["task"] == demo.instruction
        assert item["frame_index"] == step
        assert item["index"] == index
        assert item["timestamp"] == pytest.approx(step / 10)
        assert bool(item["next.success"]) == demo.success[step]
        assert item["stamp_ns"] == 1000 + step
    assert dataset.meta.names["action"] == ["dx", "gripper"]


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_opens_a_dataset_that_says_who_drove(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    demo = make_demo(seed=1, steps=5)
    by_person = np.array([False, True, True, False, False])
    beside = demo.actions + 0.01 * by_person[:, None]
    write(root, dataclasses.replace(demo, corrections=Corrections(by_person, beside, np.ones(5, np.bool_))))
    dataset = lerobot_dataset("test/demos", root=root)
    assert [bool(dataset[step]["intervention"]) for step in range(5)] == by_person.tolist()
    assert bool(dataset[0]["policy_asked"])
    np.testing.assert_array_equal(dataset[1]["action.policy"], beside[1].astype(np.float32))
    np.testing.assert_array_equal(open_demos(root).actions, demo.actions.astype(np.float32))


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_reads_when_each_frame_was_captured(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    demo = make_demo(seed=1, steps=4)
    wrist = np.array([900, 900, 930, 930])
    write(root, dataclasses.replace(demo, frame_stamps_ns={"front": demo.stamps_ns, "wrist": wrist}))
    dataset = lerobot_dataset("test/demos", root=root)
    assert [int(dataset[step]["stamp_ns.wrist"]) for step in range(4)] == wrist.tolist()
    assert [int(dataset[step]["stamp_ns.front"]) for step in range(4)] == demo.stamps_ns.tolist()


def test_a_dataset_from_before_frames_had_stamps_is_continued(
    root: Path, make_demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(lerobot_format, "_like", without_frame_stamps)
        write(root, make_demo(seed=1, steps=3))
    write(root, make_demo(seed=2, steps=3))
    assert open_demos(root).num_frames == 6
    assert not [name for name in json.loads((root / INFO).read_text())["features"] if name.startswith("stamp_ns.")]


def without_frame_stamps(table: Any, there: object) -> Any:
    kept = {n: v for n, v in table.features.items() if not n.startswith("stamp_ns.")}
    return dataclasses.replace(table, features=kept, columns={n: c for n, c in table.columns.items() if n in kept})


def test_facts_of_an_episode_are_in_its_line_of_the_recording(root: Path, make_demo: MakeDemo) -> None:
    write(root, dataclasses.replace(make_demo(seed=1), facts={"rate_hz": 9.7, "dropped_frames": 2}))
    note = json.loads((root / RECORDING).read_text())
    assert note["rate_hz"] == 9.7 and note["dropped_frames"] == 2 and note["seed"] == 1


def test_episodes_with_and_without_corrections_do_not_mix(root: Path, make_demo: MakeDemo) -> None:
    demo = make_demo(seed=1, steps=3)
    no = np.zeros(3, np.bool_)
    write(root, dataclasses.replace(demo, corrections=Corrections(no, demo.actions, ~no)))
    with pytest.raises(DataError, match=r"intervention is bool \[1\] there and absent here"):
        write(root, make_demo(seed=2, steps=3))


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_finds_the_statistics_that_its_policies_need(
    root: Path, make_demo: MakeDemo, lerobot_dataset: Any
) -> None:
    demos = [make_demo(seed=seed, steps=6) for seed in range(3)]
    write(root, *demos)
    stats = lerobot_dataset("test/demos", root=root).meta.stats
    actions = np.concatenate([demo.actions for demo in demos]).astype(np.float32)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0), rtol=1e-5)
    assert stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    assert set(stats["action"]) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_lerobot_goes_on_with_a_dataset_of_ours(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    write(root, make_demo(seed=1, steps=3))
    more = make_demo(seed=2, steps=2)
    dataset = lerobot_dataset.resume("test/demos", root=root)
    for step in range(len(more)):
        dataset.add_frame(frame(more, step))
    dataset.save_episode()
    dataset.finalize()
    demos = open_demos(root)
    assert [len(episode) for episode in demos.episodes] == [3, 2]
    assert [episode.seed for episode in demos.episodes] == [1, None]
    np.testing.assert_array_equal(demos.images(4)["front"], png.decode(more.cameras["front"].png[1]))


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_we_open_what_lerobot_writes(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    recorded = [make_demo(seed=1, steps=3), make_demo(seed=2, steps=4, instruction="open the door")]
    features = {n: {**f, "shape": tuple(f["shape"])} for n, f in lerobot_format.features_of(recorded[0]).items()}
    dataset = lerobot_dataset.create("test/demos", fps=10, features=features, root=root, use_videos=False)
    for demo in recorded:
        for step in range(len(demo)):
            dataset.add_frame(frame(demo, step))
        dataset.save_episode()
    dataset.finalize()
    (root / EMBODIMENT).write_text(json.dumps(recorded[0].embodiment.to_dict()))
    demos = open_demos(root)
    assert demos.texts == ("lift the cube", "open the door")
    assert [(e.start, e.stop, e.success, e.driver) for e in demos.episodes] == [(0, 3, True, None), (3, 7, True, None)]
    np.testing.assert_array_equal(demos.actions, np.concatenate([d.actions for d in recorded]).astype(np.float32))
    expected = [png.decode(data) for demo in recorded for data in demo.cameras["front"].png]
    np.testing.assert_array_equal([demos.images(index)["front"] for index in range(7)], expected)
    np.testing.assert_array_equal(demos.images(5)["front"], expected[5])


def frame(demo: Demonstration, step: int) -> dict[str, Any]:
    """Return one step in the form that lerobot's own writer takes."""
    return {
        **{f"observation.images.{name}": png.decode(camera.png[step]) for name, camera in demo.cameras.items()},
        "observation.state": demo.states[step].astype(np.float32),
        "action": demo.actions[step].astype(np.float32),
        "action.executed": demo.executed[step].astype(np.float32),
        "control_step": demo.steps[step : step + 1],
        "next.success": demo.success[step : step + 1],
        "stamp_ns": demo.stamps_ns[step : step + 1],
        **{f"stamp_ns.{name}": stamps_ns[step : step + 1] for name, stamps_ns in demo.frame_stamps_ns.items()},
        "task": demo.instruction,
    }


def test_numbers_and_frames_come_back(root: Path, make_demo: MakeDemo) -> None:
    recorded = [make_demo(seed=seed, steps=seed + 2, success=seed != 1) for seed in range(3)]
    write(root, *recorded)
    demos = open_demos(root)
    assert demos.num_frames == 9
    assert demos.embodiment == recorded[0].embodiment
    assert demos.cameras == {"front": (24, 32), "wrist": (24, 32)}
    assert [(e.seed, len(e), e.success, e.driver) for e in demos.episodes] == [
        (0, 2, True, "expert"),
        (1, 3, False, "expert"),
        (2, 4, True, "expert"),
    ]
    assert [(e.start, e.stop) for e in demos.episodes] == [(0, 2), (2, 5), (5, 9)]
    np.testing.assert_allclose(demos.states, np.concatenate([d.states for d in recorded]), rtol=1e-6)
    assert demos.executed is not None
    np.testing.assert_allclose(demos.executed, np.concatenate([d.executed for d in recorded]), rtol=1e-6)
    wrist = [png.decode(data) for d in recorded for data in d.cameras["wrist"].png]
    np.testing.assert_array_equal([demos.images(index)["wrist"] for index in range(9)], wrist)


def test_frames_are_stored_at_the_size_asked_for(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo(image_size=16))
    demos = open_demos(root)
    assert demos.cameras == {"front": (16, 16), "wrist": (16, 16)}
    original = png.decode(make_demo().cameras["front"].png[0])
    np.testing.assert_array_equal(demos.images(0)["front"], resize(original, 16, 16))
    assert (demos.embodiment.cameras[0].height, demos.embodiment.cameras[0].width) == (24, 32)


def test_several_datasets_read_as_one(tmp_path: Path, make_demo: MakeDemo) -> None:
    write(tmp_path / "a", make_demo(seed=1, steps=3))
    write(tmp_path / "b", make_demo(seed=2, steps=2, driver="nano", instruction="open the door"))
    demos = open_demos([tmp_path / "a", tmp_path / "b"])
    assert [(e.start, e.stop, e.driver, e.source.name) for e in demos.episodes] == [
        (0, 3, "expert", "a"),
        (3, 5, "nano", "b"),
    ]
    assert demos.texts == ("lift the cube", "open the door")
    np.testing.assert_array_equal(demos.images(4)["front"], open_demos(tmp_path / "b").images(1)["front"])


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_a_dataset_is_continued(root: Path, make_demo: MakeDemo, lerobot_dataset: Any) -> None:
    write(root, make_demo(seed=1), make_demo(seed=2))
    with LeRobotWriter(root) as writer:
        assert (writer.num_episodes, writer.num_frames) == (2, 8)
        assert writer.recorded == {(1, "expert", ""), (2, "expert", "")}
        assert writer.has(2, "expert", "lift"), "an older dataset does not say its world"
        writer.write(make_demo(seed=3, instruction="open the door"))
    assert [e.seed for e in open_demos(root).episodes] == [1, 2, 3]
    dataset = lerobot_dataset("test/demos", root=root)
    assert (len(dataset), dataset[11]["task"]) == (12, "open the door")


def test_continued_statistics_equal_those_of_one_session(tmp_path: Path, make_demo: MakeDemo) -> None:
    demos = [make_demo(seed=seed, steps=seed + 2) for seed in range(3)]
    write(tmp_path / "once", *demos)
    for demo in demos:
        write(tmp_path / "thrice", demo)
    once, thrice = (json.loads((tmp_path / name / STATS).read_text()) for name in ("once", "thrice"))
    for feature in once:
        for key in once[feature]:
            np.testing.assert_allclose(thrice[feature][key], once[feature][key], rtol=1e-9, atol=1e-12)


class Crash(BaseException):
    """An error that stands for the death of the process."""


@pytest.mark.parametrize("dies_before", range(6))
def test_a_crash_at_any_write_costs_the_unfinished_episode_only(
    root: Path, make_demo: MakeDemo, monkeypatch: pytest.MonkeyPatch, dies_before: int
) -> None:
    write(root, make_demo(seed=1))
    writes_left = [dies_before]

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if writes_left[0] == 0:
                raise Crash
            writes_left[0] -= 1
            real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for module, names in WRITES.items():
            for name in names:
                patch.setattr(module, name, dying(getattr(module, name)))
        with contextlib.suppress(Crash):
            write(root, make_demo(seed=2, instruction="open the door"))
    survived = [episode.seed for episode in open_demos(root).episodes]
    assert survived in ([1], [1, 2])
    write(root, make_demo(seed=3, instruction="stack"))
    demos = open_demos(root)
    assert [e.seed for e in demos.episodes] == [*survived, 3]
    assert demos.episodes[-1].instruction == "stack"
    np.testing.assert_allclose(demos.actions[-4:], make_demo(seed=3).actions, rtol=1e-6)
    info = json.loads((root / INFO).read_text())
    assert (info["total_episodes"], info["total_frames"]) == (len(demos.episodes), demos.num_frames)


def test_a_note_that_a_crash_cut_short_is_dropped(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo(seed=1))
    with (root / RECORDING).open("a") as file:
        file.write('{"episode": 1, "se')
    write(root, make_demo(seed=2))
    assert [e.seed for e in open_demos(root).episodes] == [1, 2]


def test_what_a_killed_writer_left_half_written_is_removed_and_nothing_else(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo(seed=1))
    table = numbered_file(root, "data", 1)
    left = (table.with_name(f"{table.name}.0a1b2c3d.tmp"), root / "meta" / "info.json.ffffffff.tmp")
    for path in left:
        path.write_bytes(b"half")
    (root / "meta" / "notes.tmp").write_text("mine")
    write(root, make_demo(seed=2))
    assert not any(path.exists() for path in left)
    assert (root / "meta" / "notes.tmp").read_text() == "mine"
    assert [episode.seed for episode in open_demos(root).episodes] == [1, 2]


def test_two_processes_cannot_write_one_dataset(root: Path) -> None:
    with LeRobotWriter(root), pytest.raises(DataError, match=r"being written by process \d+"):
        LeRobotWriter(root)
    LeRobotWriter(root).close()


def test_wherever_the_power_is_cut_finished_episodes_are_whole(
    root: Path, make_demo: MakeDemo, tmp_path: Path, power_cut: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every rename and every fsync, the test checks the disk as a power cut would have left it."""
    finished: list[int] = []
    moments = 0

    def cut_after(call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            nonlocal moments
            call(*arguments)
            moments += 1
            require_survivors(power_cut.survivors(tmp_path), tmp_path / f"after_{moments}", finished)

        return called

    monkeypatch.setattr(os, "fsync", cut_after(power_cut.fsync))
    monkeypatch.setattr(os, "replace", cut_after(power_cut.replace))
    with LeRobotWriter(root) as writer:
        for seed in range(3):
            writer.write(make_demo(seed=seed, instruction=f"lift cube {seed}"))
            finished.append(seed)
    require_survivors(power_cut.survivors(tmp_path), tmp_path / "end", finished)
    assert moments > 50


def require_survivors(survivors: dict[str, bytes], copy: Path, finished: list[int]) -> None:
    """Assert that the disk's dataset has all finished episodes, and at most one more, which was being written."""
    for name, content in survivors.items():
        if name.startswith("demos/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
    if not finished:
        return
    demos = open_demos(copy / "demos")
    assert [episode.seed for episode in demos.episodes][: len(finished)] == finished
    assert len(demos.episodes) <= len(finished) + 1
    for number in finished:
        assert demos.images(demos.episodes[number].start)


def test_a_full_disk_keeps_the_episodes_before_and_says_how_many(
    small_disk: Callable[[int], Path], make_demo: MakeDemo
) -> None:
    root, seeds = small_disk(600) / "demos", itertools.count()
    with LeRobotWriter(root) as writer:
        with pytest.raises(DataError, match=r"No space left on device\. Its \d+ finished episodes are safe\. Make"):
            while True:
                writer.write(make_demo(seed=next(seeds), steps=8))
        kept = writer.num_episodes
    assert kept > 0
    assert [episode.seed for episode in open_demos(root).episodes] == list(range(kept))


def test_a_folder_with_something_else_is_left_alone(root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"not empty and holds no meta/info\.json.*Choose another folder"):
        LeRobotWriter(root)
    assert [path.name for path in root.iterdir()] == ["thesis.tex"]


def test_another_embodiment_is_refused_with_what_differs(root: Path, make_demo: MakeDemo) -> None:
    demo = make_demo()
    write(root, demo)
    slower = dataclasses.replace(demo, embodiment=dataclasses.replace(demo.embodiment, rate_hz=5.0))
    with pytest.raises(DataError, match=r"another embodiment: rate_hz is 10\.0 there and 5\.0 here"):
        write(root, slower)
    assert len(open_demos(root).episodes) == 1


def test_another_frame_size_is_refused_with_what_differs(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo())
    with pytest.raises(DataError, match=r"images\.front is image \[24, 32, 3\] there and image \[16, 16, 3\] here"):
        write(root, make_demo(image_size=16))


def test_numbers_that_are_not_finite_are_refused(root: Path, make_demo: MakeDemo) -> None:
    demo = make_demo()
    actions = demo.actions.copy()
    actions[2, 0] = np.nan
    with pytest.raises(DataError, match="action holds numbers that are not finite, in step 2"):
        write(root, dataclasses.replace(demo, actions=actions))


def test_a_camera_that_the_embodiment_lacks_is_refused(root: Path, make_demo: MakeDemo) -> None:
    demo = make_demo()
    extra = dataclasses.replace(demo.embodiment, cameras=(*demo.embodiment.cameras, CameraSpec("side", 24, 32)))
    with pytest.raises(
        DataError, match=r"has the cameras front, wrist, but the embodiment 'toy' has front, wrist, side"
    ):
        write(root, dataclasses.replace(demo, embodiment=extra))


def test_a_missing_embodiment_is_explained(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo())
    (root / EMBODIMENT).unlink()
    with pytest.raises(DataError, match=r"embodiment\.json is missing, so nothing says what the numbers in"):
        open_demos(root)


def test_a_misspelt_camera_is_named(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo())
    demos = open_demos(root)
    with pytest.raises(DataError, match="unknown camera 'fronnt'; did you mean 'front'"):
        demos.film(demos.episodes[0], "fronnt")


def test_a_folder_without_a_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*embodiment\.json.*Is it the folder of a LeRobot dataset"):
        open_demos(tmp_path)


def test_a_damaged_data_file_is_named(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo())
    path = numbered_file(root, "data", 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"file-000\.parquet is damaged"):
        open_demos(root)


def test_a_missing_data_file_is_named(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo(seed=1), make_demo(seed=2))
    numbered_file(root, "data", 1).unlink()
    with pytest.raises(DataError, match=r"file-001\.parquet is missing"):
        open_demos(root)


def test_a_column_that_is_missing_is_named(root: Path, make_demo: MakeDemo) -> None:
    import pyarrow.parquet as pq

    write(root, make_demo())
    path = numbered_file(root, "data", 0)
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    with pytest.raises(DataError, match=r"file-000\.parquet has no column action\. Available: observation"):
        open_demos(root)


def test_datasets_of_two_arms_do_not_read_as_one(tmp_path: Path, make_demo: MakeDemo) -> None:
    demo = make_demo()
    write(tmp_path / "a", demo)
    write(tmp_path / "b", dataclasses.replace(demo, embodiment=dataclasses.replace(demo.embodiment, name="ur5")))
    with pytest.raises(DataError, match="b was recorded with another embodiment: name is ur5 there and toy here"):
        open_demos([tmp_path / "a", tmp_path / "b"])


def test_an_episode_that_the_totals_do_not_count_yet_is_read(root: Path, make_demo: MakeDemo) -> None:
    write(root, make_demo(seed=1))
    totals = (root / INFO).read_bytes()
    write(root, make_demo(seed=2))
    (root / INFO).write_bytes(totals)  # the state after a crash between the episode's row and the totals
    assert [episode.seed for episode in open_demos(root).episodes] == [1, 2]


def test_a_moved_dataset_still_opens(root: Path, make_demo: MakeDemo, tmp_path: Path) -> None:
    write(root, make_demo(seed=1))
    moved = shutil.move(root, tmp_path / "elsewhere")
    assert open_demos(moved).episodes[0].seed == 1


@given(st.integers(0, 5_000_000))
def test_the_place_of_a_file_is_found_again(number: int) -> None:
    assert file_number(position("data", number), "data") == number
