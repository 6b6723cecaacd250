"""Tests of LeRobot datasets of other programs: lerobot's writer and converter, depth, jitter, unusual columns."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, CameraSpec
from vla_robot.core.errors import DataError
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.lerobot import video as lerobot_video
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.layout import EMBODIMENT, INFO, TASKS, write_json
from vla_robot.data.formats.lerobot.source import open_lerobot
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.recognise import assumed_recipe, facts_of
from vla_robot.data.pipeline.mixture import open_parts

from ..conftest import EMBODIMENT as TOY
from ..conftest import MakeDemo

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RATE_HZ = 10
SIZE = 64
RGB = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
VECTOR = {"dtype": "float32", "shape": (7,), "names": None}


@pytest.fixture
def ours(tmp_path: Path, make_demo: MakeDemo) -> Path:
    """A dataset of two episodes of 4 and 5 steps, written by our writer."""
    root = tmp_path / "ours"
    with LeRobotWriter(root) as writer:
        for seed in range(2):
            writer.write(make_demo(seed=seed, steps=4 + seed, instruction=f"task {seed}"))
    return root


def write_theirs(
    cls: Any, root: Path, features: Mapping[str, Any], episodes: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Write a dataset by lerobot's own writer."""
    use_videos = any(feature["dtype"] == "video" for feature in features.values())
    dataset = cls.create("test/theirs", fps=RATE_HZ, features=dict(features), root=root, use_videos=use_videos)
    for frames in episodes:
        for frame in frames:
            dataset.add_frame(dict(frame))
        dataset.save_episode()
    dataset.finalize()


