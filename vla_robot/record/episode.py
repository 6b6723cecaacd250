"""Writes and reads the log of one episode: observations, commanded and executed actions. A crash leaves it readable.

    seed_10000.vlalog                  a finished episode
    seed_10000.vlalog.part             one that is being written, or whose process died; it can be read as well
    seed_10000.crashed-1.vlalog.part   the .part file of a dead process, renamed when the episode is recorded again

    file   = "VLALOG1\\n" record*
    record = length (4 bytes, little endian) | CRC-32 of payload (4 bytes) | payload (msgpack map with "kind")
    kinds  = header, then (step | gap)*, then end

Frames are PNG, which is lossless: the log holds exactly the pixels that the policy saw. The writer encodes and writes
in a thread of its own. When that thread falls behind, frames are dropped and counted; numbers are never dropped, and
the control loop never waits.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import queue
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import IO, Any

import msgpack
import numpy as np

from vla_robot.core.errors import DataError, in_words
from vla_robot.core.host.durable import make_folder, refusal, rename, sync_file, sync_folder, writing
from vla_robot.core.messages import Clamp, Image, Observation, Vector
from vla_robot.core.untrusted import malformed, read_file
from vla_robot.data.formats import png
from vla_robot.data.formats.bounds import require_bytes
from vla_robot.data.formats.images import picture_size

MAGIC = b"VLALOG1\n"
SUFFIX = ".vlalog"
PART_SUFFIX = ".vlalog.part"
FRAME_BACKLOG = 64
"""Number of steps whose frames may wait for the writer: some seconds, 20 MB with two cameras of 224 x 224."""

MAX_RECORD_BYTES = 1 << 28
MAX_LOG_BYTES = 1 << 32
MAX_FRAMES_BYTES = 1 << 33
"""Largest size of all decoded frames of a log: 15 minutes at 10 Hz with one camera of 640 x 480."""
_SIGNALS = ("entropy", "chunk_gap")
"""Fields of a step that say how sure the policy was; older logs, and steps that lack them, hold none."""

_PREFIX = struct.Struct("<II")


@dataclass(frozen=True)
class EpisodeStep:
    """One control step.

    Attributes:
        observation: the policy's observation; without frames where those were dropped.
        commanded: (D,) action that was sent to the world, in the units of the embodiment's action space; None when no
            action was due and the pose was held.
        executed: (D,) action that was sent to the arm; None when none was, see `StepResult.executed`.
        command_ns: time of the command on the world's clock [ns].
        success: whether the task's success test held after the step.
        clamps: one for each limit that changed the action.
        stages_ms: stage -> its share of the time from capture to command [ms].
        intervention: whether a person had taken over; `commanded` is then the person's action.
        held: whether no action was available, so that the arm held its pose.
        policy_action: (D,) the policy's action in the person's place, where it was asked.
        wanted: (D,) the driver's action, before the guard of the control loop cut it to `commanded`; None when
            no action was due, and in older logs, which lack it.
        entropy: how unsure the policy was of the answer that the action is from [nats], see `ActionChunk.entropy`.
        chunk_gap: how far that answer was from the policy's former plan, 0 to 1, see `ActionChunk.chunk_gap`.
    """

    observation: Observation
    commanded: Vector | None
    executed: Vector | None
    command_ns: int
    success: bool
    clamps: tuple[Clamp, ...] = ()
    stages_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    intervention: bool = False
    held: bool = False
    policy_action: Vector | None = None
    wanted: Vector | None = None
    entropy: float | None = None
    chunk_gap: float | None = None


@dataclass(frozen=True)
class Gap:
    """Control steps that happened but are missing from the log.

    Attributes:
        first: number of the first missing step, as in `Observation.step`.
        count: number of missing steps.
    """

    first: int
    count: int


@dataclass(frozen=True)
class EpisodeLog:
    """A log as read back.

    Attributes:
        header: seed, instruction, embodiment, recipes and versions of the episode.
        steps: the steps up to the first damage.
        last: the observation after the last step; None when the log has no end.
        summary: how the episode ended; None when the log has no end.
        damage: what is wrong with the file and where, or None. The records before the damage are intact.
        gaps: missing steps, in order; the numbers of the steps jump there, too.
    """

    header: Mapping[str, Any]
    steps: tuple[EpisodeStep, ...]
    last: Observation | None
    summary: Mapping[str, Any] | None
    damage: str | None
    gaps: tuple[Gap, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the log has its end and no damage."""
        return self.summary is not None and self.damage is None


