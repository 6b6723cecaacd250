"""Standard output and error of a process that must go on: a write never raises, never waits, and is lost at worst.

    print, rich, logging --> SteadyStream.write --> bounded queue --> a thread --> terminal, pipe or file

A closed pipe, a pipe without a reader, a full disk, a terminal that hung up and an encoding without the character must
not end or delay a control loop. `steady_output` replaces `sys.stdout` and `sys.stderr` for a whole process, so that no
call has to remember it: libraries, warnings and rich's live lines included.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import io
import os
import select
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Generator
from typing import TextIO

from vla_robot.core.errors import VlaError

MAX_LINE_BYTES = 1 << 16
"""What is held back of a line that is not complete."""

MAX_QUEUED_BYTES = 1 << 22
"""Output that waits for its reader; what comes on top is lost and counted."""

SETTLE_S = 2.0
"""At the end, for how long a reader that takes nothing is waited for."""

DEGRADING = "vla_robot.degrading"
"""Name of the codec error handler below."""

READER_LEFT = (errno.EPIPE, errno.ECONNRESET)
"""A pipe's or a socket's reader ended: not an error of this process's work."""

HUNG_UP = (errno.EIO, errno.ENXIO)
"""Of a terminal; of a file it is its disk's error."""

ASCII = {"✔": "+", "✘": "x", "■": "-", "→": "->", "←": "<-", "–": "-", "—": "-", "×": "x", "·": "*", "▏": "|"}
"""What stands for a character that an encoding lacks; others are decomposed ("²" to "2"), or become "?"."""


