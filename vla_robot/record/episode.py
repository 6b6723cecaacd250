"""One episode's log: what the robot saw, what it was told, what it did. Append-only, readable after any crash.

    seed_10000.vlalog                  a finished episode
    seed_10000.vlalog.part             one that is being written, or was when the process died; reads just as well
    seed_10000.crashed-1.vlalog.part   such a file of a dead process, set aside when the episode is driven again

    file   = "VLALOG1\\n" record*
    record = length (4 bytes, little endian) | CRC-32 of payload (4 bytes) | payload (msgpack map with "kind")
    kinds  = header, then (step | gap)*, then end

Frames are PNG, lossless: a failure is studied on exactly the pixels that the policy saw. Encoding and writing happen in
a thread of the writer's own. When that thread falls behind, frames are dropped and counted, numbers never are, and the
control loop never waits.
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
"""Steps whose frames may wait for the writer: some seconds of control, 20 MB with two cameras of 224 x 224."""

MAX_RECORD_BYTES = 1 << 28
MAX_LOG_BYTES = 1 << 32
MAX_FRAMES_BYTES = 1 << 33
"""Of all frames of a log, decoded: 15 minutes at 10 Hz with one camera of 640 x 480."""
_PREFIX = struct.Struct("<II")


@dataclass(frozen=True)
class EpisodeStep:
    """One control step.

    Attributes:
        observation: what the policy saw; without frames where those were dropped.
        commanded: (D,) what was sent to the world, in the units of the embodiment's action space; None when no action
            was due and the pose was held.
        executed: (D,) what was really sent to the arm; None when nothing was, see `StepResult.executed`.
        command_ns: when; the world's clock.
        success: the task's success test held after the step.
        clamps: every limit that changed the action.
        stages_ms: where the time from capture to command went.
        intervention: a person took over: `commanded` is theirs.
        held: no action was available, and the arm held its pose.
        policy_action: (D,) what the policy would have done in the person's place, where it was asked.
        wanted: (D,) the driver's action, before the guard of the control loop cut it to `commanded`; None when
            no action was due, and in logs that do not say.
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


@dataclass(frozen=True)
class Gap:
    """Control steps that happened and are not in the log. The steps on both sides of a gap are no neighbours.

    Attributes:
        first: number of the first step that is missing, as `Observation.step`.
        count: how many are missing.
    """

    first: int
    count: int


@dataclass(frozen=True)
class EpisodeLog:
    """A log as read back.

    Attributes:
        header: what the episode was: seed, instruction, embodiment, recipes, versions.
        steps: as far as they can be read.
        last: the observation after the last step; None when the log has no end.
        summary: how it ended; None when the log has no end.
        damage: what is wrong with the file and where, or None. What precedes the damage is valid.
        gaps: steps that are missing between those that are there, in order; the numbers of the steps jump there, too.
    """

    header: Mapping[str, Any]
    steps: tuple[EpisodeStep, ...]
    last: Observation | None
    summary: Mapping[str, Any] | None
    damage: str | None
    gaps: tuple[Gap, ...] = ()

    @property
    def complete(self) -> bool:
        return self.summary is not None and self.damage is None


class EpisodeWriter:
    """Writes one log. `finish` makes it visible under its own name; until then it is a .part file.

    Attributes:
        dropped_frames: steps whose frames were left out because the writer had fallen behind.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """
        Args:
            path: ends in .vlalog; must not exist yet.
            header: plain data, stored verbatim.

        Raises:
            DataError: the file exists, another process writes it, or the folder cannot be written.
        """
        if path.suffix != SUFFIX:
            raise DataError(f"an episode log ends in {SUFFIX}, got {path}.")
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
        """Queue the mark of steps that are missing here; returns at once."""
        self._queue.put(({"kind": "gap", "first": gap.first, "count": gap.count}, False))

    def add_record(self, record: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        """`add` for a step that `step_record` has taken apart."""
        with_frames = self._frame_slots.acquire(blocking=False)
        if not with_frames:
            self.dropped_frames += 1
        observation = {**record["observation"], "frames": dict(images) if with_frames else {}}
        self._queue.put(({**record, "observation": observation}, with_frames))

    def require_written(self) -> None:
        """Raise DataError when it is known that something could not be; what could is in the .part file."""
        if self._failure is not None:
            self._stop()
            self._file.close()
            raise self._refused(self._failure)

    def finish(self, last: Observation, summary: Mapping[str, Any]) -> Path:
        """Write the end, force everything to the disk, and give the file its name.

        Raises:
            DataError: something could not be written; the .part file holds what could.
        """
        return self.finish_record(observation_record(last), last.images, summary)

    def finish_record(self, last: Mapping[str, Any], images: Mapping[str, Image], summary: Mapping[str, Any]) -> Path:
        """`finish` for an observation that `observation_record` has taken apart."""
        end = {
            "kind": "end",
            "last": {**last, "frames": dict(images)},
            "summary": {**summary, "dropped_frames": self.dropped_frames},
        }
        self._queue.put((end, False))
        self._stop()
        with self._file:  # closed, and so unlocked, when it has its name
            if self._failure is not None:
                raise self._refused(self._failure) from self._failure
            try:
                sync_file(self._file)
                rename(self._part, self.path)
            except OSError as error:
                raise self._refused(error) from error
        return self.path

    def discard(self) -> None:
        """Forget the episode: nothing of it stays on the disk."""
        self._stop()
        self._file.close()
        self._part.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave the episode as it is, without an end: what was added is in the .part file."""
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
        """The writer's thread. After a failed write it goes on emptying the queue, so that no thread waits for it."""
        unsynced = self._sync_name()
        while (item := self._queue.get()) is not None:
            record, holds_slot = item
            try:
                if self._failure is None:
                    _write(self._file, _encode(record))
            except Exception as error:  # whatever it is, `finish` must learn of it: this thread has no caller
                self._failure = error
            if holds_slot:
                self._frame_slots.release()
        self._failure = self._failure or unsynced  # the steps are written all the same

    def _sync_name(self) -> OSError | None:
        """Force the name of the .part file to the disk: in this thread, since the robot moves while a busy disk works.

        Returns:
            what the disk refused, or None.
        """
        try:
            sync_folder(self._part.parent)
        except OSError as error:
            return error
        return None


