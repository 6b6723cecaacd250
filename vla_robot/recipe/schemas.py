"""Which schema reads which file. The only list of recipe kinds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.recipe.find import KINDS, POLICY_FILES, Kind, available, find
from vla_robot.recipe.load import read_toml

_SCHEMAS: dict[str, tuple[str, str]] = {
    "envs": ("vla_robot.recipe.env", "EnvRecipe"),
    "policies": ("vla_robot.recipe.policy", "PolicyRecipe"),
    "datasets": ("vla_robot.recipe.dataset", "DatasetRecipe"),
    "launch.run": ("vla_robot.recipe.launch", "LaunchRecipe"),
    "launch.finetune": ("vla_robot.recipe.finetune", "FinetuneRecipe"),
}


def schema_for(kind: Kind, path: Path) -> type:
    """The dataclass that a recipe file must satisfy. A launch file says by `verb` which command it is for.

    Raises:
        RecipeError: the file cannot be read, or its verb is unknown.
    """
    key = kind if kind != "launch" else f"launch.{_verb(path, read_toml(path))}"
    module, name = _SCHEMAS[key]
    return getattr(import_module(module), name)


def is_bare_checkpoint(path: Path) -> bool:
    """A policy folder without recipe.toml: its config.json is the whole description."""
    return path.is_dir() and not (path / POLICY_FILES[0]).is_file()


def locate(name_or_path: str, kind: Kind | None = None) -> tuple[Kind, Path]:
    """Any recipe by name or path, whatever its kind.

    Raises:
        RecipeError: nothing has that name, or several kinds do; the message lists them.
    """
    kinds: list[Kind] = [kind] if kind else _kinds_of(name_or_path)
    found: dict[Kind, Path] = {k: path for k in kinds if (path := _try_find(k, name_or_path))}
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        choices = " or ".join(f"`{k}/{Path(name_or_path).name}`" for k in found)
        raise RecipeError(f"'{name_or_path}' names {len(found)} recipes. Say which one: {choices}.")
    everything = {f"{k}/{name}" for k in KINDS for name in available(k)} | {
        name for k in KINDS for name in available(k)
    }
    raise RecipeError(_nothing_found(name_or_path, kinds, everything))


def _verb(path: Path, table: Mapping[str, Any]) -> str:
    verbs = [key.partition(".")[2] for key in _SCHEMAS if key.startswith("launch.")]
    verb = table.get("verb", "run")
    if verb not in verbs:
        raise RecipeError(f"{path}: verb: {unknown('verb', str(verb), verbs)}")
    return verb


def _kinds_of(name_or_path: str) -> list[Kind]:
    """A path inside envs/, policies/, datasets/ or launch/ says its kind; a bare name may be any."""
    for parent in reversed(Path(name_or_path).expanduser().parts[:-1]):
        for kind in KINDS:
            if parent == kind:
                return [kind]
    return list(KINDS)


def _try_find(kind: Kind, name_or_path: str) -> Path | None:
    try:
        return find(kind, name_or_path)
    except RecipeError:
        return None


def _nothing_found(name_or_path: str, kinds: list[Kind], everything: set[str]) -> str:
    if len(kinds) == 1:
        try:
            find(kinds[0], name_or_path)
        except RecipeError as error:
            return str(error)
    names = sorted(name for name in everything if "/" in name)
    near = unknown("recipe", name_or_path, everything).partition(" Available:")[0]
    return f"{near} Available: {', '.join(names) or 'none'}. Run `vla list`."
