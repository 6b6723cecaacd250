"""Handlers of the signals that end a command, and of a terminal's signals that would suspend it.

| signal | sent by | while `stop_on_interrupt` holds | else, in any command |
|---|---|---|---|
| SIGINT | Ctrl-C | the step ends and is kept; the second one raises | raises KeyboardInterrupt |
| SIGTERM, SIGQUIT | a service manager; Ctrl-\\ | the same | raises KeyboardInterrupt, once |
| SIGHUP | a terminal or SSH session that ends | the same, and never raises | raises KeyboardInterrupt, once |
| SIGHUP under `nohup` | | ignored | ignored |
| SIGTSTP, SIGTTIN, SIGTTOU | Ctrl-Z; the terminal, in its background | ignored in `not_suspended` | suspended |
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from types import FrameType

SUSPENDING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a command, without SIGHUP and SIGQUIT if it was started with them ignored."""
    always = (signal.SIGINT, signal.SIGTERM)  # a script's `&` ignores SIGINT, and `kill -INT` must still work
    return tuple(each for each in _ENDING if each in always or signal.getsignal(each) is not signal.SIG_IGN)


@contextmanager
def stop_on_interrupt() -> Iterator[Event]:
    """Set the event at a signal, so that the running step ends and is kept; a second one raises KeyboardInterrupt.

    The shell and the terminal both send SIGHUP: its second one is ignored, and so are those after the block, which
    would end the report early.
    """
    stop = Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        elif stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with _handled(dict.fromkeys(ending_signals(), ask)):
        yield stop


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, SIGQUIT and SIGHUP, as Ctrl-C does, so that every `with` block is left."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: the cleanup must not be interrupted
        raise KeyboardInterrupt

    with _handled({each: interrupt for each in ending_signals() if each != signal.SIGINT}):
        yield


@contextmanager
def not_suspended() -> Iterator[None]:
    """Ignore a terminal's keys that suspend this process and its children: its watchdog or e-stop would stop working.
    Reading a terminal from its background fails instead (EIO). SIGSTOP cannot be ignored."""
    with _handled(dict.fromkeys(SUSPENDING, signal.SIG_IGN)):
        yield


Handler = Callable[[int, FrameType | None], None] | signal.Handlers


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    try:
        yield
    finally:
        for each, handler in previous.items():
            hung_up = each == signal.SIGHUP and signal.getsignal(each) is signal.SIG_IGN
            if not hung_up:
                signal.signal(each, handler)
