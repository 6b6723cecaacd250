"""Tests of gaps: lost steps end an episode of the dataset, and readers, converters and windows respect its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.ports import MarksGaps
from vla_robot.data.demonstration import Demonstration
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.pipeline.mixture import Choices, members_of, open_dataset
from vla_robot.data.pipeline.windows import Window

pytest.importorskip("pyarrow")

MakeDemo = Callable[..., Demonstration]


@pytest.fixture
def folder(tmp_path: Path, make_demo: MakeDemo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with an episode in two parts of 5 and 4 steps, then a whole one of 6."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with LeRobotWriter(tmp_path / "data") as writer:
        writer.write(replace(make_demo(seed=1, steps=5, success=False), facts={"part": 1, "parts": 2}))
        writer.write(replace(make_demo(seed=1, steps=4), facts={"part": 2, "parts": 2}))
        writer.write(make_demo(seed=2, steps=6))
    return tmp_path / "data"


def test_readers_know_which_episode_goes_on_behind_a_gap(folder: Path) -> None:
    assert [episode.goes_on for episode in open_demos(folder).episodes] == [True, False, False]
    source = open_source(folder)
    assert isinstance(source, MarksGaps)
    assert [source.goes_on(index) for index in range(len(source))] == [True, False, False]


def test_a_mixture_draws_no_window_that_reaches_into_a_gap(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f'kind = "source"\nlocation = "{folder}"\naction = ["zeros 5", "action"]\n[cameras]\n'
        'primary = "observation/images/front"\n'
    )
    choices = Choices(window=Window(future=2))
    dataset = open_dataset(members_of(tmp_path / "mine.toml")[0], choices, tmp_path / "tables")
    episodes = dataset.table.episodes["length"].tolist()
    assert len(dataset) == sum(length - 2 if length == 5 else length for length in episodes)


def test_in_rlds_an_episode_that_goes_on_has_no_terminal_step(folder: Path, tmp_path: Path) -> None:
    convert(open_source(folder), tmp_path / "rlds", "rlds", Options())
    source = open_source(tmp_path / "rlds")
    for index, is_terminal in enumerate([False, True, True]):
        steps = source.episode(index, ["is_last", "is_terminal"]).steps
        assert np.asarray(steps["is_last"])[-1] and bool(np.asarray(steps["is_terminal"])[-1]) is is_terminal
