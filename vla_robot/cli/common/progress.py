"""Progress: a bar with the time left on a terminal, a plain line at intervals in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_robot.cli.common.terminal import Terminal

PLAIN_LINE_EVERY_S = 10.0
"""Seconds between lines in a pipe."""


class ProgressBar:
    """Base of classes that draw a bar on a terminal; use it in a `with` block."""

    def __init__(self, console: Terminal, *, transient: bool = False) -> None:
        """
        Args:
            console: where to draw.
            transient: the bar vanishes at the end.
        """
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=transient,
        )

    @property
    def console(self) -> Terminal:
        """Where it draws; what is printed there meanwhile stands above the bar."""
        return self._console

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Bar(ProgressBar):
    """Progress of one thing that counts up. Call `update(done, total)`."""

    def __init__(
        self, what: str, console: Terminal, clock: Callable[[], float] = time.monotonic, *, lines: bool = True
    ) -> None:
        """
        Args:
            what: is counted, e.g. "episodes".
            console: where to draw.
            clock: seconds since some moment.
            lines: print a plain line at intervals in a pipe; False where each thing has a line of its own.
        """
        super().__init__(console, transient=True)
        self._what, self._clock, self._lines = what, clock, lines
        self._next_line_s = clock() + PLAIN_LINE_EVERY_S
        self._task = self._progress.add_task(what, total=None)

    def update(self, done: int, total: int) -> None:
        """`done` of `total` now."""
        self._progress.update(self._task, completed=done, total=total)
        if self._lines and not self._console.is_terminal and self._clock() >= self._next_line_s:
            self._next_line_s = self._clock() + PLAIN_LINE_EVERY_S
            self._console.print(f"  {done}/{total} {self._what}", soft_wrap=True)