def edit_tables(root: Path, column: str, change: Any) -> None:
    """Change one column of every table: `change` gets a list with a value for each step."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        place, old = table.column_names.index(column), table[column]
        pq.write_table(table.set_column(place, column, pa.array(change(old.to_pylist()), old.type)), path)


def edit_info(root: Path, change: Any) -> None:
    info = json.loads((root / INFO).read_text())
    change(info)
    (root / INFO).write_text(json.dumps(info))


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "task", "what_to_do"])
def test_tasks_are_the_index_of_their_table_whatever_it_is_called(ours: Path, name: str | None) -> None:
    pd = pytest.importorskip("pandas")
    # Out of order, with a gap and a task that no frame has.
    frame = pd.DataFrame({"task_index": [1, 9, 0]}, index=pd.Index(["task 1", "another", "task 0"], name=name))
    frame.to_parquet(ours / TASKS)
    source, demos = open_lerobot(ours), open_demos(ours)
    assert [source.episode(i).instructions()[0] for i in range(2)] == ["task 0", "task 1"]
    assert [episode.instruction for episode in demos.episodes] == ["task 0", "task 1"]


def test_a_task_index_that_is_no_task_is_named(ours: Path) -> None:
    edit_tables(ours, "task_index", lambda values: [5] * len(values))
    with pytest.raises(DataError, match=r"episode 0 has task_index 5, which is none of the 2 tasks"):
        open_lerobot(ours).episode(0)
    with pytest.raises(DataError, match=r"episode 0 has task_index 5, which is none of the 2 tasks"):
        open_demos(ours)


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_each_step_has_its_own_task(tmp_path: Path, lerobot_dataset: Any) -> None:
    root, rng = tmp_path / "theirs", np.random.default_rng(0)
    shape = (24, 32, 3)
    features = {
        **{f"observation.images.{name}": {**RGB, "dtype": "image", "shape": shape} for name in ("front", "wrist")},
        "observation.state": {**VECTOR, "shape": (3,)},
        "action": {**VECTOR, "shape": (2,)},
    }
    told = [["reach", "reach", "grasp", "lift"], ["grasp", "lift"]]
    frames = [
        [
            {
                **{name: rng.integers(0, 256, shape, np.uint8) for name in features if "images" in name},
                "observation.state": rng.normal(size=3).astype(np.float32),
                "action": rng.normal(size=2).astype(np.float32),
                "task": task,
            }
            for task in tasks
        ]
        for tasks in told
    ]
    write_theirs(lerobot_dataset, root, features, frames)
    write_json(root / EMBODIMENT, TOY.to_dict())
    reopened, source, demos = lerobot_dataset("test/theirs", root=root), open_lerobot(root), open_demos(root)
    expected = [task for tasks in told for task in tasks]
    assert [reopened[i]["task"] for i in range(6)] == expected
    assert [text for i in range(2) for text in source.episode(i).instructions()] == expected
    assert [demos.instruction_at(i) for i in range(6)] == expected
    assert demos.texts == ("reach", "grasp", "lift")
    both = open_demos([root, root])
    assert [both.instruction_at(i) for i in range(12)] == expected * 2
    np.testing.assert_array_equal(demos.actions, np.stack([f["action"] for e in frames for f in e]))


# -- depth -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize("unit", ["m", "mm"])
def test_depth_is_read_in_metres_as_lerobot_reads_it(
    tmp_path: Path, lerobot_dataset: Any, kind: str, unit: str
) -> None:
    root = tmp_path / "theirs"
    depth = {**RGB, "dtype": kind, "shape": (SIZE, SIZE, 1), "info": {"is_depth_map": True}}
    features = {"observation.images.depth": depth, "observation.images.front": {**RGB, "dtype": kind}, "action": VECTOR}
    slope = np.linspace(0.3, 1.5, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE, 1)
    metres = [slope + np.float32(0.5 * step) for step in range(3)]
    frames = [
        {
            "observation.images.depth": m if unit == "m" else (m * 1000).astype(np.uint16),
            "observation.images.front": np.full((SIZE, SIZE, 3), 80, np.uint8),
            "action": np.zeros(7, np.float32),
            "task": "look",
        }
        for m in metres
    ]
    write_theirs(lerobot_dataset, root, features, [frames])
    reopened, source = lerobot_dataset("test/theirs", root=root, depth_output_unit="m"), open_lerobot(root)
    assert str(source.fields["observation/images/depth"]) == f"image {SIZE} x {SIZE} x 1"
    film = source.episode(0).frames("observation/images/depth")
    for step in range(3):
        expected = reopened[step]["observation.images.depth"].numpy().reshape(SIZE, SIZE, 1)
        np.testing.assert_allclose(film.decode(step), expected, rtol=1e-5)
        np.testing.assert_allclose(film.decode(step), metres[step], atol=0.003)
        assert film.decode(step).dtype == np.float32
    recipe = assumed_recipe(facts_of(source))
    assert (recipe.cameras.primary, recipe.cameras.secondary) == ("observation/images/front", None)
    convert(source, tmp_path / "rlds", "rlds", Options())
    converted = open_source(tmp_path / "rlds").episode(0).frames("observation/depth")
    np.testing.assert_array_equal(converted.decode(2), film.decode(2))


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({}, r"a camera that is depth by its name and not by info.json"),
        ({"is_depth_map": True}, r"a depth image whose depth_unit in info.json is None"),
        ({"video.is_depth_map": True, "depth_unit": "inch"}, r"a depth image whose depth_unit in info.json is 'inch'"),
    ],
)
def test_depth_without_a_description_is_refused_by_its_name(
    tmp_path: Path, make_demo: MakeDemo, info: Mapping[str, Any], reason: str
) -> None:
    root = _with_camera_called(tmp_path, make_demo, "front_depth")
    edit_info(root, lambda content: content["features"]["observation.images.front_depth"].update(info=info))
    source = open_lerobot(root)
    assert "observation/images/front_depth" not in source.fields
    assert list(source.left_out) == ["observation/images/front_depth"]
    assert plain_cameras(root) == ["observation/images/wrist"]
    with pytest.raises(DataError, match=rf"'observation/images/front_depth' is not read: {reason}"):
        source.episode(0, ["observation/images/front_depth"])


def plain_cameras(root: Path) -> list[str]:
    """Return the cameras that a policy can use."""
    return [name for name, field in open_lerobot(root).fields.items() if field.is_colour]


def test_a_colour_camera_beside_a_depth_camera_keeps_its_frames(tmp_path: Path, make_demo: MakeDemo) -> None:
    root = _with_camera_called(tmp_path, make_demo, "depth_camera_rgb")
    assert plain_cameras(root) == ["observation/images/wrist", "observation/images/depth_camera_rgb"]


def test_demonstrations_do_not_take_depth_for_colour(ours: Path) -> None:
    marked = {"is_depth_map": True, "depth_unit": "mm"}
    edit_info(ours, lambda info: info["features"]["observation.images.front"].update(info=marked))
    with pytest.raises(DataError, match=r"embodiment.json: field 'observation/images/front' holds .* 1, not colour"):
        open_demos(ours)


def _with_camera_called(tmp_path: Path, make_demo: MakeDemo, name: str) -> Path:
    root = tmp_path / "named"
    demo: Demonstration = make_demo(steps=3)
    with LeRobotWriter(root) as writer:
        writer.write(demo)
    old, new = "observation.images.front", f"observation.images.{name}"
    edit_info(root, lambda info: info["features"].update({new: info["features"].pop(old)}))
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([new if c == old else c for c in table.column_names]), path)
    return root


# -- videos ------------------------------------------------------------------------------------------------------------


def colour(episode: int, step: int) -> np.ndarray:
    """Return a frame that is different for each step, in colours that the codec keeps apart."""
    frame = np.full((SIZE, SIZE, 3), 30 + 60 * episode, np.uint8)
    frame[:, : 8 * (step + 1)] = 220
    return frame


def write_video(path: Path, frames: Sequence[np.ndarray]) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ, options={"crf": "10", "g": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture
def filmed(tmp_path: Path, lerobot_dataset: Any) -> Path:
    """A dataset of version 2.1: two episodes of 5 steps, the video of the first one frame short."""
    assert lerobot_dataset is not None
    root, counts = tmp_path / "filmed", (4, 5)
    (root / "data" / "chunk-000").mkdir(parents=True)
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    names = ("frame_index", "episode_index", "index", "task_index")
    features = {
        "observation.images.front": {**RGB, "shape": [SIZE, SIZE, 3], "info": {"video.fps": RATE_HZ}},
        "action": {**VECTOR, "shape": [7]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(names, scalar),
    }
    info = {
        "codebase_version": "v2.1", "robot_type": "so101", "total_episodes": 2, "total_frames": 10, "total_tasks": 1,
        "total_videos": 2, "total_chunks": 1, "chunks_size": 1000, "fps": RATE_HZ, "splits": {"train": "0:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }  # fmt: skip
    write_json(root / INFO, info)
    lines: dict[str, list[dict[str, Any]]] = {"tasks": [{"task_index": 0, "task": "look"}], "episodes": []}
    lines["episodes_stats"] = []
    for number, count in enumerate(counts):
        steps, videos = np.arange(5), root / "videos" / "chunk-000" / "observation.images.front"
        write_video(videos / f"episode_{number:06d}.mp4", [colour(number, step) for step in range(count)])
        table = pa.table(
            {
                "action": pa.array(list(np.zeros((5, 7), np.float32)), pa.list_(pa.float32(), 7)),
                "timestamp": pa.array((steps / RATE_HZ).astype(np.float32)),
                "frame_index": steps, "episode_index": np.full(5, number), "index": 5 * number + steps,
                "task_index": np.zeros(5, np.int64),
            }
        )  # fmt: skip
        pq.write_table(table, root / "data" / "chunk-000" / f"episode_{number:06d}.parquet")
        lines["episodes"].append({"episode_index": number, "tasks": ["look"], "length": 5})
        stats = {name: [0.0] * 7 for name in ("min", "max", "mean", "std")} | {"count": [5]}
        lines["episodes_stats"].append({"episode_index": number, "stats": {"action": stats}})
    for name, rows in lines.items():
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def as_version_3(root: Path) -> Path:
    """Convert the dataset by lerobot, which puts the videos of both episodes into one file."""
    module = pytest.importorskip("lerobot.scripts.convert_dataset_v21_to_v30")
    module.convert_dataset(root.name, root=root, push_to_hub=False)
    return root


def require_frames(root: Path, shown: Sequence[Sequence[int]]) -> None:
    """Assert that each step has the frame of the step with the given number."""
    source = open_lerobot(root)
    for number, steps in enumerate(shown):
        film = source.episode(number).frames("observation/images/front")
        for step, seen in enumerate(steps):
            off = np.abs(film.decode(step).astype(int) - colour(number, seen)).mean()
            assert off < 8, f"episode {number}, step {step} is not frame {seen}"


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("version", [2, 3])
def test_the_last_step_of_a_video_that_is_one_frame_short_has_the_frame_before(
    filmed: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = filmed if version == 2 else as_version_3(filmed)
    require_frames(root, [[0, 1, 2, 3, 3], [0, 1, 2, 3, 4]])
    told = [record.getMessage() for record in caplog.records if "short" in record.getMessage()]
    assert len(told) == 1 and "episode 0: field 'observation/images/front': the video is one frame short" in told[0]


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_demonstrations_whose_frames_are_in_videos_are_read(filmed: Path) -> None:
    arm = dataclasses.replace(TOY, action=ActionSpace("eef_delta", "base", TOY.action.dims[:1] * 7), state=())
    arm = dataclasses.replace(arm, cameras=(CameraSpec("front", SIZE, SIZE),))
    write_json(filmed / EMBODIMENT, arm.to_dict())
    demos = open_demos(filmed)
    assert (demos.num_frames, demos.states.shape, demos.cameras) == (10, (10, 0), {"front": (SIZE, SIZE)})
    for index in range(10):
        frame = demos.images(index)["front"]
        shown = colour(index // 5, index % 5 if index != 4 else 3)  # the first video is one frame short
        assert np.abs(frame.astype(int) - shown).mean() < 8


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("version", [2, 3])
def test_a_video_that_lacks_more_is_an_error_with_the_step(filmed: Path, version: int) -> None:
    video = filmed / "videos" / "chunk-000" / "observation.images.front"
    write_video(video / f"episode_00000{version - 2}.mp4", [colour(0, step) for step in range(3)])
    root = filmed if version == 2 else as_version_3(filmed)
    with pytest.raises(DataError, match=r"no frame within half a period \(0.0500 s\).* step 3 \(at"):
        open_lerobot(root).episode(version - 2).frames("observation/images/front").decode(0)


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("version", [2, 3])
def test_frames_that_are_off_by_less_than_half_a_period_belong_to_their_step(filmed: Path, version: int) -> None:
    video = filmed / "videos" / "chunk-000" / "observation.images.front" / "episode_000000.mp4"
    write_video(video, [colour(0, step) for step in range(5)])
    root = filmed if version == 2 else as_version_3(filmed)
    jitter = np.array([0.049, -0.008, 0.008, -0.049, 0.049])
    edit_tables(root, "timestamp", lambda values: np.array(values) + np.resize(jitter, len(values)))
    require_frames(root, [[0, 1, 2, 3, 4]] * 2)


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_a_damaged_video_is_named(filmed: Path) -> None:
    video = filmed / "videos" / "chunk-000" / "observation.images.front" / "episode_000000.mp4"
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match=r"episode 0.*front.*episode_000000.mp4 cannot be decoded"):
        open_lerobot(filmed).episode(0).frames("observation/images/front").decode(0)


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_one_line_says_which_decoder_is_used(filmed: Path) -> None:
    code = (
        "import sys; from vla_robot.data.formats.lerobot.source import open_lerobot\n"
        "for i in (0, 1): open_lerobot(sys.argv[1]).episode(i).frames('observation/images/front').decode(0)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(filmed)], capture_output=True, text=True, check=True).stderr
    used = "torchcodec" if lerobot_video.video_decoder() == "torchcodec" else "PyAV"
    lines = [line for line in told.splitlines() if "one frame short" not in line]
    assert lines == [] if used == "torchcodec" else len(lines) == 1 and "videos are decoded by PyAV" in lines[0]


# -- numbers -----------------------------------------------------------------------------------------------------------


def _null_row(values: list[Any]) -> list[Any]:
    return [None if step == 2 else value for step, value in enumerate(values)]


def _null_number(values: list[Any]) -> list[Any]:
    return [[None, *value[1:]] if step == 2 else value for step, value in enumerate(values)]


def _nan(values: list[Any]) -> list[Any]:
    return [[float("nan"), *value[1:]] if step == 2 else value for step, value in enumerate(values)]


@pytest.mark.parametrize("damage", [_null_row, _null_number])
@pytest.mark.parametrize("column", ["action", "observation.state"])
def test_a_null_is_an_error_with_its_step_and_field(ours: Path, damage: Any, column: str) -> None:
    edit_tables(ours, column, damage)
    field = column.replace(".", "/")
    with pytest.raises(DataError, match=rf"episode 0: field '{field}' is null at step 2"):
        open_lerobot(ours).episode(0)
    with pytest.raises(DataError, match=rf"episode 0: field '{field}' is null at step 2"):
        open_demos(ours)


def test_a_number_that_is_not_finite_is_an_error_with_its_step_and_field(ours: Path) -> None:
    edit_tables(ours, "action", _nan)
    with pytest.raises(DataError, match=r"episode 0: the action of step 2 is not finite \(\[.*nan.*--skip-corrupt"):
        open_demos(ours)


def test_nulls_in_a_column_that_is_not_read_lose_nothing(ours: Path) -> None:
    edit_tables(ours, "stamp_ns", _null_row)
    episode = open_lerobot(ours).episode(0, ["action", "observation/state", "observation/images/front"])
    assert episode.numbers("action").shape == (4, 2)
    assert open_demos(ours).num_frames == 9


def test_a_column_with_nulls_that_no_policy_needs_loses_no_dataset(ours: Path, tmp_path: Path) -> None:
    edit_tables(ours, "stamp_ns", _null_row)
    edit_tables(ours, "action.executed", _null_number)
    lost = {"stamp_ns", "action/executed"}
    for to in ("lerobot", "rlds"):
        converted = convert(open_source(ours), tmp_path / to, to, Options())
        told = [line for line in converted.lost if "a column with nulls (in file-000.parquet) is not read" in line]
        assert {line.partition(":")[0] for line in told} == lost
        assert len(open_source(tmp_path / to)) == 2
    assert open_source(ours, skip_corrupt=True).num_skipped == 0
    edit_tables(ours, "action", _null_number)
    with pytest.raises(DataError, match=r"field 'action' is null at step 2"):
        convert(open_source(ours), tmp_path / "again", "lerobot", Options())


def test_numbers_that_are_not_finite_are_converted_as_they_are(ours: Path, tmp_path: Path) -> None:
    edit_tables(ours, "observation.state", _nan)
    source = open_lerobot(ours)
    convert(source, tmp_path / "lerobot", "lerobot", Options())
    again = open_source(tmp_path / "lerobot")
    for index in range(2):
        states = source.episode(index).numbers("observation/state")
        np.testing.assert_array_equal(again.episode(index).numbers("observation/state"), states)
    stats = json.loads((tmp_path / "lerobot" / "meta" / "stats.json").read_text())["observation.state"]
    states = np.concatenate([source.episode(i).numbers("observation/state") for i in range(2)])
    np.testing.assert_allclose(stats["min"], np.nanmin(states, axis=0))
    np.testing.assert_allclose(stats["max"], np.nanmax(states, axis=0))


def test_a_row_of_another_width_is_an_error_with_its_step(ours: Path) -> None:
    path = sorted((ours / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    place = table.column_names.index("action")
    uneven = pa.array([[0.0, 0.0], [0.0, 0.0], [0.0], [0.0, 0.0]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(place, "action", uneven), path)
    with pytest.raises(DataError, match=r"field 'action' has another number of values at step 2 than at step 0"):
        open_lerobot(ours).episode(0)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_damaged_episodes_are_skipped_and_counted(tmp_path: Path, make_demo: MakeDemo) -> None:
    root = tmp_path / "damaged"
    with LeRobotWriter(root) as writer:
        for seed in range(6):
            writer.write(make_demo(seed=seed, steps=4))
    files = sorted((root / "data").rglob("*.parquet"))
    for path, column, change in (
        (files[0], "action", _null_number),
        (files[1], "action", _nan),
        (files[2], "observation.images.front", _cut_off),
        (files[3], "observation.images.wrist", _null_row),
    ):
        table = pq.read_table(path)
        place, old = table.column_names.index(column), table[column]
        pq.write_table(table.set_column(place, column, pa.array(change(old.to_pylist()), old.type)), path)
    files[4].write_bytes(files[4].read_bytes()[:100])
    source = open_source(root, skip_corrupt=True)
    assert (len(source), source.num_skipped) == (1, 5)
    told = [str(line) for line in source.skipped]
    for line, reason in zip(
        told,
        [
            "episode 0: field 'action' is null at step 2",
            "episode 1: field 'action' is not finite at step 2",
            "episode 2, field 'observation/images/front', step 2: the frame is a PNG that is cut off",
            "episode 3: field 'observation/images/wrist' has no frame inside the table at step 2",
            "file-004.parquet is damaged",
        ],
        strict=True,
    ):
        assert reason in line
    np.testing.assert_array_equal(
        source.episode(0).numbers("action"), make_demo(seed=5, steps=4).actions.astype(np.float32)
    )
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own object, as a worker gets it
    assert (len(again), again.num_skipped) == (1, 5)
    assert {name: len(part) for name, part in open_parts(str(root), skip_corrupt=True).items()} == {
        "train": 1,
        "val": 0,
    }
    convert(source, tmp_path / "whole", "lerobot", Options())
    assert open_demos(tmp_path / "whole").num_frames == 4


def _cut_off(cells: list[Any]) -> list[Any]:
    return [{**c, "bytes": c["bytes"][:-20]} if step == 2 else c for step, c in enumerate(cells)]


@pytest.mark.slow  # importing lerobot takes up to half a minute
@pytest.mark.parametrize("frames", [None, 0, 3, 4])
def test_an_episode_whose_video_is_damaged_is_skipped(filmed: Path, frames: int | None) -> None:
    video = filmed / "videos" / "chunk-000" / "observation.images.front" / "episode_000001.mp4"
    if frames:
        write_video(video, [colour(1, step) for step in range(frames)])
    elif frames is None:
        video.unlink()
    else:
        video.write_bytes(video.read_bytes()[:-400])
    source = open_source(filmed, skip_corrupt=True)
    assert source.num_skipped == (0 if frames == 4 else 1)
    assert len(source) == 2 - source.num_skipped
    assert all("episode 1: field 'observation/images/front'" in str(line) for line in source.skipped)


# -- columns -----------------------------------------------------------------------------------------------------------


def test_columns_of_unknown_types_are_left_out_and_named(ours: Path, tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": "hello", "style": None, "camera": None}]]
    for path in sorted((ours / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        words = pa.array(rows * len(table))
        for name in ("language_persistent", "language_events", "audio"):
            table = table.append_column(name, words)
        pq.write_table(table.append_column("names", pa.array([["a", "b"]] * len(table))), path)
    language = {"dtype": "language", "shape": [1], "names": None}
    odd = {
        "language_persistent": language, "language_events": language,
        "audio": {"dtype": "audio", "shape": [1], "names": None}, "names": {"dtype": "string", "shape": [2]},
    }  # fmt: skip
    edit_info(ours, lambda info: info["features"].update(odd))
    source = open_lerobot(ours)
    assert source.left_out == {
        "language_persistent": "a language annotation",
        "language_events": "a language annotation",
        "audio": "a column of type 'audio'",
        "names": "a list of texts",
    }
    assert source.notes[0].startswith("Fields that are not read and were left out: language_persistent: a language")
    lost = convert(source, tmp_path / "converted", "lerobot", Options()).lost
    assert "audio: a column of type 'audio' is not read" in lost
    assert source.episode(1).numbers("action").shape == (5, 2)
    assert open_demos(ours).num_frames == 9


@pytest.mark.slow  # importing lerobot takes up to half a minute
def test_columns_without_the_usual_prefixes_are_found(tmp_path: Path, lerobot_dataset: Any) -> None:
    """The names are those of openpi's conversion of LIBERO."""
    root, rng = tmp_path / "theirs", np.random.default_rng(0)
    camera = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channel"]}
    features = {"image": camera, "wrist_image": camera, "state": {**VECTOR, "shape": (8,)}, "actions": VECTOR}
    frames = [
        {
            "image": rng.integers(0, 256, (24, 32, 3), np.uint8),
            "wrist_image": rng.integers(0, 256, (24, 32, 3), np.uint8),
            "state": rng.normal(size=8).astype(np.float32),
            "actions": rng.normal(size=7).astype(np.float32),
            "task": "open it",
        }
        for _ in range(3)
    ]
    write_theirs(lerobot_dataset, root, features, [frames])
    source = open_lerobot(root)
    recipe = assumed_recipe(facts_of(source))
    assert (recipe.action, recipe.state) == (("actions",), ("state",))
    assert (recipe.cameras.primary, recipe.cameras.wrist) == ("image", "wrist_image")
    np.testing.assert_array_equal(source.episode(0).frames("image").decode(1), frames[1]["image"])
    convert(source, tmp_path / "rlds", "rlds", Options())
    convert(open_source(tmp_path / "rlds"), tmp_path / "again", "lerobot", Options())
    again = open_lerobot(tmp_path / "again")
    assert again.lerobot_features.keys() == source.lerobot_features.keys()
    np.testing.assert_array_equal(again.episode(0).numbers("actions"), np.stack([f["actions"] for f in frames]))


def test_demonstrations_without_the_usual_prefixes_are_found(ours: Path) -> None:
    usual = {"action": "actions", "observation.state": "state", "observation.images.front": "front"}
    expected = open_demos(ours)
    images = expected.images(3)["front"]
    edit_info(ours, lambda info: info.update(features={usual.get(n, n): f for n, f in info["features"].items()}))
    for path in (ours / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([usual.get(name, name) for name in table.column_names]), path)
    demos = open_demos(ours)
    np.testing.assert_array_equal(demos.actions, expected.actions)
    np.testing.assert_array_equal(demos.states, expected.states)
    np.testing.assert_array_equal(demos.images(3)["front"], images)
