"""Tests of the episode log: it reads back what was written, also after a crash, a cut or a flipped bit."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Observation
from vla_robot.data.formats import png
from vla_robot.record import episode
from vla_robot.record.episode import MAGIC, EpisodeLog, EpisodeStep, EpisodeWriter, Gap, frames_of, read_episode

from .steps import observation, step_of

HEADER = {"seed": 3, "instruction": "lift the cube", "recipes": {"lift.toml": "kind = 'robosuite'"}}
N_STEPS = 3


def write(path: Path) -> Path:
    writer = EpisodeWriter(path, HEADER)
    for step in range(N_STEPS):
        writer.add(step_of(step))
    return writer.finish(observation(N_STEPS), {"outcome": "success"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a finished log."""
    return write(tmp_path_factory.mktemp("log") / "seed_3.vlalog").read_bytes()


def assert_same_step(read: EpisodeStep, written: EpisodeStep) -> None:
    np.testing.assert_array_equal(read.commanded, written.commanded)
    np.testing.assert_array_equal(read.executed, written.executed)
    assert (read.command_ns, read.success, read.clamps) == (written.command_ns, written.success, written.clamps)
    assert dict(read.stages_ms) == dict(written.stages_ms)
    assert (read.entropy, read.chunk_gap) == (written.entropy, written.chunk_gap)
    assert_same_observation(read.observation, written.observation)


def assert_same_observation(read: Observation, written: Observation) -> None:
    assert (read.step, read.stamp_ns, read.instruction) == (written.step, written.stamp_ns, written.instruction)
    assert read.state.tolist() == written.state.tolist()
    assert {n: i.tolist() for n, i in read.images.items()} == {n: i.tolist() for n, i in written.images.items()}


def test_what_was_not_there_is_none_and_each_camera_keeps_its_stamp(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    stamps_ns = {"front": 990, "wrist": 1000}
    seen = replace(observation(0), stamps_ns=stamps_ns)
    writer.add(EpisodeStep(seen, None, None, 1500, False, held=True))
    writer.add_gap(Gap(1, 3))
    writer.add(EpisodeStep(replace(seen, step=4), np.ones(7), np.zeros(7), 1600, False, wanted=np.full(7, 2.0)))
    log = read_episode(writer.finish(observation(5), {}))
    held, played = log.steps
    assert (held.commanded, held.executed, held.wanted) == (None, None, None)
    assert played.wanted is not None and played.wanted.tolist() == [2.0] * 7
    assert held.observation.stamps_ns == stamps_ns
    assert log.gaps == (Gap(1, 3),)


def test_what_goes_in_comes_out_bit_for_bit(tmp_path: Path) -> None:
    log = read_episode(write(tmp_path / "seed_3.vlalog"))
    assert log.complete and log.damage is None
    assert log.header == HEADER
    assert log.summary == {"outcome": "success", "dropped_frames": 0}
    for step, read in enumerate(log.steps):
        assert_same_step(read, step_of(step))
    assert log.last is not None
    assert_same_observation(log.last, observation(N_STEPS))
    assert [step for step, _ in frames_of(log)] == [0, 1, 2, 3]


def test_simulator_truth_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path / "seed_3.vlalog")
    assert b"cube_pos" not in path.read_bytes()
    assert read_episode(path).steps[0].observation.privileged == {}


def read_bytes(folder: Path, data: bytes) -> EpisodeLog:
    path = folder / "cut.vlalog"
    path.write_bytes(data)
    return read_episode(path)


def end_of_header(data: bytes) -> int:
    length = int.from_bytes(data[len(episode.MAGIC) : len(episode.MAGIC) + 4], "little")
    return len(episode.MAGIC) + 8 + length


def test_a_log_cut_at_any_byte_gives_the_steps_before_the_cut(tmp_path: Path, whole: bytes) -> None:
    seen: set[int] = set()
    for length in range(end_of_header(whole), len(whole)):
        log = read_bytes(tmp_path, whole[:length])
        assert not log.complete and log.summary is None and log.damage is not None
        for step, read in enumerate(log.steps):
            np.testing.assert_array_equal(read.commanded, step_of(step).commanded)
        seen.add(len(log.steps))
    assert seen == {0, 1, 2, 3}


