"""`vla list`, `vla show`, `vla check`: list recipes, print one, check whether all are valid.
They open no world, hardware or weights; `vla check` reads only the headers of weight files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError, VlaError
from vla_robot.core.host.optional import installed
from vla_robot.recipe import KINDS, Kind, available, dump, folder_of, parse, read_table
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.environment import EnvironmentRecipe
from vla_robot.recipe.launch import LaunchRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.recipe.reading.load import read_toml
from vla_robot.recipe.reading.plugins import Found
from vla_robot.recipe.reading.schemas import installed_plugins, is_bare_checkpoint, locate, schema_for


@dataclass(frozen=True)
class ListArgs:
    """List every recipe with its description and path."""

    kind: Annotated[Literal["all", Kind], tyro.conf.Positional] = "all"
    """only recipes of this kind"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write it to this file as JSON"""


@dataclass(frozen=True)
class ShowArgs:
    """Print one recipe with its defaults and inherited keys, each explained."""

    recipe: Annotated[str, tyro.conf.Positional]
    """a recipe's name or path"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write it to this file as JSON"""


@dataclass(frozen=True)
class CheckArgs:
    """Check recipes against their schema, and policies' folders up to the headers of their weights; exit status 2, with
    every problem, if one is invalid."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """names or paths; by default every recipe that `vla list` shows"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write it to this file as JSON"""


def list_recipes(args: ListArgs) -> int:
    """Print one table of all recipes."""
    kinds = KINDS if args.kind == "all" else (args.kind,)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "what it is", "where"):
        table.add_column(column, overflow="fold")
    found = [
        (f"{folder_of(kind)}/{name}", _summary(path), path) for kind in kinds for name, path in available(kind).items()
    ]
    for name, summary, path in found:
        table.add_row(name, summary, short_path(path))
    Terminal().print(table)
    plugins = installed_plugins()
    if plugins:
        Terminal().print(_plugin_table(plugins))
    if args.json:
        recipes = [{"recipe": name, "summary": summary, "source": str(path)} for name, summary, path in found]
        write_json(args.json, "list", [], recipes=recipes, plugins=[asdict(plugin) for plugin in plugins])
    say("\nNext: `vla show RECIPE` prints one in full; `vla run launch/lift.toml` runs one.")
    return 0


def show_recipe(args: ShowArgs) -> int:
    """Print one merged recipe as TOML, with each field's help as a comment."""
    kind, path = locate(args.recipe)
    recipe = None if is_bare_checkpoint(path) else _load(kind, path)
    say(f"# {path}")
    say(_config_note(path) if recipe is None else dump(recipe, comments=True), end="")
    if args.json:
        toml = None if recipe is None else dump(recipe)
        write_json(args.json, "show", [], kind=kind, source=str(path), toml=toml)
    return 0


def check_recipes(args: CheckArgs) -> int:
    """Read every recipe; raise one RecipeError that holds the problems of all."""
    wanted = [locate(recipe) for recipe in args.recipes] or _everything()
    looks_into_folders = installed("torch") is not None
    problems: list[str] = []
    for kind, path in wanted:
        try:
            _check(kind, path, looks_into_folders)
        except VlaError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if args.json:
        write_json(args.json, "check", [], checked=[str(path) for _, path in wanted], problems=problems)
    if problems:
        raise RecipeError(f"{len(problems)} of {len(wanted)} recipes are not valid.\n" + "\n".join(problems))
    say(f"All {len(wanted)} recipes are valid.")
    if not looks_into_folders and any(kind == "policies" for kind, _ in wanted):
        say("The policies' folders were not checked: torch is not installed.")
    return 0


def _check(kind: Kind, path: Path, looks_into_folders: bool) -> None:
    """Raise VlaError for the mistakes that `vla run` would report before it loads weights."""
    if kind == "policies":
        source = find_policy(path)
        if looks_into_folders:
            from vla_robot.policy.kinds import check_policy  # torch, for the shapes of a model

            check_policy(source.recipe)
        return
    recipe = _load(kind, path)
    if isinstance(recipe, LaunchRecipe):
        find_env(recipe.env)
        find_policy(recipe.policy)
    if isinstance(recipe, EnvironmentRecipe):
        recipe.packages()


def _plugin_table(plugins: Sequence[Found]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("\nplugin", "\nwhat it is", "\nfrom"):
        table.add_column(column, overflow="fold")
    for plugin in plugins:
        noun = plugin.group.rpartition(".")[2]
        table.add_row(f"{noun}: {plugin.kind}", plugin.problem or plugin.description, plugin.distribution)
    return table


def _everything() -> list[tuple[Kind, Path]]:
    return [(kind, path) for kind in KINDS for path in available(kind).values()]


def _load(kind: Kind, path: Path) -> object:
    schema = schema_for(kind, path)
    return parse(schema, read_table(schema, path), path)


def _summary(path: Path) -> str:
    """Return the recipe's `description`, or the first sentence of its opening comment."""
    if is_bare_checkpoint(path):
        return "a checkpoint folder, described by its config.json"
    try:
        if description := read_toml(path).get("description"):
            return str(description)
    except RecipeError:
        return "not readable; `vla check` says why"
    file = path / "recipe.toml" if path.is_dir() else path
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").partition(". ")[0].strip() if first.startswith("#") else ""


def _config_note(path: Path) -> str:
    return f"# A checkpoint folder without recipe.toml; its whole description is {path.name}/config.json.\n"
