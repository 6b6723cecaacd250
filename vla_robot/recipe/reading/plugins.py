"""Kinds of recipes that installed packages add, through entry points. A recipe names a kind, never a path to code.

    [project.entry-points."vla_robot.policies"]     in the package's pyproject.toml
    wave = "my_package.wave:PLUGIN"                 PLUGIN = Plugin(recipe=WaveRecipe, description=..., build=...)

A package is imported only when a recipe of its kind is read, or when plugins are listed. See docs/plugins.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla_robot.core.errors import RecipeError, in_words
from vla_robot.core.untrusted import printable

GROUPS = (
    "vla_robot.policies",
    "vla_robot.worlds",
    "vla_robot.robots",
    "vla_robot.teleoperators",
    "vla_robot.datasets",
)


@dataclass(frozen=True)
class Plugin:
    """Value of an entry point that adds a kind; a dataset format's is a `DatasetFormat` (reading/formats.py).

    Attributes:
        recipe: dataclass of this kind's tables; it derives from its family's base.
        description: one line for `vla list` and `vla doctor`.
        build: builds the object of a recipe; docs/plugins.md has the signature of each group.
    """

    recipe: type[Any]
    description: str
    build: Callable[..., Any]


def plugin_names(*groups: str) -> Mapping[str, str]:
    """Return kind -> the distribution that adds it, with its version. No plugin is imported."""
    return {name: " and ".join(map(_distribution, points)) for name, points in _points(groups).items()}


def load_plugin[P](kind: str, *groups: str, wanted: type[P]) -> P:
    """Import the plugin of a kind.

    Args:
        kind: its name.
        groups: groups of entry points to search.
        wanted: required type of its value.

    Raises:
        RecipeError: no package adds it, two do, or it cannot be imported; the message names the distribution.
    """
    points = _points(groups).get(kind, [])
    if not points:
        raise RecipeError(f"no installed package adds '{kind}' to {' or '.join(groups)}")
    owners = " and ".join(map(_distribution, points))
    if len(points) > 1:
        raise RecipeError(f"the kind '{kind}' is added by {owners}: uninstall all but one")
    try:
        plugin = points[0].load()
    except Exception as error:  # any error of a plugin's module during its import
        raise RecipeError(
            f"the plugin '{kind}' of {owners} cannot be imported: {printable(in_words(error))}"
        ) from error
    if not isinstance(plugin, wanted):
        raise RecipeError(
            f"the plugin '{kind}' of {owners} cannot be used: {points[0].value} is a {type(plugin).__name__}, "
            f"not a vla_robot.recipe.{wanted.__name__}"
        )
    return plugin


@cache
def recipe_folders() -> tuple[Path, ...]:
    """Return the folder `recipes` of each package that adds kinds, if it has one. No package is imported."""
    packages = dict.fromkeys(p.module.partition(".")[0] for points in _points(GROUPS).values() for p in points)
    found = (find_spec(package) for package in packages)
    places = (Path(place) / "recipes" for spec in found if spec for place in spec.submodule_search_locations or ())
    return tuple(place for place in places if place.is_dir())


@dataclass(frozen=True)
class Found:
    """An installed plugin.

    Attributes:
        group: one of GROUPS.
        kind: its name.
        distribution: distribution that adds it, with its version.
        description: the plugin's description; empty if it cannot be used.
        problem: why it cannot be used; empty if it can.
    """

    group: str
    kind: str
    distribution: str
    description: str = ""
    problem: str = ""


@cache
def _points(groups: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in (point for group in groups for point in entry_points(group=group)):
        found.setdefault(point.name, []).append(point)
    return found


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
