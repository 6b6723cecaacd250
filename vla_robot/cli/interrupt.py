"""What Ctrl-C, or a service manager's SIGTERM, means while something runs that must come to a tidy end."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def with_hangup() -> tuple[signal.Signals, ...]:
    """For what somebody does at a terminal, whose connection may break; unless `nohup` says that it does not matter."""
    return SIGNALS if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*SIGNALS, signal.SIGHUP)


@contextmanager
def stop_on_interrupt(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Event]:
    """A signal sets the event, so that the running step ends and is kept; a second one raises KeyboardInterrupt."""
    stop = Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {each: signal.signal(each, ask) for each in signals}
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
