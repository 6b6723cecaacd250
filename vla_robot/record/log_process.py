"""Episode logs written by a process of its own: what must keep a clock shares not even Python's lock with them.

    control thread --add--> queue --> a thread --raw frames, by a pipe--> the process --> EpisodeWriter --> .vlalog
                             bounded: frames that find no room are left out and counted, numbers never are

A thread that encodes frames holds Python's lock for moments, and where the computer is busy it loses its core while it
does: a control tick then waits for it. Here the thread does nothing but hand over memory.

    message = length of head (4 bytes, little endian) | head (msgpack) | one raw frame after another
    head    = {"do": "open", "path", "header"} | {"do": "step", "step", "frames": [[name, shape], ...]}
            | {"do": "finish", "last", "frames", "summary", "dropped"} | {"do": "discard"} | {"do": "abandon"}

The process says {"failed": why}, once, as soon as a log cannot be written, and {"done": why} after its last message;
why is empty when all is on the disk. Each is one line of JSON. It ends when the pipe does, whatever became of the other
side; what it was told until then is on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import signal
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

ENDS = ("finish", "discard", "abandon")
"""Messages that are a log's last, and are answered."""

PIPE_BYTES = 1 << 20
"""The most that Linux gives a process without privileges [bytes]."""

GONE = "the process that writes it has ended"
STUCK = "the process that writes it takes nothing any more"

MAX_WAITING = 20_000
"""Messages that may wait for the process, beside their frames: some minutes of control, 40 MB."""

EXIT_TIMEOUT_S = 5.0
"""For what the process was told already, once it is told nothing more [s]."""

_LENGTH = struct.Struct("<I")


class LogProcess:
    """Opens logs, one after the other; use it in a `with` block.

    A process that died, or takes nothing any more, is replaced for the next log.
    """

    def __init__(self) -> None:
        self._process = _Process()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.end()

    def open(self, path: Path, header: Mapping[str, Any]) -> ProcessWriter:
        """A log that the process writes once it is done with the one before. Returns at once, whatever the disk does.

        What only the disk can tell, such as a folder that cannot be made or a log that exists, is told by the writer.

        Raises:
            DataError: the path does not end as a log does, or no process can be started.
        """
        if path.suffix != SUFFIX:
            raise DataError(f"an episode log ends in {SUFFIX}, got {path}.")
        if not self._process.works:
            self._process.kill()
            self._process = _Process()
        return ProcessWriter(path, header, self._process)


