"""A LeRobot or HDF5 dataset of a stranger's making reaches no other file and fills no memory."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.record.bounds import MAX_STEPS
from vla_robot.record.demonstration import Demonstration
from vla_robot.record.hdf5 import open_hdf5
from vla_robot.record.lerobot_format import LeRobotWriter
from vla_robot.record.lerobot_source import open_lerobot

MakeDemo = Callable[..., Demonstration]
LARGE = 2**33
"""Values that no test could hold."""


@pytest.fixture
def lerobot(tmp_path: Path, make_demo: MakeDemo) -> Path:
    root = tmp_path / "demos"
    with LeRobotWriter(root) as writer:
        writer.write(make_demo(steps=3))
    return root


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of numbers that no dataset may show."""
    path = tmp_path / "secret"
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(21.0).reshape(3, 7)
    return path


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["data/demo_0/obs/state"] = np.ones((3, 2))
    return path


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def external_link(demo: Any, secret: Path) -> None:
    demo["obs/other"] = h5py.ExternalLink(str(secret), "/values")


def soft_link_out(demo: Any, secret: Path) -> None:
    demo.file["elsewhere"] = h5py.ExternalLink(str(secret), "/")
    demo["obs/other"] = h5py.SoftLink("/elsewhere/values")


def external_storage(demo: Any, secret: Path) -> None:
    demo.create_dataset("obs/other", (3, 7), np.uint8, external=[(str(secret), 0, 21)])


def virtual(demo: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 7), np.float64)
    layout[:] = h5py.VirtualSource(str(secret), "values", (3, 7))
    demo["obs"].create_virtual_dataset("other", layout)


@pytest.mark.parametrize("attack", [external_link, soft_link_out, external_storage, virtual])
def test_no_other_file_is_read_through_an_hdf5_file(
    hdf5: Path, secret: Path, attack: Callable[[Any, Path], None]
) -> None:
    with h5py.File(hdf5, "a") as file:
        attack(file["data/demo_0"], secret)
    with pytest.raises(DataError, match=r"demo\.hdf5.*(other|elsewhere)'.*another file"):
        open_hdf5(hdf5)


def test_a_later_demonstration_may_not_reach_out_either(hdf5: Path, secret: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data/demo_1/actions"] = np.zeros((3, 7))
        file["data/demo_1/obs/state"] = h5py.ExternalLink(str(secret), "/values")
    dataset = open_hdf5(hdf5)
    assert dataset.episode(0).numbers("observation/state").shape == (3, 2)
    with pytest.raises(DataError, match="'/data/demo_1/obs/state' is a link into another file"):
        dataset.episode(1)


def test_a_soft_link_within_the_file_is_followed(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["shared"] = np.full((3, 4), 2.0)
        file["data/demo_0/obs/absolute"] = h5py.SoftLink("/shared")
        file["data/demo_0/obs/relative"] = h5py.SoftLink("state")
    episode = open_hdf5(hdf5).episode(0)
    assert episode.numbers("observation/absolute").tolist() == [[2.0] * 4] * 3
    assert episode.numbers("observation/relative").tolist() == [[1.0] * 2] * 3


def test_links_and_groups_without_an_end_are_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file["data/demo_0/obs/a"] = h5py.SoftLink("/data/demo_0/obs/b")
        file["data/demo_0/obs/b"] = h5py.SoftLink("/data/demo_0/obs/a")
    with pytest.raises(DataError, match="from link to link"):
        open_hdf5(hdf5)
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_0/obs/a"], file["data/demo_0/obs/b"]
        file["data/demo_0/obs/again"] = file["data/demo_0/obs"]
    with pytest.raises(DataError, match="groups more than"):
        open_hdf5(hdf5)


def test_an_hdf5_file_that_stores_nothing_does_not_ask_for_gigabytes(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        file.require_group("data/demo_0/obs").create_dataset(
            "depth", (3, LARGE), "f4", chunks=(1, 1024), compression="gzip"
        )
    assert hdf5.stat().st_size < 50_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"depth' asks for \d+ bytes of memory, but the file stores 0"):
        open_hdf5(hdf5)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_an_episode_of_absurd_length_is_refused(hdf5: Path) -> None:
    with h5py.File(hdf5, "a") as file:
        del file["data/demo_0/actions"]
        file.require_group("data/demo_0").create_dataset("actions", (MAX_STEPS + 1, 1), "i1")
    with pytest.raises(DataError, match="steps; at most"):
        open_hdf5(hdf5)


# -- LeRobot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["data", "meta", "data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/info.json"]
)
def test_a_link_out_of_a_lerobot_dataset_is_refused_by_name(lerobot: Path, tmp_path: Path, folder: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(lerobot / folder, elsewhere)
    (lerobot / folder).symlink_to(elsewhere)
    with pytest.raises(DataError, match=f"{folder} leaves the folder"):
        open_lerobot(lerobot)
    with pytest.raises(DataError, match=f"{folder} leaves the folder"):
        LeRobotWriter(lerobot)


@pytest.mark.parametrize(
    "template",
    [
        "/etc/{video_key}",
        "../../{video_key}.mp4",
        "{video_key.__class__}",
        "{chunk_index:999999999d}",
        "videos/{camera}.mp4",
        None,
        7,
    ],
)
def test_a_video_path_that_leaves_or_has_other_fields_is_refused(lerobot: Path, template: Any) -> None:
    info = json.loads((lerobot / "meta" / "info.json").read_text())
    info["features"]["observation.images.film"] = {"dtype": "video", "shape": [24, 32, 3], "names": None}
    info["video_path"] = template
    (lerobot / "meta" / "info.json").write_text(json.dumps(info))
    add_columns(lerobot / "meta" / "episodes" / "chunk-000" / "file-000.parquet", "videos/observation.images.film/")
    with pytest.raises(DataError, match=r"info\.json, video_path"):
        open_lerobot(lerobot).episode(0)


def add_columns(path: Path, prefix: str) -> None:
    """Where an episode's video is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    for name, value in {"chunk_index": 0, "file_index": 0, "from_timestamp": 0.0, "to_timestamp": 0.3}.items():
        table = table.append_column(prefix + name, pa.array([value] * len(table)))
    pq.write_table(table, path)
