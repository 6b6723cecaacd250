"""Tests of keys over a pseudo-terminal: keys arrive at once without echo, and the terminal's modes are restored."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
from typing import Any

import pytest

from vla_robot.core.errors import TeleopError
from vla_robot.teleop.terminal import KeyParser, Terminal, require_terminal

LINE_MODES = termios.ICANON | termios.ECHO


def test_a_key_arrives_without_enter_and_is_not_echoed(pty: Any) -> None:
    terminal = Terminal(pty.fd)
    pty.type(b"w")
    assert terminal.typed() == ["w"]
    assert select.select([pty.person], [], [], 0)[0] == []
    terminal.close()


def test_without_a_key_nothing_is_returned_at_once(pty: Any) -> None:
    terminal = Terminal(pty.fd)
    assert terminal.typed() == []
    terminal.close()


def test_the_terminal_is_left_as_it_was(pty: Any) -> None:
    before = pty.modes
    terminal = Terminal(pty.fd)
    assert not pty.modes[3] & LINE_MODES
    assert pty.modes[3] & termios.ISIG  # Ctrl-C still interrupts
    terminal.close()
    terminal.close()
    assert pty.modes == before


def test_ctrl_z_and_ctrl_backslash_are_off(pty: Any) -> None:
    terminal = Terminal(pty.fd)
    off = bytes([os.fpathconf(pty.fd, "PC_VDISABLE")])
    assert pty.modes[6][termios.VSUSP] == off and pty.modes[6][termios.VQUIT] == off
    terminal.close()


@pytest.mark.parametrize("end", ["raise KeyError('a bug')", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_program_that_ends_without_closing_leaves_the_terminal_as_it_was(pty: Any, end: str) -> None:
    before = pty.modes
    script = f"import sys; from vla_robot.teleop.terminal import Terminal; t = Terminal(); {end}"
    done = subprocess.run([sys.executable, "-c", script], stdin=pty.fd, capture_output=True, check=False)
    assert done.returncode not in (0, None)
    assert pty.modes == before


def test_a_broken_connection_raises_an_error(pty: Any) -> None:
    terminal = Terminal(pty.fd)
    pty.hang_up()
    with pytest.raises(TeleopError, match=r"the terminal was closed\. Start again in another one"):
        terminal.typed()
    terminal.close()


def test_what_is_no_terminal_is_refused_with_what_to_do() -> None:
    read, write = os.pipe()
    with pytest.raises(TeleopError, match=r"standard input is no terminal.*`ssh -t`.*--source browser"):
        require_terminal(read)
    os.close(read)
    os.close(write)


KEYS = {
    b"wW": ["w", "W"],
    b"\x1b[A\x1b[B\x1b[C\x1b[D": ["up", "down", "right", "left"],
    b"\x1bOA": ["up"],
    b"\x1bOP\x1b[12~\x1b[[C": ["f1", "f2", "f3"],
    b"\r \x7f\t": ["enter", "space", "backspace", "tab"],
    "grün".encode(): ["g", "r", "ü", "n"],
    b"\x1b[5~w": ["w"],  # page up means nothing here
    b"w\x1bw": ["w", "escape", "w"],  # the e-stop, while another key repeats
}


@pytest.mark.parametrize(("data", "keys"), KEYS.items(), ids=repr)
def test_bytes_become_names(data: bytes, keys: list[str]) -> None:
    assert KeyParser().feed(data) == keys


@pytest.mark.parametrize(("data", "keys"), [(d, k) for d, k in KEYS.items() if b"w\x1bw" not in d], ids=repr)
def test_a_sequence_that_comes_byte_by_byte_is_the_same_key(data: bytes, keys: list[str]) -> None:
    parser = KeyParser()
    assert [key for byte in data for key in parser.feed(bytes([byte]))] == keys


def test_escape_alone_is_the_escape_key_at_the_next_read() -> None:
    parser = KeyParser()
    assert parser.feed(b"\x1b") == []
    assert parser.feed(b"") == ["escape"]
    assert parser.feed(b"") == []


def test_escape_before_an_arrow_is_both() -> None:
    assert KeyParser().feed(b"\x1b\x1b[A") == ["escape", "up"]
