"""Logs that another process writes: the same bytes, the same accounting, and what was told survives what happens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Clamp, Observation
from vla_robot.record import log_process
from vla_robot.record.episode import PART_SUFFIX, EpisodeStep, EpisodeWriter, read_episode
from vla_robot.record.log_process import LogProcess

HEADER = {"seed": 3, "instruction": "lift the cube"}


def observation(step: int) -> Observation:
    rng = np.random.default_rng(step)
    images = {name: rng.integers(0, 256, (8, 6, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return Observation(images, rng.normal(size=7), "lift the cube", 1000 + step, step)


def step_of(step: int) -> EpisodeStep:
    rng = np.random.default_rng(100 + step)
    clamps = (Clamp("dx", "range", 0.07, 0.05),)
    return EpisodeStep(observation(step), rng.normal(size=7), rng.normal(size=7), 1500 + step, step == 2, clamps)


@pytest.fixture
def logs() -> Iterator[LogProcess]:
    with LogProcess() as logs:
        yield logs


def test_the_file_is_the_one_that_a_writer_here_makes(logs: LogProcess, tmp_path: Path) -> None:
    for name, writer in (
        ("there", logs.open(tmp_path / "there.vlalog", HEADER)),
        ("here", EpisodeWriter(tmp_path / "here.vlalog", HEADER)),
    ):
        for step in range(5):
            writer.add(step_of(step))
        assert writer.finish(observation(5), {"outcome": "success"}) == tmp_path / f"{name}.vlalog"
    assert (tmp_path / "there.vlalog").read_bytes() == (tmp_path / "here.vlalog").read_bytes()
    log = read_episode(tmp_path / "there.vlalog")
    assert log.complete and len(log.steps) == 5 and log.summary is not None
    assert log.summary == {"outcome": "success", "dropped_frames": 0}


def test_one_process_writes_one_episode_after_the_other(logs: LogProcess, tmp_path: Path) -> None:
    for episode in range(3):
        writer = logs.open(tmp_path / f"{episode}.vlalog", HEADER)
        writer.add(step_of(episode))
        if episode == 1:
            writer.discard()
        else:
            writer.finish(observation(1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.vlalog", "2.vlalog"]


def test_an_episode_without_an_end_is_on_the_disk_as_far_as_it_came(tmp_path: Path) -> None:
    with LogProcess() as logs:
        writer = logs.open(tmp_path / "cut.vlalog", HEADER)
        for step in range(4):
            writer.add(step_of(step))
        writer._queue.put(None)
        writer._thread.join()
    log = read_episode(tmp_path / f"cut{PART_SUFFIX}")
    assert len(log.steps) == 4 and log.damage == "the log ends after 4 steps without its end record"


def test_frames_that_find_no_room_are_left_out_and_counted(
    logs: LogProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_process, "FRAME_BACKLOG", 0)
    writer = logs.open(tmp_path / "full.vlalog", HEADER)
    for step in range(3):
        writer.add(step_of(step))
    writer.finish(observation(3), {})
    log = read_episode(tmp_path / "full.vlalog")
    assert log.summary is not None and log.summary["dropped_frames"] == writer.dropped_frames == 3
    assert [dict(step.observation.images) for step in log.steps] == [{}] * 3
    assert log.steps[1].commanded.tolist() == step_of(1).commanded.tolist()  # numbers are never left out


def test_what_cannot_be_written_is_told_at_the_end(logs: LogProcess, tmp_path: Path) -> None:
    (tmp_path / f"taken{PART_SUFFIX}").mkdir()
    writer = logs.open(tmp_path / "taken.vlalog", HEADER)
    writer.add(step_of(0))
    with pytest.raises(DataError, match="Is a directory"):
        writer.finish(observation(1), {})
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})  # the process goes on


def test_a_process_that_died_is_told_at_the_end(logs: LogProcess, tmp_path: Path) -> None:
    writer = logs.open(tmp_path / "dead.vlalog", HEADER)
    writer.add(step_of(0))
    logs._process.send_signal(signal.SIGKILL)
    logs._process.wait()
    with pytest.raises(DataError, match="the process that writes it has ended"):
        writer.finish(observation(1), {})


def test_an_episode_is_never_overwritten(logs: LogProcess, tmp_path: Path) -> None:
    (tmp_path / "there.vlalog").touch()
    with pytest.raises(DataError, match="it exists"):
        logs.open(tmp_path / "there.vlalog", HEADER)
    with pytest.raises(DataError, match=r"does not end in \.vlalog"):
        logs.open(tmp_path / "log.txt", HEADER)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Choose another folder"):
        logs.open(tmp_path / "file" / "x.vlalog", HEADER)