class EpisodeWriter:
    """The writer of one log, which is a .part file until `finish` gives it its own name.

    Attributes:
        dropped_frames: number of steps whose frames were left out because the writer had fallen behind.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """
        Args:
            path: path that ends in .vlalog and does not exist yet.
            header: plain data, stored unchanged.

        Raises:
            DataError: the file exists, another process writes it, or the folder cannot be written.
        """
        if path.suffix != SUFFIX:
            raise DataError(f"the name of an episode log ends in {SUFFIX}, got {path}.")
        if path.exists():
            raise DataError(f"{path} exists already; episodes are never overwritten. Choose another folder.")
        self.path = path
        self.dropped_frames = 0
        self._part = path.with_suffix(PART_SUFFIX)
        self._file = _new_part(self._part)
        self._queue: queue.SimpleQueue[tuple[dict[str, Any], bool] | None] = queue.SimpleQueue()
        self._frame_slots = threading.Semaphore(FRAME_BACKLOG)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._drain, name=f"log {path.name}", daemon=True)
        self._thread.start()
        self._queue.put(({"kind": "header", **header}, False))

    def add(self, step: EpisodeStep) -> None:
        """Queue one step; returns at once."""
        self.add_record(step_record(step), step.observation.images)

    def add_gap(self, gap: Gap) -> None:
        """Queue a record of missing steps; returns at once."""
        self._queue.put(({"kind": "gap", "first": gap.first, "count": gap.count}, False))

    def add_record(self, record: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        """Queue one step from the plain data of `step_record` and its frames; returns at once."""
        with_frames = self._frame_slots.acquire(blocking=False)
        if not with_frames:
            self.dropped_frames += 1
        observation = {**record["observation"], "frames": dict(images) if with_frames else {}}
        self._queue.put(({**record, "observation": observation}, with_frames))

    def require_written(self) -> None:
        """Raise DataError when a write has already failed; the .part file holds what was written before."""
        if self._failure is not None:
            self._stop()
            self._file.close()
            raise self._refused(self._failure)

    def finish(self, last: Observation, summary: Mapping[str, Any]) -> Path:
        """Write the end, sync the file to the disk, and rename it to its own name.

        Args:
            last: the observation after the last step.
            summary: plain data on how the episode ended.

        Returns:
            The path of the log.

        Raises:
            DataError: a write failed; the .part file holds what was written before.
        """
        return self.finish_record(observation_record(last), last.images, summary)

    def finish_record(self, last: Mapping[str, Any], images: Mapping[str, Image], summary: Mapping[str, Any]) -> Path:
        """Finish the log from the plain data of `observation_record` and its frames; see `finish`."""
        end = {
            "kind": "end",
            "last": {**last, "frames": dict(images)},
            "summary": {**summary, "dropped_frames": self.dropped_frames},
        }
        self._queue.put((end, False))
        self._stop()
        with self._file:  # closing it unlocks it, which must happen after the rename
            if self._failure is not None:
                raise self._refused(self._failure) from self._failure
            try:
                sync_file(self._file)
                rename(self._part, self.path)
            except OSError as error:
                raise self._refused(error) from error
        return self.path

    def discard(self) -> None:
        """Delete the episode from the disk."""
        self._stop()
        self._file.close()
        self._part.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Stop without an end: the .part file holds the steps that were added."""
        self._stop()
        self._file.close()

    def _refused(self, error: Exception) -> DataError:
        safe = f"The steps until then are in {self._part}."
        if isinstance(error, OSError):
            return refusal(self._part, error, safe)
        return DataError(f"cannot write {self._part}: {in_words(error)}. {safe}")

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _drain(self) -> None:
        """Write queued records, in the writer's thread. After a failed write, still empty the queue."""
        unsynced = self._sync_name()
        while (item := self._queue.get()) is not None:
            record, holds_slot = item
            try:
                if self._failure is None:
                    _write(self._file, _encode(record))
            except Exception as error:  # this thread has no caller: `finish` raises every error
                self._failure = error
            if holds_slot:
                self._frame_slots.release()
        self._failure = self._failure or unsynced  # last, so that the steps are written in any case

    def _sync_name(self) -> OSError | None:
        """Sync the name of the .part file to the disk, in this thread, since the robot does not wait for a busy disk.

        Returns:
            The error of the sync, or None.
        """
        try:
            sync_folder(self._part.parent)
        except OSError as error:
            return error
        return None