def _degrade(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(ASCII.get(c) or _decomposed(c) for c in error.object[error.start : error.end])
    return text, error.end


def _decomposed(character: str) -> str:
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


codecs.register_error(DEGRADING, _degrade)


class _Stream(io.TextIOBase):
    """A text stream onto a file descriptor, which stays the original stream's to close."""

    def __init__(self, original: TextIO, name: str) -> None:
        self._original = original
        self._fd = original.fileno()
        self._encoding = original.encoding or "utf-8"
        self._name = name
        self._was_terminal = self.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._encoding

    @property
    def errors(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return DEGRADING

    @property
    def buffer(self) -> io.BufferedIOBase:
        """For a library that writes bytes."""
        return self._original.buffer  # type: ignore[return-value]

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing is held back."""

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._encoding, DEGRADING)


class CheckedStream(_Stream):
    """Waits for its reader, for commands that are over in a moment.

    Raises:
        BrokenPipeError: the reader left.
        VlaError: a write failed otherwise, as on a full disk.
    """

    def write(self, text: str) -> int:
        try:
            _write_all(self._fd, self._encoded(text))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise VlaError(cannot_write(self._name, error)) from error
        return len(text)


class SteadyStream(_Stream):
    """Never raises; never waits either, unless it is made to.

    Attributes:
        lost: lines that were not written.
        failure: why the first of them was not; None where their reader left, or took nothing.
    """

    def __init__(
        self, original: TextIO, name: str, max_queued_bytes: int = MAX_QUEUED_BYTES, waits: bool = False
    ) -> None:
        super().__init__(original, name)
        self._waits = waits
        self.lost = 0
        self.failure: OSError | None = None
        self._max_queued_bytes = max_queued_bytes
        self._pid = os.getpid()
        # Reentrant: a signal handler may print while the same thread is writing.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._line = b""
        self._written = 0
        self._gone = False
        self._losing = False
        self._lost_whole_lines = True
        self._unmentioned = 0
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        data = self._encoded(text)
        is_forked = os.getpid() != self._pid  # the thread stayed behind, and its lock may be held for ever
        if self._waits or is_forked:
            with contextlib.suppress(OSError):
                _write_all(self._fd, data)
            return len(text)
        with self._changed:
            self._line += data
            if b"\n" in data or len(self._line) > MAX_LINE_BYTES:
                self._enqueue()
        return len(text)

    def flush(self) -> None:
        """Hand over a line that is not complete, as a progress line is."""
        if not self._waits and os.getpid() == self._pid:
            with self._changed:
                self._enqueue()

    def _enqueue(self) -> None:
        """Whole lines, so that those of two processes are not mixed."""
        data, self._line = self._line, b""
        if not data:
            return
        if not self._has_room(data):
            self._lose(data)
        else:
            data = self._mention() + data
            self._queue.append(data)
            self._queued_bytes += len(data)
            self._start()
            self._changed.notify_all()

    def _has_room(self, data: bytes) -> bool:
        """Losses are whole lines in one block: from the moment the queue is full until half of it is free."""
        if self._queued_bytes + len(data) > self._max_queued_bytes:
            self._losing = True
        elif self._losing and self._lost_whole_lines and self._queued_bytes <= self._max_queued_bytes / 2:
            self._losing = False
        return not (self._gone or self._losing)

    def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Wait until everything is written, or nothing was taken for `timeout_s`; what is left then is lost."""
        self.flush()
        if os.getpid() != self._pid:
            return
        with self._changed:
            before, since_s = self._written, time.monotonic()
            while self._queued_bytes and not self._gone:
                self._changed.wait(timeout_s / 20)
                if self._written != before:
                    before, since_s = self._written, time.monotonic()
                elif time.monotonic() - since_s > timeout_s:
                    break

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name=f"writes {self._name}", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                data = self._queue.popleft()
            try:
                _write_all(self._fd, data, self._progressed)
            except OSError as error:
                self._failed(error, data)
            with self._changed:
                self._queued_bytes = 0 if self._gone else self._queued_bytes - len(data)
                self._written += 1
                self._changed.notify_all()

    def _progressed(self) -> None:
        with self._changed:
            self._written += 1

    def _failed(self, error: OSError, data: bytes) -> None:
        with self._changed:
            self._lose(data)
            if error.errno in READER_LEFT or (self._was_terminal and error.errno in HUNG_UP):
                self._gone = True  # nothing that follows can arrive
                self._lose(b"".join(self._queue))
                self._queue.clear()
            else:
                self.failure = self.failure or error  # a full disk may be cleared: the next write tries again

    def _lose(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self._lost_whole_lines = data.endswith(b"\n")
        self.lost += lines
        self._unmentioned += lines

    def _mention(self) -> bytes:
        """Where lines are missing, once there is room again."""
        missing, self._unmentioned = self._unmentioned, 0
        return self._encoded(f"\n[{missing} lines are missing here: they could not be written]\n") if missing else b""


@contextlib.contextmanager
def steady_output(waits: bool = False) -> Generator[SteadyStream | None]:
    """Let `sys.stdout` and `sys.stderr` never raise and never wait, for the length of a `with` block.

    Args:
        waits: write at once, though a pipe may be full: for a process whose last words before a crash matter most.

    Yields:
        What stands for `sys.stdout`; None where that writes to no descriptor, as while a test captures it.
    """
    fill_standard_streams()
    steady = functools.partial(SteadyStream, waits=waits)
    out, err = _over(sys.stdout, steady, "standard output"), _over(sys.stderr, steady, "standard error")
    with _replaced(out, err):
        try:
            yield out
        finally:
            for stream in (out, err):
                if stream is not None:
                    stream.settle()


@contextlib.contextmanager
def checked_output() -> Generator[None]:
    """The same for commands that are over in a moment: their output waits for its reader, and fails with a sentence."""
    fill_standard_streams()
    out, err = _over(sys.stdout, CheckedStream, "standard output"), _over(sys.stderr, SteadyStream, "standard error")
    with _replaced(out, err):
        try:
            yield
        finally:
            if err is not None:
                err.settle()


def fill_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 on /dev/null where they are closed, as after `<&-`.

    A serial port or a socket would get the number otherwise, and a library that prints would write to the arm.
    """
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `fd`
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def cannot_write(name: str, error: OSError) -> str:
    """
    >>> cannot_write("standard output", OSError(28, "No space left on device"))
    'cannot write to standard output: No space left on device. Send it somewhere else, or make room.'
    """
    return f"cannot write to {name}: {error.strerror}. Send it somewhere else, or make room."


def _over[S: _Stream](original: TextIO, kind: Callable[[TextIO, str], S], name: str) -> S | None:
    try:
        original.flush()
        return kind(original, name)
    except (OSError, ValueError, AttributeError):  # captured by a test, or closed
        return None


@contextlib.contextmanager
def _replaced(out: _Stream | None, err: _Stream | None) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        if out is not None:
            stack.enter_context(contextlib.redirect_stdout(out))
        if err is not None:
            stack.enter_context(contextlib.redirect_stderr(err))
        yield


def _write_all(fd: int, data: bytes, progressed: Callable[[], None] | None = None) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # another program that shares the descriptor made it non-blocking
            select.select([], [fd], [])
            continue
        if progressed is not None:
            progressed()
