"""Writes episode logs in a separate process, so that encoding frames does not delay the control loop.

    control thread --add--> queue --> a thread --raw frames, by a pipe--> the process --> EpisodeWriter --> .vlalog
                             bounded: frames beyond the bound are dropped and counted, numbers never are

A thread that encodes frames holds Python's global lock for moments. On a busy computer it may lose its core while it
holds the lock, and a control tick then waits for it. Here the thread only copies memory to a pipe.

    message = length of head (4 bytes, little endian) | head (msgpack) | one raw frame after another
    head    = {"do": "open", "path", "header"} | {"do": "step", "step", "frames": [[name, shape], ...]}
            | {"do": "finish", "last", "frames", "summary", "dropped"} | {"do": "discard"} | {"do": "abandon"}

The process answers {"failed": why}, once, as soon as a log cannot be written, and {"done": why} after its last message;
why is empty when everything is on the disk. Each answer is one line of JSON. The process ends when the pipe is closed,
for any reason, after it has written the messages that it got.
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
from typing import IO, Any, NamedTuple

import msgpack
import numpy as np

from vla_robot.core.errors import DataError
from vla_robot.core.host.child_process import end_child
from vla_robot.core.host.closeable import Closeable
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
"""Last messages of a log, which the process answers."""

PIPE_BYTES = 1 << 20
"""Size of the pipe's buffer: the largest that Linux gives a process without privileges [bytes]."""

GONE = "the process that writes it has ended"
STUCK = "the process that writes it reads no more messages"

MAX_WAITING = 20_000
"""Number of messages that may wait for the process: some minutes of control, 40 MB without frames."""

EXIT_TIMEOUT_S = 5.0
"""Time that the process gets to write its last messages [s]."""

_LENGTH = struct.Struct("<I")


class LogProcess(Closeable):
    """A process that writes logs, one after the other; use it in a `with` block.

    A process that died, or reads no more messages, is replaced for the next log.
    """

    def __init__(self) -> None:
        self._process = _Process()

    def close(self) -> None:
        self._process.end()

    def open(self, path: Path, header: Mapping[str, Any]) -> ProcessWriter:
        """Return the writer of a log, which the process begins after the log before. Does not wait for the disk.

        Errors of the disk, such as a folder that cannot be made or a log that exists, are raised by the writer.

        Args:
            path: path that ends in .vlalog and does not exist yet.
            header: plain data, stored unchanged.

        Raises:
            DataError: the path does not end in .vlalog, or no process can be started.
        """
        if path.suffix != SUFFIX:
            raise DataError(f"the name of an episode log ends in {SUFFIX}, got {path}.")
        if not self._process.works:
            self._process.kill()
            self._process = _Process()
        return ProcessWriter(path, header, self._process)


class _Process:
    """The child process. Its pipes stay open as long as a thread may write to them."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "vla_robot.record.log_process"]
        try:
            # In a session of its own, so that Ctrl-C does not end it before the process that it serves.
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise DataError(f"the process that writes episode logs cannot be started: {error.strerror}.") from error
        assert self._child.stdin is not None and self._child.stdout is not None
        self._pipe = self._child.stdin.fileno()
        self._answers = self._child.stdout
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # large enough for the frames of a tick
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._ended = False
        self.turn = threading.Lock()
        """Lock that the writer of the current log holds."""
        self.stuck = False
        """Whether more than MAX_WAITING messages waited for the process."""

    @property
    def works(self) -> bool:
        return not self.stuck and self._child.poll() is None

    @property
    def pid(self) -> int:
        return self._child.pid

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`; other threads run while the pipe is full. Raise OSError when the process has ended."""
        left = memoryview(data)
        while left:
            if self._ended:
                raise BrokenPipeError(GONE)  # the descriptor is closed, and another file may have its number now
            left = left[os.write(self._pipe, left) :]

    def answer_to(self, what: str, wait: bool) -> str | None:
        """Return the text of the process's answer of one kind; None when there is no such answer yet.

        Args:
            what: kind of answer, "failed" or "done"; others are skipped.
            wait: whether to wait until that answer comes or the process ends.
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
        """Let the process write its messages and end; one that takes longer than EXIT_TIMEOUT_S is killed."""
        is_free = self.turn.acquire(timeout=EXIT_TIMEOUT_S)
        self._ended = True
        if not is_free:  # a thread still writes: it gets an error, and the pipe stays open
            return self.kill()
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()  # the process ends when its input does
        self.turn.release()
        end_child(self._child, EXIT_TIMEOUT_S)


class ProcessWriter:
    """A writer with the methods of `EpisodeWriter` that writes in another process.

    Attributes:
        dropped_frames: number of steps whose frames were left out because the process had fallen behind.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], process: _Process) -> None:
        """
        Args:
            path: the log's path.
            header: plain data, stored unchanged.
            process: the process that writes the log.
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
            DataError: a write of this log has already failed.
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
        """Do as `EpisodeWriter.finish`; waits for the process."""
        record, dropped = observation_record(last), self.dropped_frames
        self._end({"do": "finish", "last": record, "summary": dict(summary), "dropped": dropped}, last.images)
        return self.path

    def discard(self) -> None:
        """Delete the episode from the disk. Raise DataError when that failed."""
        self._end({"do": "discard"}, {})

    def abandon(self) -> None:
        """Stop without an end: the .part file holds the steps that were added."""
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
        return DataError(f"the episode log {self.path} is incomplete: {self._failure}")

    def _tell(self, head: Mapping[str, Any], images: Mapping[str, Image], holds_slot: bool = False) -> None:
        """Queue one message; returns at once."""
        self._queue.put(_Message(head, images, holds_slot))

    def _run(self) -> None:
        """Send queued messages, in the writer's thread. After a failure, still empty the queue."""
        with self._process.turn:
            while (message := self._queue.get()) is not None:
                if not self._failure and (why := self._send(message)):
                    self._failure = why  # never reset to "": `add` may have set it to STUCK meanwhile
                if message.holds_slot:
                    self._slots.release()

    def _send(self, message: _Message) -> str:
        """Send one message. Return why it could not be written; "" when no failure is known."""
        try:
            self._write(message)
        except OSError:
            return GONE
        except Exception as error:  # this thread has no caller: `finish` raises every error
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
    """Write the logs that the messages describe, until the messages end.

    Args:
        messages: stream of messages, see above.
        answers: stream that gets one line of JSON for each answer.
    """
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
    """Execute one message. Return the writer of the log that is open after it; None when none is."""
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
    """Return the next message's head; None when the stream ends, within a message or between two."""
    length = messages.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    packed = messages.read(size)
    return msgpack.unpackb(packed) if len(packed) == size else None


def _frames(messages: IO[bytes], shapes: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Image]:
    """Return the frames of a message, (H, W, 3) uint8 by name; none when the stream ends within them."""
    frames: dict[str, Image] = {}
    for name, shape in shapes:
        size = int(np.prod(shape))
        data = messages.read(size)
        if len(data) < size:
            return {}
        frames[name] = np.frombuffer(data, np.uint8).reshape(shape)
    return frames


def main() -> int:
    """Run the process until its input ends. It ignores signals, so that a SIGTERM to the group does not cut the log."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    serve(os.fdopen(0, "rb"), os.fdopen(1, "wb"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