def read_episode(path: Path) -> EpisodeLog:
    """Read a log, finished or not. A damaged or missing tail is left out and described in `damage`.

    Raises:
        DataError: the file is no episode log, or its header cannot be read.
    """
    try:
        data = read_file(path, MAX_LOG_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    if not data.startswith(MAGIC):
        raise DataError(f"{path} is not an episode log: it begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}.")
    with malformed(f"{path}: a record", also=(msgpack.UnpackException,)):
        records, damage = _records(data)
        if not records or records[0].get("kind") != "header":
            raise DataError(f"{path} has no readable header: {damage or 'its first record is something else'}.")
        return _assemble(records, damage)


def _assemble(records: list[dict[str, Any]], damage: str | None) -> EpisodeLog:
    _require_frames_fit(records)
    header = {key: value for key, value in records[0].items() if key != "kind"}
    instruction = str(header.get("instruction", ""))
    steps = tuple(_step(record, instruction) for record in records if record["kind"] == "step")
    end = records[-1] if records[-1]["kind"] == "end" else None
    if end is None and damage is None:
        damage = f"the log ends after {len(steps)} steps without its end record"
    return EpisodeLog(
        header=header,
        steps=steps,
        last=None if end is None else _observation(end["last"], instruction),
        summary=None if end is None else end["summary"],
        damage=damage,
        gaps=tuple(Gap(record["first"], record["count"]) for record in records if record["kind"] == "gap"),
    )


def _require_frames_fit(records: list[dict[str, Any]]) -> None:
    """Raise DataError when all frames together, decoded, take more than MAX_FRAMES_BYTES."""
    observations = [record.get("observation") or record.get("last") or {} for record in records]
    sizes = (picture_size(frame) for observation in observations for frame in observation.get("frames", {}).values())
    require_bytes(
        sum(3 * size[0] * size[1] for size in sizes if size), MAX_FRAMES_BYTES, "the frames of a log, decoded,"
    )


def _records(data: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """Return the records up to the first damaged one, and what is wrong with that one; None when none is damaged."""
    records: list[dict[str, Any]] = []
    at = len(MAGIC)
    while at < len(data):
        left = len(data) - at - _PREFIX.size
        if left < 0:
            return records, f"cut off at byte {at}, inside a record's length"
        length, crc = _PREFIX.unpack_from(data, at)
        if length > left:
            return records, f"cut off at byte {at}: a record of {length} bytes has only {left} left"
        payload = data[at + _PREFIX.size : at + _PREFIX.size + length]
        if length > MAX_RECORD_BYTES or zlib.crc32(payload) != crc:
            return records, f"damaged at byte {at}: the checksum does not match"
        records.append(msgpack.unpackb(payload))
        at += _PREFIX.size + length
    return records, None


def _encode(record: Mapping[str, Any]) -> bytes:
    """Return a record's bytes. Frames become PNG here, in the writer's thread."""
    payload = msgpack.packb(record, default=_plain)
    assert payload is not None  # only its typing says that it could be
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


def _plain(value: object) -> Any:
    """Return a frame as PNG, and a scalar of numpy's, which a world may give, as one of Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"an episode log holds plain data and frames, got {type(value).__name__}.")
    return png.encode(value)


def step_record(step: EpisodeStep) -> dict[str, Any]:
    """Return a step as plain data, without its frames."""
    return {
        "kind": "step",
        "observation": observation_record(step.observation),
        "commanded": _numbers(step.commanded),
        "executed": _numbers(step.executed),
        "command_ns": step.command_ns,
        "success": step.success,
        "clamps": [vars(clamp) for clamp in step.clamps],
        "stages_ms": dict(step.stages_ms),
        "intervention": step.intervention,
        "held": step.held,
        "policy_action": _numbers(step.policy_action),
        "wanted": _numbers(step.wanted),
        **{name: value for name in _SIGNALS if (value := getattr(step, name)) is not None},
    }


def observation_record(observation: Observation) -> dict[str, Any]:
    """Return an observation as plain data, without frames, privileged values and instruction (the header has it)."""
    return {
        "step": observation.step,
        "stamp_ns": observation.stamp_ns,
        "state": observation.state.tolist(),
        **({"stamps_ns": dict(observation.stamps_ns)} if observation.stamps_ns else {}),
    }


def _numbers(values: Vector | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _vector(numbers: list[float] | None) -> Vector | None:
    """Return an array; None for None and for only NaN, which older logs hold where no action was commanded."""
    values = None if numbers is None else np.array(numbers, dtype=np.float64)
    return None if values is None or np.isnan(values).all() else values


def _step(record: Mapping[str, Any], instruction: str) -> EpisodeStep:
    return EpisodeStep(
        observation=_observation(record["observation"], instruction),
        commanded=_vector(record["commanded"]),
        executed=_vector(record["executed"]),
        command_ns=int(record["command_ns"]),
        success=bool(record["success"]),
        clamps=tuple(Clamp(**clamp) for clamp in record["clamps"]),
        stages_ms=record["stages_ms"],
        wanted=_vector(record.get("wanted")),
        **{name: float(value) for name in _SIGNALS if (value := record.get(name)) is not None},
        **_drivers(record),
    )


def _drivers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say who drove; older logs lack them."""
    return {
        "intervention": bool(record.get("intervention", False)),
        "held": bool(record.get("held", False)),
        "policy_action": _vector(record.get("policy_action")),
    }


def _observation(record: Mapping[str, Any], instruction: str) -> Observation:
    return Observation(
        images={name: png.decode(frame) for name, frame in record["frames"].items()},
        state=np.array(record["state"], dtype=np.float64),
        instruction=instruction,
        stamp_ns=int(record["stamp_ns"]),
        step=int(record["step"]),
        stamps_ns={name: int(at) for name, at in record.get("stamps_ns", {}).items()},
    )


def frames_of(log: EpisodeLog) -> Iterator[tuple[int, Mapping[str, Image]]]:
    """Yield (step, camera name -> (H, W, 3) uint8) of each observation with frames, including the last one."""
    for observation in (*(step.observation for step in log.steps), *([log.last] if log.last else [])):
        if observation.images:
            yield observation.step, observation.images


def set_aside(part: Path) -> Path | None:
    """Rename the .part file of a process that died, so that its episode can be recorded again.

    Returns:
        The new path; None when there is no such file.

    Raises:
        DataError: a running process writes the file, or the disk refuses.
    """
    with writing(part):
        try:
            file = part.open("r+b")
        except FileNotFoundError:
            return None
        with file:
            _lock(file, part)
            names = (f"{part.name.removesuffix(PART_SUFFIX)}.crashed-{n}{PART_SUFFIX}" for n in itertools.count(1))
            aside = next(path for name in names if not (path := part.with_name(name)).exists())
            rename(part, aside)
            return aside


def _new_part(part: Path) -> FileIO:
    """Create a .part file with an exclusive lock that lasts while it is open.

    Raises:
        DataError: another process writes that file, or the disk refuses.
    """
    with writing(part):
        make_folder(part.parent)
        set_aside(part)
        file = part.open("xb", buffering=0)  # unbuffered, so that no write is lost when this process dies
        try:
            _lock(file, part)
            _write(file, MAGIC)
        except BaseException:
            file.close()
            raise
        return file


def _lock(file: IO[bytes] | FileIO, part: Path) -> None:
    """Lock a file until it is closed or the process ends. Raise DataError where another process holds the lock."""
    busy = f"{part} is being written by another process. Wait until it ends, or choose another folder."
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(busy) from error
    if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
        raise DataError(busy)  # it was renamed between the opening and the locking


def _write(file: FileIO, data: bytes) -> None:
    """Write all of `data`: on a full disk, one write may store only a part without an error."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
