"""Draws the state of a teleoperation session and its key map in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vla_robot.core.untrusted import printable


@dataclass(frozen=True)
class Status:
    """The content of the panel.

    Attributes:
        instruction: the task in plain words.
        counters: name -> text, in order.
        standing: the device's state.
        last_keys: the keys typed last, newest at the end.
        editing: the instruction that is being typed; None when none is.
        note: a warning; "" when there is none.
        help: (keys, what they do).
    """

    instruction: str
    counters: Mapping[str, str] = field(default_factory=dict[str, str])
    standing: str = ""
    last_keys: Sequence[str] = ()
    editing: str | None = None
    note: str = ""
    help: tuple[tuple[str, str], ...] = ()


class Panel:
    """A few lines of the terminal that are redrawn in place. Only the caller of `draw` writes to the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        # auto_refresh would start a thread, which takes time from the control loop between two drawings.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, status: Status) -> None:
        """Redraw the panel with this content."""
        self._live.update(rendered(status), refresh=True)

    def close(self) -> None:
        """Remove the lines, and show the cursor again. May be called twice."""
        self._live.stop()


def rendered(status: Status) -> RenderableType:
    """Return the panel's lines, with text from outside made printable."""
    told = {**status.counters, "device": status.standing, "last keys": " ".join(status.last_keys) or "none"}
    facts = Table.grid(padding=(0, 2))
    for name, text in told.items():
        facts.add_row(Text(name, "dim"), Text(printable(text)))
    task = Text.assemble(("task ", "dim"), printable(status.instruction))
    if status.editing is not None:
        editing = printable(status.editing)
        task = Text.assemble(("new task ", "bold"), editing, ("▏", "blink"), ("   enter keeps it", "dim"))
    note = [Text(printable(status.note), "bold red")] if status.note else []
    return Group(task, facts, _keys(status.help), *note)


def _keys(entries: Sequence[tuple[str, str]]) -> Text:
    """Return the key map, as wide as the terminal."""
    text = Text()
    for keys, what in entries:
        text.append(keys.replace(" ", "\N{NO-BREAK SPACE}"), "bold")
        text.append(f"\N{NO-BREAK SPACE}{what.replace(' ', chr(0xA0))}   ", "dim")
    return text
