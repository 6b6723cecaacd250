"""Tests of logs that another process writes: the same bytes and counts, and what was sent survives failures."""

from __future__ import annotations

import io
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from waiting import eventually

from vla_robot.core.errors import DataError
from vla_robot.record import log_process
from vla_robot.record.episode import PART_SUFFIX, EpisodeWriter, read_episode, step_record
from vla_robot.record.log_process import LogProcess, ProcessWriter

from .steps import observation, step_of

HEADER = {"seed": 3, "instruction": "lift the cube"}


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
        writer.abandon()
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
    np.testing.assert_array_equal(log.steps[1].commanded, step_of(1).commanded)  # numbers are never left out


def test_a_failed_write_raises_at_the_end(logs: LogProcess, tmp_path: Path) -> None:
    (tmp_path / f"taken{PART_SUFFIX}").mkdir()
    writer = logs.open(tmp_path / "taken.vlalog", HEADER)
    writer.add(step_of(0))
    with pytest.raises(DataError, match="Is a directory"):
        writer.finish(observation(1), {})
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})  # the process goes on


def fails(writer: ProcessWriter, match: str) -> bool:
    """Return whether the next step is refused; assert that the message contains `match`."""
    try:
        writer.add(step_of(0))
    except DataError as error:
        assert match in str(error)
        return True
    return False


def kill(logs: LogProcess) -> None:
    os.kill(logs._process.pid, signal.SIGKILL)
    eventually(lambda: not logs._process.works)


def test_a_process_that_died_raises_at_the_end(logs: LogProcess, tmp_path: Path) -> None:
    writer = logs.open(tmp_path / "dead.vlalog", HEADER)
    writer.add(step_of(0))
    kill(logs)
    with pytest.raises(DataError, match="the process that writes it has ended"):
        writer.finish(observation(1), {})


def test_a_process_that_died_raises_at_a_step_and_is_replaced_for_the_next_log(
    logs: LogProcess, tmp_path: Path
) -> None:
    writer = logs.open(tmp_path / "dead.vlalog", HEADER)
    kill(logs)
    eventually(lambda: fails(writer, "has ended"))
    writer.abandon()
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})
    assert read_episode(tmp_path / "next.vlalog").complete


def test_a_failed_write_raises_at_a_step(logs: LogProcess, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = logs.open(tmp_path / "file" / "x.vlalog", HEADER)
    eventually(lambda: fails(writer, "cannot write"))
    writer.abandon()
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})


def test_a_disk_with_no_room_raises_at_a_step(logs: LogProcess, tmp_path: Path) -> None:
    whole = resource.prlimit(logs._process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(logs._process.pid, resource.RLIMIT_FSIZE, (4096, whole[1]))  # no file may grow beyond that
    writer = logs.open(tmp_path / "full.vlalog", HEADER)
    eventually(lambda: fails(writer, "File too large"))
    writer.abandon()
    resource.prlimit(logs._process.pid, resource.RLIMIT_FSIZE, whole)
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})
    assert read_episode(tmp_path / "next.vlalog").complete


def test_a_stopped_process_does_not_block_the_caller_and_is_replaced(
    logs: LogProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_process, "MAX_WAITING", 50)
    writer = logs.open(tmp_path / "stuck.vlalog", HEADER)
    stopped = logs._process.pid
    os.kill(stopped, signal.SIGSTOP)
    step = step_of(0)
    with pytest.raises(DataError, match="reads no more messages"):
        for _ in range(100_000):  # the pipe is full, and then the queue
            writer.add(step)
    logs.open(tmp_path / "next.vlalog", HEADER).finish(observation(0), {})
    assert logs._process.pid != stopped
    writer.abandon()


def test_a_message_that_is_written_late_does_not_reset_the_failure(
    logs: LogProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, goes_through = threading.Event(), threading.Event()
    write = logs._process.write

    def slow(data: bytes | memoryview) -> None:
        under_way.set()
        assert goes_through.wait(120)
        write(data)

    monkeypatch.setattr(log_process, "MAX_WAITING", 5)
    monkeypatch.setattr(logs._process, "write", slow)
    writer = logs.open(tmp_path / "late.vlalog", HEADER)
    assert under_way.wait(120)
    step = step_of(0)
    with pytest.raises(DataError, match="reads no more messages"):
        for _ in range(10):
            writer.add(step)
    goes_through.set()
    writer.abandon()  # joins the thread: every message was written or left out
    with pytest.raises(DataError, match="reads no more messages"):
        writer.add(step)


def test_leaving_the_with_block_does_not_wait_for_a_stopped_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_process, "EXIT_TIMEOUT_S", 0.2)
    with LogProcess() as logs:
        logs.open(tmp_path / "stuck.vlalog", HEADER)
        os.kill(logs._process.pid, signal.SIGSTOP)
    assert not logs._process.works


def test_an_episode_is_never_overwritten(logs: LogProcess, tmp_path: Path) -> None:
    (tmp_path / "there.vlalog").touch()
    with pytest.raises(DataError, match="exists already"):
        logs.open(tmp_path / "there.vlalog", HEADER).finish(observation(0), {})
    assert (tmp_path / "there.vlalog").read_bytes() == b""
    with pytest.raises(DataError, match=r"ends in \.vlalog"):
        logs.open(tmp_path / "log.txt", HEADER)


def test_a_step_whose_frame_was_cut_off_keeps_its_numbers_without_frames(tmp_path: Path) -> None:
    def message(head: dict[str, Any], *frames: bytes) -> bytes:
        packed = msgpack.packb(head)
        assert packed is not None
        return len(packed).to_bytes(4, "little") + packed + b"".join(frames)

    record, image = step_record(step_of(0)), observation(0).images["front"]
    shapes = [["front", list(image.shape)]]
    told = message({"do": "open", "path": str(tmp_path / "cut.vlalog"), "header": HEADER, "frames": []})
    told += message({"do": "step", "step": record, "frames": shapes}, image.tobytes())
    told += message({"do": "step", "step": record, "frames": shapes}, image.tobytes()[:-1])
    log_process.serve(io.BytesIO(told), io.BytesIO())
    whole, cut = read_episode(tmp_path / f"cut{PART_SUFFIX}").steps
    np.testing.assert_array_equal(whole.observation.images["front"], image)
    assert cut.observation.images == {}
    np.testing.assert_array_equal(cut.executed, step_of(0).executed)
