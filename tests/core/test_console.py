"""Output that never ends or delays the process that writes it, on real pipes, files and terminals."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
from rich.console import Console
from rich.live import Live

from vla_robot.core.errors import VlaError
from vla_robot.core.host.console import DEGRADING, CheckedStream, SteadyStream, steady_output

PIPE_BYTES = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reading end, and a text stream over the writing end of a pipe that is soon full."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with open(writing, "w", encoding="utf-8") as stream:
        yield reading, stream


def read_all(fd: int, until: Callable[[bytes], bool]) -> bytes:
    seen = b""
    while not until(seen):
        seen += os.read(fd, 65536)
    return seen


def test_a_reader_gets_everything_in_order(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    steady = SteadyStream(stream, "a pipe")
    for k in range(2000):  # more than the pipe holds
        print(k, file=steady)
    seen = read_all(reading, lambda seen: seen.endswith(b"\n1999\n"))
    assert seen.decode().split() == [str(k) for k in range(2000)]
    assert (steady.lost, steady.failure) == (0, None)


def test_a_pipe_that_nobody_reads_delays_nobody_and_what_is_lost_is_counted_and_mentioned(
    pipe: tuple[int, TextIO],
) -> None:
    reading, stream = pipe
    steady = SteadyStream(stream, "a pipe", max_queued_bytes=10_000)
    for k in range(10_000):  # would wait for ever
        print(f"line {k:04d}", file=steady)
    assert steady.lost > 0
    steady.settle(timeout_s=0.1)  # comes back
    lost = steady.lost
    kept = 10_000 - lost
    seen = read_all(reading, lambda seen: seen.count(b"\n") == kept)
    assert seen.startswith(b"line 0000\nline 0001\n")
    steady.settle()
    print("after", file=steady)
    told = read_all(reading, lambda seen: seen.endswith(b"after\n"))
    assert f"[{lost} lines are missing here: they could not be written]\nafter\n" in told.decode()


def test_a_reader_that_left_is_no_failure(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    steady = SteadyStream(stream, "a pipe")
    os.close(reading)
    print("one", file=steady)
    steady.settle()
    print("two", file=steady, flush=True)
    assert (steady.lost, steady.failure) == (2, None)


def test_a_full_disk_is_kept_as_the_failure() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        steady = SteadyStream(full, "a file")
        print("one", file=steady)
        steady.settle()
        assert steady.failure is not None and steady.failure.errno == errno.ENOSPC
        assert steady.lost == 1


def test_a_terminal_that_hung_up_is_no_failure() -> None:
    person, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stream:
        steady = SteadyStream(stream, "a terminal")
        os.close(person)
        print("one", file=steady)
        steady.settle()
        assert (steady.lost, steady.failure) == (1, None)


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("✔ 5 → 6", "iso-8859-1", b"+ 5 -> 6"),
        ("✘ 20 °C ± 1", "iso-8859-1", b"x 20 \xb0C \xb1 1"),
        ("m/s² … 好", "ascii", b"m/s2 ... ?"),
        ("a file \udcff", "utf-8", b"a file ?"),
    ],
)
def test_an_encoding_without_the_character_gets_something_near(text: str, encoding: str, shown: bytes) -> None:
    assert text.encode(encoding, DEGRADING) == shown
    reading, writing = os.pipe()
    with open(writing, "w", encoding=encoding) as stream:
        print(text, end="", file=SteadyStream(stream, "a pipe"), flush=True)
        assert read_all(reading, lambda seen: len(seen) >= len(shown)) == shown
    os.close(reading)


def test_rich_and_logging_write_through_it(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, stream = pipe
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with steady_output():
        with Live("drawn", console=Console(force_terminal=True)) as live:
            for _ in range(500):
                live.update("drawn again", refresh=True)
        logger = logging.Logger("of this test")
        logger.addHandler(logging.StreamHandler())
        logger.error("told by logging")
        seen = read_all(reading, lambda seen: b"told by logging" in seen)
    assert b"drawn again" in seen
    assert sys.stdout is stream


def test_a_signal_handler_may_print_while_a_print_goes_on(pipe: tuple[int, TextIO]) -> None:
    _, stream = pipe
    steady = SteadyStream(stream, "a pipe")
    with steady._changed:  # as the interrupted frame of the same thread holds it
        print("from the handler", file=steady)
    assert steady.lost == 0


def test_a_forked_child_writes_too() -> None:
    script = (
        "import os\n"
        "from vla_robot.core.host.console import steady_output\n"
        "with steady_output():\n"
        "    print('parent')\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        print('child', flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "child" in done.stdout and "parent" in done.stdout  # the ends of their lines may change places


def test_another_programs_non_blocking_mode_does_no_harm(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    os.set_blocking(stream.fileno(), False)
    checked = CheckedStream(stream, "a pipe")
    writer = threading.Thread(target=lambda: print("x" * 3 * PIPE_BYTES, file=checked))
    writer.start()
    assert len(read_all(reading, lambda seen: seen.endswith(b"\n"))) == 3 * PIPE_BYTES + 1
    writer.join()


def test_the_last_words_before_a_crash_are_kept_where_output_waits() -> None:
    script = (
        "import os\n"
        "from vla_robot.core.host.console import steady_output\n"
        "with steady_output(waits=True):\n"
        "    print('the last words')\n"
        "    os._exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "the last words\n")


def test_short_commands_fail_with_a_sentence_on_a_full_disk() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full, pytest.raises(VlaError, match="No space left on device"):
        print("one", file=CheckedStream(full, "standard output"))


def test_output_that_a_test_captures_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stdout", captured)
    with steady_output() as output:
        assert output is None
        print("as ever")
    assert captured.getvalue() == "as ever\n"


@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2"])
def test_closed_descriptors_are_not_given_to_an_arm(closed: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = tmp_path_factory.mktemp("closed") / "seen"
    script = (
        "import sys, os\n"
        "from vla_robot.core.host.console import steady_output\n"
        "with steady_output():\n"
        "    print('told')\n"
        "    print('told', file=sys.stderr)\n"
        f"    seen = os.open({str(seen)!r}, os.O_CREAT | os.O_WRONLY)\n"
        "    assert seen > 2 and sys.stdin is not None\n"
        "    os.write(seen, b'fine')\n"
    )
    start = (
        f"import os, sys\nfor fd in ({closed},): os.close(fd)\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {script!r}])"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == "fine"
