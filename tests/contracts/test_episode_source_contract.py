"""What every dataset promises, asked of each format that is read. A new one joins by one line in WRITERS."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_robot.core.messages import Observation, StepResult
from vla_robot.core.ports import EpisodeSource
from vla_robot.data.demonstration import DemonstrationBuilder
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.pipeline.mixture import open_parts
from vla_robot.testing import ToySource, check_episode_source, toy_embodiment, toy_observation

from .kinds import as_named

SAMPLES = Path(__file__).parents[1] / "golden" / "rlds_samples"
TOY = toy_embodiment(height=16, width=16)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are written beside no dataset of the repository."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lerobot(root: Path) -> Path:
    """Recorded here, as version 3.0."""
    with LeRobotWriter(root) as writer:
        for seed, steps in enumerate((3, 5)):
            builder = DemonstrationBuilder()
            for step in range(steps):
                seen: Observation = toy_observation(TOY, step, x=0.1 * seed, shade=20 * step)
                over = step == steps - 1
                builder.add(seen, np.array([0.01, 1.0]), StepResult(seen, np.array([0.01, 1.0]), over, over, False))
            writer.write(builder.finish(TOY, seed, "expert"))
    return root


def hdf5(root: Path) -> Path:
    """As robomimic lays it out."""
    with h5py.File(root.with_suffix(".hdf5"), "w") as file:
        for number, length in enumerate((3, 5)):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["ep_meta"] = '{"lang": "lift the cube"}'
            demo["actions"] = np.full((length, 7), 0.1 * number)
            demo["obs/agentview_image"] = np.full((length, 8, 9, 3), 20 * number, np.uint8)
    return root.with_suffix(".hdf5")


def rlds(root: Path) -> Path:
    """Converted here."""
    convert(open_source(lerobot(root.with_name("before"))), root, "rlds", Options())
    return root


def lerobot_v2(root: Path) -> Path:
    """As lerobot wrote it until version 2.1."""
    from ..data.formats.test_lerobot_v2 import write_v2

    return write_v2(root)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "LeRobotSource": lerobot,
    "LeRobotSource of version 2": lerobot_v2,
    "Hdf5Dataset": hdf5,
    "RldsDataset": rlds,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "dataset")
    check_episode_source(lambda: as_named(kind, open_source(path)))


@pytest.fixture(params=sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()))
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(SAMPLES / request.param, tmp_path / request.param)


def test_every_published_sample_keeps_it(sample: Path) -> None:
    for source in open_parts(str(sample)).values():
        check_episode_source(lambda part=source: part, most=1)


def test_a_part_keeps_it(tmp_path: Path) -> None:
    source: EpisodeSource = open_source(lerobot(tmp_path / "dataset"), "train[1:]")
    assert len(source) == 1
    check_episode_source(lambda: source)


IN_MEMORY: dict[str, Callable[[], EpisodeSource]] = {"ToySource": ToySource}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_every_dataset_in_memory_keeps_it(kind: str) -> None:
    check_episode_source(lambda: as_named(kind, IN_MEMORY[kind]()))