class _Process:
    """The child. Its pipes live as long as a thread may write to them."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "vla_robot.record.log_process"]
        try:
            # In a session of its own: Ctrl-C is for the one that it serves.
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise DataError(f"the process that writes episode logs cannot be started: {error.strerror}.") from error
        assert self._child.stdin is not None and self._child.stdout is not None
        self._pipe = self._child.stdin.fileno()
        self._answers = self._child.stdout
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # a tick's frames in one go
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._ended = False
        self.turn = threading.Lock()
        """Held by the writer that the process listens to."""
        self.stuck = False
        """It has taken nothing for too long."""

    @property
    def works(self) -> bool:
        return not self.stuck and self._child.poll() is None

    @property
    def pid(self) -> int:
        return self._child.pid

    def write(self, data: bytes | memoryview) -> None:
        """All of it; other threads run while the pipe is full. Raises OSError when the process has ended."""
        left = memoryview(data)
        while left:
            if self._ended:
                raise BrokenPipeError(GONE)  # the number of the pipe may be another file's by now
            left = left[os.write(self._pipe, left) :]

    def answer_to(self, what: str, wait: bool) -> str | None:
        """Why it could not do `what`, "failed" or "done"; None when it has not said so.

        Args:
            what: kind of line; others are passed over.
            wait: until it says so, or ends.
        """
        while wait or select.select([self._answers], [], [], 0)[0]:
            line = self._answers.readline()
            if not line.endswith(b"\n"):
                return GONE
            told: dict[str, str] = json.loads(line)
            if what in told:
                return told[what]
        return None

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def end(self) -> None:
        """Let it write what it was told, and end it; a process that takes longer than EXIT_TIMEOUT_S is killed."""
        is_free = self.turn.acquire(timeout=EXIT_TIMEOUT_S)
        self._ended = True
        if not is_free:  # the thread that writes to it is told that it is gone, and keeps the pipe
            return self.kill()
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()  # the end of its input ends it
        self.turn.release()
        try:
            self._child.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


class ProcessWriter:
    """`EpisodeWriter` in another process.

    Attributes:
        dropped_frames: steps whose frames were left out because the process had fallen behind.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], process: _Process) -> None:
        """
        Args:
            path: of the log.
            header: plain data, stored verbatim.
            process: writes it.
        """
        self.path = path
        self.dropped_frames = 0
        self._process = process
        self._queue: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(FRAME_BACKLOG)
        self._failure = ""
        self._tell({"do": "open", "path": str(path.absolute()), "header": dict(header)}, {})
        self._thread = threading.Thread(target=self._run, name=f"log {path.name}", daemon=True)
        self._thread.start()

    def add(self, step: EpisodeStep) -> None:
        """Queue one step; returns at once.

        Raises:
            DataError: it is known that the log cannot be written any more.
        """
        if not self._failure and self._queue.qsize() >= MAX_WAITING:
            self._failure, self._process.stuck = STUCK, True
        if self._failure:
            raise self._error()
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

    def abandon(self) -> None:
        """Leave the log as it is, without an end: what was added is in the .part file."""
        self._tell({"do": "abandon"}, {})
        self._queue.put(None)
        self._thread.join()

    def _end(self, head: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        self._tell(head, images)
        self._queue.put(None)
        self._thread.join()
        if self._failure:
            raise self._error()

    def _error(self) -> DataError:
        return DataError(f"the episode log {self.path} is not whole: {self._failure}")

    def _tell(self, head: Mapping[str, Any], images: Mapping[str, Image], holds_slot: bool = False) -> None:
        """Queue one message; returns at once."""
        self._queue.put(_Message(head, images, holds_slot))

    def _run(self) -> None:
        """The thread. After a failure it goes on emptying the queue, so that no thread waits for it."""
        with self._process.turn:
            while (message := self._queue.get()) is not None:
                if not self._failure and (why := self._send(message)):
                    self._failure = why  # never back to none: `add` may have found the process stuck meanwhile
                if message.holds_slot:
                    self._slots.release()

    def _send(self, message: _Message) -> str:
        """Why it could not be written; empty as far as is known."""
        try:
            self._write(message)
        except OSError:
            return GONE
        except Exception as error:  # whatever it is, `finish` must learn of it: this thread has no caller
            return f"{type(error).__name__}: {error}"
        if message.head["do"] in ENDS:
            return self._process.answer_to("done", wait=True) or ""
        return self._process.answer_to("failed", wait=False) or ""

    def _write(self, message: _Message) -> None:
        frames = [[name, image.shape] for name, image in message.images.items()]
        packed = msgpack.packb({**message.head, "frames": frames}, default=_plain)
        assert packed is not None  # only its typing says that it could be
        self._process.write(_LENGTH.pack(len(packed)) + packed)
        for image in message.images.values():
            self._process.write(np.ascontiguousarray(image).data.cast("B"))


class _Message(NamedTuple):
    head: Mapping[str, Any]
    images: Mapping[str, Image]
    holds_slot: bool


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an episode log holds plain data and frames, got {type(value).__name__}.")


def serve(messages: IO[bytes], answers: IO[bytes]) -> None:
    """Write what comes until nothing does."""
    writer: EpisodeWriter | None = None
    failure = ""
    while (head := _head(messages)) is not None:
        images = _frames(messages, head["frames"])
        failure = "" if head["do"] == "open" else failure
        try:
            writer = _obey(head, images, writer)
        except (DataError, OSError) as error:
            writer, failure = None, failure or str(error)
            _say(answers, {"failed": failure})
        if head["do"] in ENDS:
            _say(answers, {"done": failure})
    if writer is not None:
        writer.abandon()


def _say(answers: IO[bytes], what: Mapping[str, str]) -> None:
    answers.write(json.dumps(what).encode() + b"\n")
    answers.flush()


def _obey(head: Mapping[str, Any], images: Mapping[str, Image], writer: EpisodeWriter | None) -> EpisodeWriter | None:
    """Do what one message asks for; the writer that goes on."""
    if head["do"] == "open":
        if writer is not None:
            writer.abandon()
        return EpisodeWriter(Path(head["path"]), head["header"])
    if writer is None:
        return None
    if head["do"] == "step":
        writer.add_record(head["step"], images)
        writer.require_written()
        return writer
    if head["do"] == "finish":
        writer.dropped_frames += head["dropped"]
        writer.finish_record(head["last"], images, head["summary"])
    elif head["do"] == "discard":
        writer.discard()
    else:
        writer.abandon()
    return None


def _head(messages: IO[bytes]) -> dict[str, Any] | None:
    """The next message without its frames; None when the other side has ended, within a message or between two."""
    length = messages.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    packed = messages.read(size)
    return msgpack.unpackb(packed) if len(packed) == size else None


def _frames(messages: IO[bytes], shapes: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Image]:
    """The frames of a message; none where the other side ended within them: half a frame was never seen."""
    frames: dict[str, Image] = {}
    for name, shape in shapes:
        size = int(np.prod(shape))
        data = messages.read(size)
        if len(data) < size:
            return {}
        frames[name] = np.frombuffer(data, np.uint8).reshape(shape)
    return frames


def main() -> int:
    """The process. It ends when its input does: a service manager's SIGTERM to the whole group must not cut the log."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    serve(os.fdopen(0, "rb"), os.fdopen(1, "wb"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
