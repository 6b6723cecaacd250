"""Renamed keys of recipes: the old name is read for one more release, and a log line names the new one.

    RENAMED["Recording"] = {"by": "source"}      datasets/mine.toml: the key 'by' is called 'source' now; ...

A key is renamed before a recipe is merged into its base and before it is checked, so that schemas, errors and
`vla show` know only new names.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.reading.kinds import concrete

RENAMED: dict[str, dict[str, str]] = {
    "FinetuneRecipe": {"recompute": "activation_checkpointing"},
    "PolicyRecipe": {"pre_step": "image_preprocessing"},
    "Recording": {"by": "source", "keep": "save"},
}
"""Name of a recipe's dataclass, or of a base class of it -> old key -> new key."""

_log = logging.getLogger(__name__)


def with_new_keys(hint: Any, value: Any, source: str | Path) -> Any:
    """Return the data with old keys replaced by new ones; each key of a source is logged once.

    Args:
        hint: annotation of the data: a dataclass, or a type that may contain one.
        value: data read from TOML.
        source: name for messages.

    Raises:
        RecipeError: a table has a key under both names.
    """
    if not (dataclasses.is_dataclass(hint) and isinstance(hint, type) and is_table(value)):
        return inside(hint, value, lambda inner, item: with_new_keys(inner, item, source))
    schema = concrete(hint, value)
    hints, renamed = get_type_hints(schema), _renamed_in(schema)
    table: dict[str, Any] = {}
    for name, below in value.items():
        new = renamed.get(name, name)
        if new != name:
            if new in value:
                raise RecipeError(f"{source}: '{name}' is the old name of '{new}', which is there too; delete it.")
            tell(f"{source}: the key '{name}' is called '{new}' now; the old name works for one more release.")
        table[new] = with_new_keys(hints.get(new), below, source)
    return table


def inside(hint: Any, value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Apply a change to the items of an array or table, or to an optional value, by their annotation.

    Args:
        hint: `X | None`, `tuple[X, ...]`, `dict[str, X]`; other annotations have no items.
        value: plain data.
        change: (X, item) -> new item. It returns an item that is not an X unchanged.
    """
    for inner in get_args(hint):
        if is_array(value):
            value = [change(inner, item) for item in value]
        elif get_origin(hint) in (dict, Mapping) and is_table(value):
            value = {name: change(inner, below) for name, below in value.items()}
        else:
            value = change(inner, value)
    return value


def is_table(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _renamed_in(schema: type) -> dict[str, str]:
    return {old: new for base in schema.__mro__ for old, new in RENAMED.get(base.__name__, {}).items()}


@functools.cache
def tell(line: str) -> None:
    """Log a warning, once in a process."""
    _log.warning("%s", line)
