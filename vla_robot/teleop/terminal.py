"""Reads each key of a terminal at once and without echo. Nothing here waits.

    b"w"  ->  "w"        b"\\x1b[A"  ->  "up"        b"\\x1b" and nothing more at the next read  ->  "escape"

A terminal reports presses and repeats of a key, but not its release.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import re
import select
import sys
import termios
from typing import Any

from vla_robot.core.errors import TeleopError

ESCAPE = "\x1b"

NAMES = {"\r": "enter", "\n": "enter", " ": "space", "\x7f": "backspace", "\b": "backspace", "\t": "tab"}

SEQUENCES = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "OP": "f1",
    "OQ": "f2",
    "OR": "f3",
    "OS": "f4",
    "[11~": "f1",
    "[12~": "f2",
    "[13~": "f3",
    "[14~": "f4",
    "[[A": "f1",
    "[[B": "f2",
    "[[C": "f3",
    "[[D": "f4",
}
"""Characters after ESCAPE -> name of the key, as xterm, rxvt and the Linux console send them."""

_WHOLE = re.compile(r"\[\[[A-E]|\[[0-9;?]*[ -/]*[@-Z\\-~]|O[@-~]")
_BEGUN = re.compile(r"\[\[?|\[[0-9;?]*[ -/]*|O|")
READ_BYTES = 4096


class KeyParser:
    """A parser from bytes to names of keys.

    A network may cut an escape sequence in two, so an incomplete one is kept for the next feed. If that brings no
    bytes, it is the Escape key, which must not be lost: it stops the arm.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._left = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the names of the keys in the bytes so far. Empty `data` says that nothing came since the last feed."""
        final = not data
        text, self._left = self._left + self._decoder.decode(data), ""
        keys: list[str] = []
        while text:
            if text[0] != ESCAPE:
                keys += _plain(text[0])
                text = text[1:]
            elif whole := _WHOLE.match(text, 1):
                keys += [SEQUENCES[whole.group()]] if whole.group() in SEQUENCES else []
                text = text[whole.end() :]
            elif _BEGUN.fullmatch(text, 1) and not final:
                self._left, text = text, ""
            else:
                keys.append("escape")
                text = text[1:]
        return keys


class Terminal:
    """A terminal without lines and echo. `close` and the end of the program restore its modes."""

    def __init__(self, fd: int | None = None) -> None:
        """
        Args:
            fd: descriptor of the terminal; standard input when None.

        Raises:
            TeleopError: it is no terminal, or this program runs in its background.
        """
        self._fd = require_terminal(fd)
        self._parser = KeyParser()
        self._before: list[Any] | None = termios.tcgetattr(self._fd)
        termios.tcsetattr(self._fd, termios.TCSANOW, _each_key_at_once(self._fd))
        atexit.register(self.close)

    def typed(self) -> list[str]:
        """Return the keys that were typed since the last call, oldest first.

        Raises:
            TeleopError: the terminal is gone, as after a broken connection.
        """
        return self._parser.feed(self._read())

    def close(self) -> None:
        """Restore the terminal's modes. May be called twice."""
        before, self._before = self._before, None
        atexit.unregister(self.close)
        if before is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                # TCSADRAIN would wait for output that a hung connection never takes.
                termios.tcsetattr(self._fd, termios.TCSANOW, before)

    def _read(self) -> bytes:
        # O_NONBLOCK would also apply to the shell and to every other program that writes to this terminal.
        if not select.select([self._fd], [], [], 0)[0]:
            return b""
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError as error:
            raise TeleopError(
                f"the terminal is gone, or belongs to another program now: {error.strerror}. Start again to drive."
            ) from error
        if not data:
            raise TeleopError("the terminal was closed. Start again in another one to drive.")
        return data


def _plain(character: str) -> list[str]:
    if character in NAMES:
        return [NAMES[character]]
    return [character] if character.isprintable() else []


def require_terminal(fd: int | None = None) -> int:
    """Return the descriptor of a terminal; standard input's when `fd` is None.

    Raises:
        TeleopError: it is no terminal, or this program runs in its background.
    """
    fd = _stdin() if fd is None else fd
    if fd < 0 or not os.isatty(fd):
        raise TeleopError(
            "standard input is no terminal, so no keys can be read. Start this in a terminal, over SSH with "
            "`ssh -t`, in a container with `docker run -it`; or drive from a page: `--source browser`."
        )
    if _is_in_background(fd):
        raise TeleopError(
            "this runs in the background of its terminal, where another program reads the keys. Start it without `&`, "
            "or bring it to the foreground with `fg`; or drive from a page: `--source browser`."
        )
    return fd


def _is_in_background(fd: int) -> bool:
    """Return whether this program runs in the terminal's background.

    There a read suspends the program or fails, and changing the modes disturbs the shell.
    """
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # the terminal does not control this session, so it has no background
        return False


def _stdin() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without a descriptor
        return -1


def _each_key_at_once(fd: int) -> list[Any]:
    """Return the terminal's modes without lines and echo.

    Ctrl-C still interrupts. Ctrl-Z and Ctrl-\\ are off: they would suspend or kill the program and leave the arm and
    the terminal as they are. Ctrl-S is off: it would freeze the display.
    """
    modes = termios.tcgetattr(fd)
    modes[0] &= ~(termios.IXON | termios.ICRNL)
    modes[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
    off = bytes([os.fpathconf(fd, "PC_VDISABLE")])
    for name in (termios.VSUSP, termios.VQUIT):
        modes[6][name] = off
    modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
    return modes
