"""What a person sees in the terminal while driving: where the session stands, and what each key does."""

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
    """All that is shown.

    Attributes:
        instruction: the task in plain words.
        counters: name -> text, in order.
        standing: of the device.
        last_keys: typed last, newest at the end.
        editing: the instruction that is being typed; None when none is.
        note: what the person must know now; "" when nothing.
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
    """A few lines that are drawn anew in their place. Only the caller of `draw` writes to the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        # No thread of rich's own: between two drawings nothing costs the control loop any time.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, status: Status) -> None:
        """Show this."""
        self._live.update(rendered(status), refresh=True)

    def close(self) -> None:
        """Take the lines away, and show the cursor again. May be called twice."""
        self._live.stop()


def rendered(status: Status) -> RenderableType:
    """The lines."""
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
    """The key map, as wide as the terminal."""
    text = Text()
    for keys, what in entries:
        text.append(keys.replace(" ", "\N{NO-BREAK SPACE}"), "bold")
        text.append(f"\N{NO-BREAK SPACE}{what.replace(' ', chr(0xA0))}   ", "dim")
    return text
