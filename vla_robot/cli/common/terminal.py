"""Output to the terminal and to the log, with control characters escaped.

Instructions, field names and error messages come from files and from peers. An escape sequence in one of them could
retitle the window, hide a line, or write another one. `say` and `Terminal` replace print and rich's Console in this
room; a test checks that every module uses them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from vla_robot.core.untrusted import printable


class Terminal(Console):
    """A console that prints text literally: no markup, no emoji codes, and unprintable characters escaped."""

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: options of rich's Console.
        """
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text escaped, before a table measures it."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield rich's segments: its control codes as they are, text made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)


def say(*texts: object, end: str = "\n", flush: bool = False) -> None:
    """Print text that may quote a file or a peer, with control characters escaped."""
    print(*(printable(text, lines=True) for text in texts), end=end, flush=flush)


class PrintableFormatter(logging.Formatter):
    """Formats each message as one printable line; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        printed = copy.copy(record)
        printed.msg, printed.args = printable(record.getMessage()), None
        return printable(super().format(printed), lines=True)


def log_printably() -> None:
    """Write warnings with `PrintableFormatter` if no other log handler is set."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
