"""What the suites share. A suite names each kind by the class that it builds, and those inside of it that it is to ask.

KINDS = {"TerminalTeleop StickMotion Gamepad": ..., "RemoteRobot over a world": ...}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Get = Callable[[str], Any]
"""Gives a fixture by its name."""


def class_names(kind: str) -> tuple[str, ...]:
    """The words of a kind that begin with a capital letter."""
    return tuple(word for word in kind.split() if word.lstrip("_")[:1].isupper())


def classes_of(*suites: Iterable[str]) -> set[str]:
    """Every class that some suites build and ask."""
    return {name for kinds in suites for kind in kinds for name in class_names(kind)}


def as_named[T](kind: str, made: T) -> T:
    """What was made, once it is of the first class that its kind names, and holds the others."""
    names = class_names(kind)
    assert type(made).__name__ == names[0], f"'{kind}' builds a {type(made).__name__}"
    missing = set(names) - {type(part).__name__ for part in _parts(made, set())}
    assert not missing, f"'{kind}' builds nothing of {sorted(missing)}"
    return made


def _parts(thing: object, seen: set[int]) -> Iterator[object]:
    """The thing, and all of this package that its attributes hold."""
    if id(thing) not in seen and type(thing).__module__.startswith("vla_robot."):
        seen.add(id(thing))
        yield thing
        for part in getattr(thing, "__dict__", {}).values():
            yield from _parts(part, seen)
