"""Writes a frozen dataclass as TOML text that `parse` reads back to an equal instance."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.recipe.reading.kinds import KIND_KEY, family_of, kind_name

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dump(recipe: Any, *, comments: bool = False) -> str:
    """Return a recipe as TOML text with defaults and inherited keys; None is left out, as TOML has no null.

    Args:
        recipe: a dataclass instance.
        comments: write each field's entry under the docstring's `Attributes:` above it.
    """
    return "\n".join(_table(recipe, (), comments)).strip() + "\n"


def field_help(schema: type) -> dict[str, str]:
    """Return field name -> its entry under `Attributes:` in the docstrings of the class and its bases.

    The entry of a family's `kind` is the first line of the class's own docstring.
    """
    pattern = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
    notes: dict[str, str] = {}
    for owner in reversed(schema.__mro__[:-1]):
        _, _, attributes = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        notes |= {name: " ".join(body.split()) for name, body in pattern.findall(attributes)}
    if family_of(schema) and kind_name(schema):
        notes[KIND_KEY] = inspect.cleandoc(schema.__doc__ or "").partition("\n")[0]
    return notes


def _table(node: Any, path: tuple[str, ...], comments: bool) -> list[str]:
    """Return the lines of a table, plain keys first: in TOML, a key after a [table] line belongs to that table."""
    items = _items(node)
    notes = field_help(type(node)) if comments and dataclasses.is_dataclass(node) else {}
    lines: list[str] = []
    for name, value in items.items():
        if not _is_table(value) and not _is_table_array(value):
            lines += _note(notes, name)
            lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in items.items():
        here = (*path, name)
        if _is_table_array(value):
            lines += ["", *_note(notes, name)]
            for index, element in enumerate(value):
                # The first element explains the fields for all.
                lines += [f"[[{_header(here)}]]", *_table(element, here, comments and index == 0), ""]
        elif _is_table(value):
            lines += ["", *_note(notes, name), f"[{_header(here)}]", *_table(value, here, comments)]
    return lines


def _items(node: Any) -> dict[str, Any]:
    if isinstance(node, Mapping):
        pairs: dict[str, Any] = dict(node)  # pyright: ignore[reportUnknownArgumentType]
    else:
        pairs = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.init}
    return {name: value for name, value in pairs.items() if value is not None}


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(_is_table(v) for v in value)  # pyright: ignore


def _note(notes: Mapping[str, str], name: str) -> list[str]:
    return [f"# {notes[name]}"] if name in notes else []


def _header(path: tuple[str, ...]) -> str:
    return ".".join(_key(part) for part in path)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _string(str(value))
        case list() | tuple():
            return "[" + ", ".join(_value(v) for v in value) + "]"  # pyright: ignore[reportUnknownVariableType]
        case _:
            raise TypeError(f"a recipe cannot hold a {type(value).__name__}")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but TOML also requires DEL escaped and forbids lone surrogates.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
