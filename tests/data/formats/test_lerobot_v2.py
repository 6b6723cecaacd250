"""Tests of LeRobot v2.0 and v2.1, compared with lerobot's own conversion to version 3."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_robot.core.errors import DataError
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.lerobot.source import LeRobotSource
from vla_robot.data.formats.lerobot.tables import LeRobotTables
from vla_robot.data.formats.open import open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("lerobot")

LENGTHS = (4, 6)
CAMERA = "observation.images.front"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_v2(tmp_path / "old")


def write_v2(root: Path) -> Path:
    """A dataset of two episodes as lerobot wrote them until v2.1: a file each, and lists in JSON lines."""
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    vector = {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    features = {
        "action": vector,
        "observation.state": vector,
        CAMERA: {"dtype": "image", "shape": [8, 10, 3], "names": ["height", "width", "channels"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
    }
    info = {
        "codebase_version": "v2.1", "robot_type": "so101", "total_episodes": 2, "total_frames": sum(LENGTHS),
        "total_tasks": 2, "total_videos": 0, "total_chunks": 1, "chunks_size": 1000, "fps": 10,
        "splits": {"train": "0:2"}, "features": features, "video_path": None,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }  # fmt: skip
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = [f"task {i}" for i in range(2)]
    _lines(root / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    episodes = [{"episode_index": i, "tasks": [tasks[i]], "length": n} for i, n in enumerate(LENGTHS)]
    _lines(root / "meta" / "episodes.jsonl", episodes)
    first, stats = 0, []
    for index, length in enumerate(LENGTHS):
        table = _table(index, length, first)
        pq.write_table(table, root / "data" / "chunk-000" / f"episode_{index:06d}.parquet")
        stats.append({"episode_index": index, "stats": _stats(table)})
        first += length
    _lines(root / "meta" / "episodes_stats.jsonl", stats)
    return root


def test_versions_2_are_read(old: Path) -> None:
    _require_content(open_source(old))
    info = old / "meta" / "info.json"
    info.write_text(info.read_text().replace('"v2.1"', '"v2.0"'))
    (old / "meta" / "episodes_stats.jsonl").rename(old / "meta" / "stats.json")
    _require_content(open_source(old))


def test_version_2_1_is_read_as_lerobot_converts_it(old: Path, tmp_path: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    new = Path(shutil.copytree(old, tmp_path / "new"))
    convert_dataset("new", root=new, push_to_hub=False)
    ours, theirs = open_source(old), open_source(new)
    assert isinstance(ours, LeRobotSource) and isinstance(theirs, LeRobotSource)
    assert theirs.lerobot_features.keys() == ours.lerobot_features.keys()
    _require_content(theirs)


def test_the_tasks_of_version_2_may_have_gaps(old: Path) -> None:
    lines = [
        {"task_index": 1, "task": "task 1"},
        {"task_index": 7, "task": "seven"},
        {"task_index": 0, "task": "task 0"},
    ]
    _lines(old / "meta" / "tasks.jsonl", lines)
    _require_content(open_source(old))
    _lines(old / "meta" / "tasks.jsonl", lines[1:])
    with pytest.raises(DataError, match=r"episode 1 has task_index 1, which is none of the 2 tasks"):
        open_source(old).episode(1)


def test_a_dataset_of_version_2_is_converted_and_never_written_to(old: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*.*") if path.is_file()}
    with pytest.raises(DataError, match=r"of version v2.1; only v3.0 is written"):
        LeRobotTables(old)
    assert {path: path.read_bytes() for path in before} == before
    convert(open_source(old), tmp_path / "new", "lerobot", Options())
    _require_content(open_source(tmp_path / "new"))


def test_an_episode_of_no_steps_is_left_out_and_counted(old: Path) -> None:
    _lines(
        old / "meta" / "episodes.jsonl", [{"episode_index": i, "tasks": [], "length": n} for i, n in enumerate((0, 6))]
    )
    source = open_source(old)
    assert (source.lengths.tolist(), source.notes) == ([6], ("Episodes of 0 steps that were left out: 1.",))
    np.testing.assert_array_equal(source.episode(0).numbers("action"), _vectors(1, 6))


def test_an_episode_that_is_missing_is_named(old: Path) -> None:
    (old / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    source = open_source(old)
    source.episode(0)
    with pytest.raises(DataError, match=r"episode_000001.parquet is missing"):
        source.episode(1)


def _require_content(source: EpisodeSource) -> None:
    assert (source.lengths.tolist(), source.rate_hz) == (list(LENGTHS), 10.0)
    for index, length in enumerate(LENGTHS):
        episode = source.episode(index)
        np.testing.assert_array_equal(episode.numbers("action"), _vectors(index, length))
        assert set(episode.instructions()) == {f"task {index}"}
        np.testing.assert_array_equal(episode.frames(CAMERA.replace(".", "/")).decode(1), _frame(index, 1))


def _vectors(episode: int, length: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(length, 3)).astype(np.float32)


def _frame(episode: int, step: int) -> np.ndarray:
    return np.random.default_rng([episode, step]).integers(0, 256, (8, 10, 3), np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _table(episode: int, length: int, first: int):
    steps = np.arange(length)
    vectors = pa.array(list(_vectors(episode, length)), pa.list_(pa.float32(), 3))
    frames = [{"bytes": _png(_frame(episode, step)), "path": None} for step in range(length)]
    return pa.table(
        {
            "action": vectors,
            "observation.state": vectors,
            CAMERA: pa.array(frames, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "timestamp": pa.array((steps / 10).astype(np.float32)),
            "frame_index": pa.array(steps),
            "episode_index": pa.array(np.full(length, episode)),
            "index": pa.array(steps + first),
            "task_index": pa.array(np.full(length, episode)),
        }
    )


def _stats(table) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in ("action", "observation.state", "timestamp"):
        values = np.stack([np.atleast_1d(v) for v in table[name].to_pylist()]).astype(np.float64)
        kinds = {k: getattr(values, k)(axis=0).tolist() for k in ("min", "max", "mean", "std")}
        found[name] = {**kinds, "count": [len(values)]}
    image = {k: [[[0.5]], [[0.5]], [[0.5]]] for k in ("min", "max", "mean", "std")}
    found[CAMERA] = {**image, "count": [len(table)]}
    return found


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
