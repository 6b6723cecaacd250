"""Standard output and error for long-running processes: a write never raises and never waits; at worst it is lost.

    print, rich, logging --> SteadyStream.write --> bounded queue --> a thread --> terminal, pipe or file

A closed pipe, a pipe without a reader, a full disk, a closed terminal, a terminal that suspends what writes in its
background, and a character that the encoding lacks must not end or delay a control loop. `steady_output` replaces
`sys.stdout` and `sys.stderr` for a whole process, which covers libraries, warnings and rich's live lines.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import io
import os
import select
import signal
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Generator
from typing import TextIO

from vla_robot.core.errors import VlaError

MAX_LINE_BYTES = 1 << 16
"""Longest incomplete line that is held back."""

MAX_QUEUED_BYTES = 1 << 22
"""Most output that waits for its reader; more is lost and counted."""

SETTLE_S = 2.0
"""How long to wait at the end for a reader that reads nothing [s]."""

DEGRADING = "vla_robot.degrading"
"""Name of the codec error handler below."""

READER_LEFT = (errno.EPIPE, errno.ECONNRESET)
"""Errors of a pipe or socket whose reader ended, which is no error of this process."""

HUNG_UP = (errno.EIO, errno.ENXIO)
"""Errors of a closed terminal; for a file they are disk errors."""

ASCII = {"✔": "+", "✘": "x", "■": "-", "→": "->", "←": "<-", "–": "-", "—": "-", "×": "x", "·": "*", "▏": "|"}
"""Replacements of characters that an encoding lacks; others are decomposed ("²" to "2"), or become "?"."""


def _degrade(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(ASCII.get(c) or _decomposed(c) for c in error.object[error.start : error.end])
    return text, error.end


def _decomposed(character: str) -> str:
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


codecs.register_error(DEGRADING, _degrade)


class _Stream(io.TextIOBase):
    """Text stream onto the file descriptor of another stream, which stays open."""

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
        """The original buffer, for a library that writes bytes."""
        return self._original.buffer  # type: ignore[return-value]

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing: no text is held back."""

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._encoding, DEGRADING)


class CheckedStream(_Stream):
    """Stream that waits for its reader, for short commands.

    Raises:
        BrokenPipeError: the reader ended.
        VlaError: a write failed for another reason, as on a full disk.
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
    """Stream that never raises, and never waits unless `waits` is set.

    Attributes:
        lost: number of lines that were not written.
        failure: the error of the first one; None if the reader ended or read nothing.
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
        is_forked = os.getpid() != self._pid  # the child has no thread, and its lock may be held for ever
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
        """Write an incomplete line, such as a progress line."""
        if not self._waits and os.getpid() == self._pid:
            with self._changed:
                self._enqueue()

    def _enqueue(self) -> None:
        """Queue complete lines, so that those of two processes are not mixed."""
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
        """Return whether to queue the data. Lines are lost in one block, from a full queue until half of it is free."""
        if self._queued_bytes + len(data) > self._max_queued_bytes:
            self._losing = True
        elif self._losing and self._lost_whole_lines and self._queued_bytes <= self._max_queued_bytes / 2:
            self._losing = False
        return not (self._gone or self._losing)

    def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Wait until everything is written, or nothing was read for `timeout_s`; the rest is then lost."""
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
        # `stty tostop`: a terminal sends SIGTTOU to a process in its background that writes, which suspends it; a
        # thread that blocks the signal may write.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
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
                self._gone = True  # later output cannot arrive either
                self._lose(b"".join(self._queue))
                self._queue.clear()
            else:
                self.failure = self.failure or error  # a full disk may be cleared, so the next write tries again

    def _lose(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self._lost_whole_lines = data.endswith(b"\n")
        self.lost += lines
        self._unmentioned += lines

    def _mention(self) -> bytes:
        """Return a note about lost lines, once there is room again."""
        missing, self._unmentioned = self._unmentioned, 0
        return self._encoded(f"\n[{missing} lines are missing here: they could not be written]\n") if missing else b""


@contextlib.contextmanager
def steady_output(waits: bool = False) -> Generator[SteadyStream | None]:
    """Replace `sys.stdout` and `sys.stderr` by streams that never raise and never wait, during a `with` block.

    Args:
        waits: write at once, even to a full pipe: for a process whose last output before a crash matters most.

    Yields:
        The stream that replaces `sys.stdout`; None if that has no descriptor, as when a test captures it.
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
    """Replace them for short commands: output waits for its reader, and fails with a message."""
    fill_standard_streams()
    out, err = _over(sys.stdout, CheckedStream, "standard output"), _over(sys.stderr, SteadyStream, "standard error")
    with _replaced(out, err):
        try:
            yield
        finally:
            if err is not None:
                err.settle()


def fill_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 on /dev/null if they are closed, as after `<&-`.

    Otherwise a serial port or a socket would get the number, and a library that prints would write to the arm.
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
    except (OSError, ValueError, AttributeError):  # captured by a test or closed
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