def test_a_log_cut_inside_its_header_says_so(tmp_path: Path, whole: bytes) -> None:
    for length in range(end_of_header(whole)):
        with pytest.raises(DataError, match=r"not an episode log|no readable header"):
            read_bytes(tmp_path, whole[:length])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed_and_the_records_before_it_are_read(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(end_of_header(whole), len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    log = read_bytes(tmp_path, bytes(damaged))
    assert not log.complete
    for step, read in enumerate(log.steps):
        assert_same_step(read, step_of(step))


@given(garbage=st.binary(max_size=200))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_log_or_a_data_error(tmp_path: Path, garbage: bytes) -> None:
    for data in (garbage, episode.MAGIC + garbage):
        with pytest.raises(DataError):
            read_bytes(tmp_path, data)


def test_a_log_whose_process_died_reads_as_far_as_it_was_written(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    writer.add(step_of(0))
    writer._stop()  # stands for the end of the process, after its writes
    writer._file.close()
    log = read_episode(tmp_path / "seed_3.vlalog.part")
    assert len(log.steps) == 1
    assert log.damage == "the log ends after 1 steps without its end record"


def test_only_a_finished_log_has_its_name(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    assert [p.name for p in tmp_path.iterdir()] == ["seed_3.vlalog.part"]
    writer.finish(observation(0), {})
    assert [p.name for p in tmp_path.iterdir()] == ["seed_3.vlalog"]


def test_a_discarded_log_leaves_nothing(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    writer.add(step_of(0))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_episode_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "seed_3.vlalog")
    with pytest.raises(DataError, match=r"exists already; episodes are never overwritten"):
        EpisodeWriter(path, HEADER)


def test_frames_are_dropped_and_counted_when_the_writer_is_behind_but_numbers_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode, "FRAME_BACKLOG", 2)
    may_go_on = threading.Event()
    monkeypatch.setattr(episode, "_encode", held_back(episode._encode, may_go_on))
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    for step in range(5):
        writer.add(step_of(step))  # returns at once, although the writer is blocked
    may_go_on.set()
    log = read_episode(writer.finish(observation(5), {}))
    assert [bool(step.observation.images) for step in log.steps] == [True, True, False, False, False]
    assert [step.command_ns for step in log.steps] == [1500, 1501, 1502, 1503, 1504]
    assert log.summary == {"dropped_frames": 3}


def held_back(encode: Callable[..., bytes], may_go_on: threading.Event) -> Callable[..., bytes]:
    def encode_later(*arguments: object) -> bytes:
        may_go_on.wait(timeout=60)
        return encode(*arguments)

    return encode_later


def test_a_failed_write_raises_at_the_end_and_keeps_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(record: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    monkeypatch.setattr(episode, "_encode", full)
    writer.add(step_of(0))
    with pytest.raises(DataError, match=r"No space left on device\. The steps until then are in .*\.part\. Make room"):
        writer.finish(observation(1), {})
    assert [p.name for p in tmp_path.iterdir()] == ["seed_3.vlalog.part"]


def test_opening_a_log_does_not_wait_for_a_busy_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A robot with its own clock moves on while a log is opened."""
    disk_is_free = threading.Event()
    monkeypatch.setattr(episode, "sync_folder", lambda folder: disk_is_free.wait(60))
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    writer.add(step_of(0))
    assert not disk_is_free.is_set()
    disk_is_free.set()
    assert len(read_episode(writer.finish(observation(1), {})).steps) == 1


def test_a_failed_sync_of_the_folder_raises_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(episode, "sync_folder", broken)
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    writer.add(step_of(0))
    with pytest.raises(DataError, match=r"Input/output error\. The steps until then are in"):
        writer.finish(observation(1), {})
    assert len(read_episode(tmp_path / f"seed_3{episode.PART_SUFFIX}").steps) == 1


def test_a_finished_log_survives_a_power_cut_to_its_last_byte(tmp_path: Path, power_cut: Any) -> None:
    path = write(tmp_path / "episodes" / "seed_3.vlalog")
    assert power_cut.survivors(tmp_path) == {"episodes/seed_3.vlalog": path.read_bytes()}
    size = path.stat().st_size
    last = [call for call in power_cut.calls if call != "fsync episodes/"][-2:]
    assert last == [f"fsync seed_3.vlalog.part ({size})", "rename seed_3.vlalog.part seed_3.vlalog"]
    assert power_cut.calls[-1] == "fsync episodes/"


def test_a_full_disk_keeps_the_steps_that_it_took_and_says_where(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    writer = EpisodeWriter(disk / "seed_3.vlalog", HEADER)
    for step in range(300):
        writer.add(step_of(step))
    with pytest.raises(
        DataError, match=r"No space left on device\. The steps until then are in .*seed_3\.vlalog\.part"
    ):
        writer.finish(observation(300), {})
    log = read_episode(disk / "seed_3.vlalog.part")
    assert len(log.steps) > 10
    assert [step.command_ns for step in log.steps] == [1500 + step for step in range(len(log.steps))]


def test_a_limit_on_the_file_size_raises_like_a_full_disk(
    tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    with file_limit(10_000):
        for step in range(100):
            writer.add(step_of(step))
        with pytest.raises(DataError, match="File too large"):
            writer.finish(observation(100), {})
    assert len(read_episode(tmp_path / "seed_3.vlalog.part").steps) > 2


def crashed(path: Path, steps: int = 3) -> bytes:
    """Write the .part file of a process that was killed within a step. Return its bytes, whose end is cut."""
    writer = EpisodeWriter(path, HEADER)
    for step in range(steps):
        writer.add(step_of(step))
    writer.abandon()
    part = path.with_suffix(episode.PART_SUFFIX)
    part.write_bytes(part.read_bytes() + b"\x10\x00\x00\x00torn")
    return part.read_bytes()


def test_a_crashed_episode_is_set_aside_by_the_same_command_and_no_byte_of_it_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "seed_3.vlalog"
    first = crashed(path)
    second = crashed(path, steps=2)
    assert len(read_episode(write(path)).steps) == N_STEPS
    assert (tmp_path / "seed_3.crashed-1.vlalog.part").read_bytes() == first
    assert (tmp_path / "seed_3.crashed-2.vlalog.part").read_bytes() == second
    log = read_episode(tmp_path / "seed_3.crashed-1.vlalog.part")
    for step, read in enumerate(log.steps):
        assert_same_step(read, step_of(step))
    assert len(log.steps) == 3 and log.damage is not None and log.damage.startswith("cut off at byte")
    assert len(list(tmp_path.iterdir())) == 3


def test_an_episode_that_another_writer_writes_is_not_touched(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    writer.add(step_of(0))
    with pytest.raises(DataError, match=r"seed_3\.vlalog\.part is being written by another process"):
        EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    assert len(read_episode(writer.finish(observation(1), {})).steps) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["seed_3.vlalog"]


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "video.vlalog"
    path.write_bytes(b"\x00\x00\x00 ftypisom")
    with pytest.raises(DataError, match=r"video\.vlalog is not an episode log"):
        read_episode(path)


def test_scalars_of_numpy_are_logged_as_pythons(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "seed_3.vlalog", HEADER)
    step = step_of(2)
    success: Any = np.bool_(True)
    stages_ms: Any = {"p": np.float32(2)}
    writer.add(EpisodeStep(step.observation, step.commanded, step.executed, 1, success, (), stages_ms))
    path = writer.finish(observation(3), {"outcome": "success"})

    assert read_episode(path).steps[0].success is True
    assert read_episode(path).steps[0].stages_ms == {"p": 2.0}


def log_of(path: Path, *records: Any) -> Path:
    """Write a log of any records, with correct checksums."""
    payloads = [record if isinstance(record, bytes) else msgpack.packb(record) for record in records]
    prefixed = (struct.pack("<II", len(payload), zlib.crc32(payload)) + payload for payload in payloads)
    path.write_bytes(MAGIC + b"".join(prefixed))
    return path


STEP_RECORD: dict[str, Any] = {
    "kind": "step",
    "observation": {"step": 0, "stamp_ns": 0, "state": [0.0], "frames": {}},
    "commanded": [0.0],
    "executed": [0.0],
    "command_ns": 0,
    "success": False,
    "clamps": [],
    "stages_ms": {},
}


@pytest.mark.parametrize(
    "records",
    [
        (b"\xc1",),
        (b"\x91" * 2000,),
        ([1],),
        ({"kind": "header"}, 5),
        ({"kind": "header"}, {"kind": "step"}),
        ({"kind": "header"}, {**STEP_RECORD, "command_ns": float("inf")}),
        ({"kind": "header"}, {**STEP_RECORD, "commanded": {"a": 1}}),
        ({"kind": "header"}, {**STEP_RECORD, "observation": 5}),
        ({"kind": "header"}, {**STEP_RECORD, "observation": {**STEP_RECORD["observation"], "frames": {"front": 5}}}),
        ({"kind": "header"}, {**STEP_RECORD, "clamps": [{"dim": "x"}]}),
    ],
)
def test_a_log_with_malformed_records_raises_a_data_error_with_the_file(tmp_path: Path, records: Any) -> None:
    with pytest.raises(DataError, match=r"odd\.vlalog"):
        read_episode(log_of(tmp_path / "odd.vlalog", *records))


def test_frames_of_a_log_that_announce_gigabytes_are_refused(tmp_path: Path) -> None:
    frame = bytearray(png.encode(np.zeros((4, 4, 3), np.uint8)))
    frame[16:24] = struct.pack(">II", 4000, 4000)
    many = [{**STEP_RECORD, "observation": {**STEP_RECORD["observation"], "frames": {"front": bytes(frame)}}}] * 200
    with pytest.raises(DataError, match="asks for 9600000000 bytes of memory"):
        read_episode(log_of(tmp_path / "odd.vlalog", {"kind": "header"}, *many))