def read_episode(path: Path) -> EpisodeLog:
    """Read a log, finished or not. A damaged or missing tail is left out and named in `damage`.

    Raises:
        DataError: this is no episode log, or not even its header can be read.
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
    """Raise DataError when the frames, all of which are decoded, take more than MAX_FRAMES_BYTES."""
    observations = [record.get("observation") or record.get("last") or {} for record in records]
    sizes = (picture_size(frame) for observation in observations for frame in observation.get("frames", {}).values())
    require_bytes(
        sum(3 * size[0] * size[1] for size in sizes if size), MAX_FRAMES_BYTES, "the frames of a log, decoded,"
    )


def _records(data: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """Every intact record up to the first that is not, and what is wrong with that one."""
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
    """Frames become PNG here, in the writer's thread."""
    payload = msgpack.packb(record, default=_plain)
    assert payload is not None  # only its typing says that it could be
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


def _plain(value: object) -> Any:
    """A frame as PNG; a number or a truth of numpy's, which a world may well give, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"an episode log holds plain data and frames, got {type(value).__name__}.")
    return png.encode(value)


def step_record(step: EpisodeStep) -> dict[str, Any]:
    """A step as plain data, without its frames."""
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
    }


def observation_record(observation: Observation) -> dict[str, Any]:
    """Without its frames, without the instruction, which the header has, and without simulator truth."""
    return {
        "step": observation.step,
        "stamp_ns": observation.stamp_ns,
        "state": observation.state.tolist(),
        **({"stamps_ns": dict(observation.stamps_ns)} if observation.stamps_ns else {}),
    }


def _numbers(values: Vector | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _vector(numbers: list[float] | None) -> Vector | None:
    """An old log holds NaN where nothing was commanded."""
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
        **_drivers(record),
    )


def _drivers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Which of policy and person drove; logs older than the takeover do not say."""
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
    """(step, camera name -> frame) of every moment that has frames, the one after the last step included."""
    for observation in (*(step.observation for step in log.steps), *([log.last] if log.last else [])):
        if observation.images:
            yield observation.step, observation.images


def set_aside(part: Path) -> Path | None:
    """Rename the .part file of a process that died, so that its episode can be driven again. Nothing of it is lost.

    Returns:
        Its new path; None when there is no such file.

    Raises:
        DataError: a process that lives writes it, or the disk refuses.
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
    """A file that did not exist, locked for as long as it is open."""
    with writing(part):
        make_folder(part.parent)
        set_aside(part)
        file = part.open("xb", buffering=0)  # what is written outlives this process, however it ends
        try:
            _lock(file, part)
            _write(file, MAGIC)
        except BaseException:
            file.close()
            raise
        return file


def _lock(file: IO[bytes] | FileIO, part: Path) -> None:
    """Held until the file is closed, however that comes about; raise DataError where another process holds it."""
    busy = f"{part} is being written by another process. Wait until it ends, or choose another folder."
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(busy) from error
    if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
        raise DataError(busy)  # it was renamed between the opening and the locking


def _write(file: FileIO, data: bytes) -> None:
    """All of it: a disk that fills up takes a part without an error, and refuses the rest."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
