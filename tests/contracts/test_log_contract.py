"""What every writer of an episode's log promises. A new one joins by one line in LOGS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_robot.record.episode import PART_SUFFIX, EpisodeWriter, read_episode
from vla_robot.record.log_process import LogProcess
from vla_robot.serve.bridge.log import Log

from ..record.steps import observation, step_of
from .kinds import Get, as_named

HEADER = {"seed": 3, "instruction": "lift the cube"}
STEPS = [step_of(step) for step in range(4)]

LOGS: dict[str, Callable[[Get, Path], Log]] = {
    "EpisodeWriter": lambda get, path: EpisodeWriter(path, HEADER),
    "ProcessWriter": lambda get, path: get("process").open(path, HEADER),
}


@pytest.fixture
def process() -> Iterator[LogProcess]:
    with LogProcess() as logs:
        yield logs


@pytest.fixture(params=LOGS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    writer = as_named(request.param, LOGS[request.param](request.getfixturevalue, tmp_path / "seed_3.vlalog"))
    for step in STEPS:
        writer.add(step)
    return writer


def test_a_finished_log_holds_every_step_in_order(log: Log, tmp_path: Path) -> None:
    path = log.finish(observation(len(STEPS)), {"outcome": "success"})
    assert path == tmp_path / "seed_3.vlalog"
    read = read_episode(path)
    assert read.complete and read.summary is not None and read.summary["outcome"] == "success"
    assert [step.observation.stamp_ns for step in read.steps] == [step.observation.stamp_ns for step in STEPS]
    np.testing.assert_array_equal([s.observation.state for s in read.steps], [s.observation.state for s in STEPS])


def test_an_abandoned_log_keeps_its_steps_without_an_end(log: Log, tmp_path: Path) -> None:
    log.abandon()
    part = tmp_path / f"seed_3{PART_SUFFIX}"
    while not part.exists() or len(read_episode(part).steps) < len(STEPS):
        time.sleep(0.01)  # another process may still be writing
    read = read_episode(part)
    assert not read.complete and not (tmp_path / "seed_3.vlalog").exists()
