"""The one way to the terminal and to the log: what a terminal would obey is shown escaped.

Instructions, field names and error messages come from files and from peers. An escape sequence in one of them could
retitle the window, hide a line, or write another one. `say` and `Terminal` stand in the place of print and rich's
Console in all of this room; a test holds every module to it.
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
    """A console that takes text as text: no markup, no emoji codes, and nothing unprintable."""

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: of rich's Console.
        """
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escaped before a table measures it."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich writes: its own control codes pass, the text between them is made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)


def say(*texts: object, end: str = "\n", flush: bool = False) -> None:
    """print, for text that may quote a file or a peer."""
    print(*(printable(text, lines=True) for text in texts), end=end, flush=flush)


class PrintableFormatter(logging.Formatter):
    """One line for each message, whatever it quotes; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        printed = copy.copy(record)
        printed.msg, printed.args = printable(record.getMessage()), None
        return printable(super().format(printed), lines=True)


def log_printably() -> None:
    """Have warnings written by `PrintableFormatter` where nothing else was set up for them."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
