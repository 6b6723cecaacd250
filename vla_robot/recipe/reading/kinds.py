"""Chooses the dataclass of a table by its key `kind`: a built-in one, or one from an installed plugin.

    @dataclass(frozen=True, kw_only=True)
    class PolicyRecipe:                                  the base: keys of all kinds
        kinds: ClassVar[Kinds[PolicyRecipe]]
        kind: str

    class HoldRecipe(PolicyRecipe):
            kind: Literal["hold"] = "hold"                   the dataclass states its kind

    PolicyRecipe.kinds = Kinds("policy", PolicyRecipe, (HoldRecipe, ...), groups=("vla_robot.policies",))

`parse(PolicyRecipe, table, source)` then returns a HoldRecipe for `kind = "hold"`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from vla_robot.core.errors import RecipeError, closest
from vla_robot.recipe.reading.plugins import Plugin, load_plugin, plugin_names

KIND_KEY = "kind"


class Kinds[R]:
    """Dataclasses of one family of recipes, by the value of their key `kind`."""

    def __init__(
        self,
        noun: str,
        base: type[R],
        built_in: Sequence[type[R]],
        *,
        groups: Sequence[str],
        default: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
        idle: Collection[str] = (),
    ) -> None:
        """
        Args:
            noun: what a recipe describes, for messages.
            base: base class of the dataclasses.
            built_in: dataclasses, each with a field `kind` whose annotation is a Literal of one name.
            groups: groups of the entry points by which installed packages add kinds.
            default: the kind of a table without the key; None when the key is required.
            idle: keys of one kind that recipes of another had for nothing in earlier releases: they are told and left
                out, where others are refused.
        """
        self.noun, self.groups = noun, tuple(groups)
        self.built_in: dict[str, type[R]] = {kind_name(schema): schema for schema in built_in}
        self.idle = frozenset(idle)
        self._base, self._default = base, default

    def names(self) -> list[str]:
        """Return every kind, built-in ones first. No plugin is imported."""
        return [*self.built_in, *(name for name in plugin_names(*self.groups) if name not in self.built_in)]

    def chosen(self, table: Mapping[str, Any]) -> str | None:
        """Return the kind that a table states, or that its other keys imply; None if it has none."""
        kind = table.get(KIND_KEY, self._default(table))
        return None if kind is None else str(kind)

    def schema(self, kind: str) -> type[R]:
        """Return the dataclass of a kind.

        Raises:
            RecipeError: there is no such kind, or its plugin cannot be used.
        """
        if kind in self.built_in:
            return self.built_in[kind]
        if kind in plugin_names(*self.groups):
            return self.plugin(kind).recipe
        near = closest(kind, self.names()) or ";"
        raise RecipeError(f"unknown value {kind!r}{near} expected one of: {', '.join(self.names())}")

    def plugin(self, kind: str) -> Plugin:
        """Return the plugin that adds a kind.

        Raises:
            RecipeError: no package adds it, or it cannot be used; the message names its distribution.
        """
        plugin = load_plugin(kind, *self.groups, wanted=Plugin)
        if problem := self._misfit(plugin, kind):
            raise RecipeError(f"the plugin '{kind}' of {plugin_names(*self.groups)[kind]} cannot be used: {problem}")
        return plugin

    def owners(self, key: str) -> dict[str, type[R]]:
        """Return the built-in kinds that have a key, and their dataclasses."""
        return {kind: schema for kind, schema in self.built_in.items() if key in schema.__dataclass_fields__}  # pyright: ignore

    def _misfit(self, plugin: Plugin, kind: str) -> str | None:
        """Return why a plugin does not fit its family; None if it does."""
        recipe = plugin.recipe
        if kind in self.built_in:
            return f"the {self.noun} kind '{kind}' is built in"
        if not issubclass(recipe, self._base) or not dataclasses.is_dataclass(recipe):
            return f"its recipe {recipe.__name__} is no dataclass that derives from {self._base.__name__}"
        if kind_name(recipe) != kind:
            return f'its recipe {recipe.__name__} must have the field `kind: Literal["{kind}"] = "{kind}"`'
        return None


def family_of(schema: type) -> Kinds[Any] | None:
    """Return the family of a base, or of a dataclass that derives from one."""
    return getattr(schema, "kinds", None)


def kinds_of(schema: type) -> Kinds[Any] | None:
    """Return the family of a base; None for a dataclass of one kind."""
    return vars(schema).get("kinds")


def concrete(schema: type, table: Mapping[str, Any]) -> type:
    """Return the dataclass of a table; `schema` itself if the table names no usable kind."""
    kinds = kinds_of(schema)
    kind = kinds.chosen(table) if kinds else None
    try:
        return kinds.schema(kind) if kinds and kind in kinds.names() else schema
    except RecipeError:  # a broken plugin: `parse` reports it
        return schema


def kind_name(schema: type) -> str:
    """Return the name in the Literal of a dataclass's field `kind`; empty if it has none."""
    names = get_args(get_type_hints(schema).get(KIND_KEY))
    return str(names[0]) if len(names) == 1 else ""
