"""Episode logs written by a process of its own: what must keep a clock shares not even Python's lock with them.

    control thread --add--> queue --> a thread --raw frames, by a pipe--> the process --> EpisodeWriter --> .vlalog
                             bounded: frames that find no room are left out and counted, numbers never are

A thread that encodes frames holds Python's lock for moments, and where the computer is busy it loses its core while it
does: a control tick then waits for it. Here the thread does nothing but hand over memory.

    message = length of head (4 bytes, little endian) | head (msgpack) | one raw frame after another
    head    = {"do": "open", "path", "header"} | {"do": "step", "step", "frames": [[name, shape], ...]}
            | {"do": "finish", "last", "frames", "summary", "dropped"} | {"do": "discard"}

The process answers "finish" and "discard" with a line: empty, or what went wrong. It ends when the pipe does, whatever
became of the other side; what it was told until then is on the disk.
"""

from __future__ import annotations

import fcntl
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import msgpack
import numpy as np

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Image, Observation
from vla_robot.record.episode import (
    FRAME_BACKLOG,
    SUFFIX,
    EpisodeStep,
    EpisodeWriter,
    observation_record,
    step_record,
)

PIPE_BYTES = 1 << 20
"""As much as Linux gives anybody."""

GONE = "the process that writes it has ended"

_LENGTH = struct.Struct("<I")


class LogProcess:
    """Opens logs, one at a time; use it in a `with` block."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "vla_robot.record.log_process"]
        # In a session of its own: Ctrl-C is for the one that it serves.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # a tick's frames in one go
            fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def open(self, path: Path, header: Mapping[str, Any]) -> ProcessWriter:
        """A log that the process writes; the one before it must be finished or discarded.

        Raises:
            DataError: the file exists, does not end as a log does, or its folder cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}. Choose another folder.") from error
        if path.suffix != SUFFIX or path.exists():
            raise DataError(f"{path} cannot become a new episode log: it exists, or does not end in {SUFFIX}.")
        assert self._process.stdin is not None and self._process.stdout is not None
        return ProcessWriter(path, header, self._process.stdin.fileno(), self._process.stdout)


class ProcessWriter:
    """`EpisodeWriter` in another process.

    Attributes:
        dropped_frames: steps whose frames were left out because the process had fallen behind.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], pipe: int, answers: IO[bytes]) -> None:
        """
        Args:
            path: of the log.
            header: plain data, stored verbatim.
            pipe: to the process; a file descriptor.
            answers: from the process.
        """
        self.path = path
        self.dropped_frames = 0
        self._pipe = pipe
        self._answers = answers
        self._queue: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(FRAME_BACKLOG)
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._drain, name=f"log {path.name}", daemon=True)
        self._thread.start()
        self._tell({"do": "open", "path": str(path.absolute()), "header": dict(header)}, {})

    def add(self, step: EpisodeStep) -> None:
        """Queue one step; returns at once."""
        images = step.observation.images
        if not self._slots.acquire(blocking=False):
            self.dropped_frames += 1
            images = {}
        self._tell({"do": "step", "step": step_record(step)}, images, holds_slot=bool(images))

    def finish(self, last: Observation, summary: Mapping[str, Any]) -> Path:
        """Have the end written, everything forced to the disk, and the file given its name.

        Raises:
            DataError: something could not be written; the .part file holds what could.
        """
        record, dropped = observation_record(last), self.dropped_frames
        self._end({"do": "finish", "last": record, "summary": dict(summary), "dropped": dropped}, last.images)
        return self.path

    def discard(self) -> None:
        """Forget the episode: nothing of it stays on the disk."""
        self._end({"do": "discard"}, {})

    def _end(self, head: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        self._tell(head, images)
        self._queue.put(None)
        self._thread.join()
        told = GONE if self._failure else self._answer()
        if told:
            raise DataError(f"cannot write {self.path}: {told}. Is the disk full?")

    def _tell(self, head: Mapping[str, Any], images: Mapping[str, Image], holds_slot: bool = False) -> None:
        """Queue one message; returns at once."""
        self._queue.put(_Message(head, images, holds_slot))

    def _answer(self) -> str:
        line = self._answers.readline()
        return line.decode().strip() if line.endswith(b"\n") else GONE

    def _drain(self) -> None:
        """The thread. After a failure it goes on emptying the queue, so that nobody waits for it."""
        while (message := self._queue.get()) is not None:
            try:
                if self._failure is None:
                    self._send(message)
            except OSError as error:
                self._failure = error
            if message.holds_slot:
                self._slots.release()

    def _send(self, message: _Message) -> None:
        frames = [[name, image.shape] for name, image in message.images.items()]
        packed = msgpack.packb({**message.head, "frames": frames}, default=_plain)
        assert packed is not None  # only its typing says that it could be
        _write(self._pipe, _LENGTH.pack(len(packed)) + packed)
        for image in message.images.values():
            _write(self._pipe, np.ascontiguousarray(image).data.cast("B"))


class _Message(NamedTuple):
    head: Mapping[str, Any]
    images: Mapping[str, Image]
    holds_slot: bool


def _write(pipe: int, data: bytes | memoryview) -> None:
    """All of it; other threads run while the pipe is full."""
    left = memoryview(data)
    while left:
        left = left[os.write(pipe, left) :]


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an episode log holds plain data and frames, got {type(value).__name__}.")


def serve(messages: IO[bytes], answers: IO[bytes]) -> None:
    """Write what comes until nothing does."""
    writer: EpisodeWriter | None = None
    failure = ""
    while (head := _head(messages)) is not None:
        images = {name: _frame(messages, shape) for name, shape in head["frames"]}
        try:
            writer = _obey(head, images, writer)
        except (DataError, OSError) as error:
            writer, failure = None, failure or str(error)
        if head["do"] in ("finish", "discard"):
            answers.write(failure.replace("\n", " ").encode() + b"\n")
            answers.flush()
            failure = ""
    if writer is not None:
        writer.abandon()


def _obey(head: Mapping[str, Any], images: Mapping[str, Image], writer: EpisodeWriter | None) -> EpisodeWriter | None:
    """Do what one message asks for; the writer that goes on."""
    if head["do"] == "open":
        return EpisodeWriter(Path(head["path"]), head["header"])
    if writer is None:
        return None
    if head["do"] == "step":
        writer.add_record(head["step"], images)
        return writer
    if head["do"] == "finish":
        writer.dropped_frames += head["dropped"]
        writer.finish_record(head["last"], images, head["summary"])
    else:
        writer.discard()
    return None


def _head(messages: IO[bytes]) -> dict[str, Any] | None:
    """The next message without its frames; None when the other side has ended, in the midst of one or not."""
    length = messages.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    packed = messages.read(size)
    return msgpack.unpackb(packed) if len(packed) == size else None


def _frame(messages: IO[bytes], shape: Sequence[int]) -> Image:
    """One frame; black where the other side ended in the midst of it."""
    size = int(np.prod(shape))
    return np.frombuffer(messages.read(size).ljust(size, b"\0"), np.uint8).reshape(shape)


def main() -> int:
    """The process."""
    serve(os.fdopen(0, "rb"), os.fdopen(1, "wb"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
