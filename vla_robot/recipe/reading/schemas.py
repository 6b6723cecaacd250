"""Table of recipe kinds and their schemas."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.untrusted import read_json
from vla_robot.recipe.reading.find import FORMER_FOLDERS, KINDS, POLICY_FILES, Kind, available, find, folder_of
from vla_robot.recipe.reading.formats import GROUP, format_plugin
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.reading.load import BASE_KEY, find_base, read_toml
from vla_robot.recipe.reading.plugins import GROUPS, Found, plugin_names

_SCHEMAS: dict[str, tuple[str, str]] = {
    "envs": ("vla_robot.recipe.env", "EnvRecipe"),
    "policies": ("vla_robot.recipe.policy", "PolicyRecipe"),
    "datasets.recording": ("vla_robot.recipe.dataset", "DatasetRecipe"),
    "datasets.source": ("vla_robot.recipe.oxe", "SourceRecipe"),
    "datasets.mixture": ("vla_robot.recipe.oxe", "MixtureRecipe"),
    "teleoperators": ("vla_robot.recipe.teleoperator", "TeleoperatorRecipe"),
    "environments": ("vla_robot.recipe.environment", "EnvironmentRecipe"),
    "launch.run": ("vla_robot.recipe.launch", "LaunchRecipe"),
    "launch.finetune": ("vla_robot.recipe.finetune", "FinetuneRecipe"),
    "launch.pretrain": ("vla_robot.recipe.trainings.pretrain", "PretrainRecipe"),
}


_FAMILIES: dict[str, tuple[str, str]] = {
    "vla_robot.policies": _SCHEMAS["policies"],
    "vla_robot.worlds": _SCHEMAS["envs"],
    "vla_robot.robots": _SCHEMAS["envs"],
    "vla_robot.teleoperators": _SCHEMAS["teleoperators"],
}
"""Group of entry points -> base class of its recipes."""


def installed_plugins() -> list[Found]:
    """Return every plugin with its problem, if it has one. Each is imported."""
    return [
        _examined(group, kind, distribution) for group in GROUPS for kind, distribution in plugin_names(group).items()
    ]


def _examined(group: str, kind: str, distribution: str) -> Found:
    try:
        plugin = format_plugin(kind) if group == GROUP else _family(group).plugin(kind)
    except RecipeError as error:
        return Found(group, kind, distribution, problem=str(error))
    return Found(group, kind, distribution, plugin.description)


def _family(group: str) -> Kinds[Any]:
    module, name = _FAMILIES[group]
    return getattr(import_module(module), name).kinds


_CHOICES: dict[Kind, tuple[str, str]] = {"launch": ("verb", "run"), "datasets": ("kind", "recording")}
"""Key by which a file chooses among several schemas, and its default value."""


def schema_for(kind: Kind, path: Path) -> type:
    """Return the dataclass of a recipe file. A launch file's `verb` is its command; a dataset's `kind` says whether it
    is to be recorded, exists already, or is a mixture.

    Raises:
        RecipeError: the file cannot be read, or its verb or kind is unknown.
    """
    module, name = _SCHEMAS[f"{kind}.{_choice(kind, path)}" if kind in _CHOICES else kind]
    return getattr(import_module(module), name)


def is_bare_checkpoint(path: Path) -> bool:
    """Return whether this is a policy folder without recipe.toml, described by its config.json alone."""
    return path.is_dir() and not (path / POLICY_FILES[0]).is_file()


def is_lerobot_folder(path: Path) -> bool:
    """Return whether lerobot wrote this policy folder: its config.json alone states a `type` and features."""
    return {"type", "input_features", "output_features"} <= _config_of(path).keys()


def model_type_of(path: Path) -> str | None:
    """Return the `model_type` of a policy folder's config.json; None if it states none, or is damaged."""
    model_type = _config_of(path).get("model_type")
    return model_type if isinstance(model_type, str) else None


def _config_of(path: Path) -> dict[str, Any]:
    """Return the content of a policy folder's config.json; empty if it is damaged, which the policy's kind reports."""
    try:
        config: Any = read_json(path / "config.json", RecipeError)
    except (OSError, RecipeError):
        return {}
    return cast(dict[str, Any], config) if isinstance(config, dict) else {}


def locate(name_or_path: str, kind: Kind | None = None) -> tuple[Kind, Path]:
    """Find a recipe of any kind by name or path.

    Raises:
        RecipeError: no recipe has that name, or recipes of several kinds do; the message lists them.
    """
    kinds: list[Kind] = [kind] if kind else _kinds_of(name_or_path)
    found: dict[Kind, Path] = {k: path for k in kinds if (path := _try_find(k, name_or_path))}
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        choices = " or ".join(f"`{folder_of(k)}/{Path(name_or_path).name}`" for k in found)
        raise RecipeError(f"'{name_or_path}' names {len(found)} recipes. Say which one: {choices}.")
    everything = {f"{folder_of(k)}/{name}" for k in KINDS for name in available(k)} | {
        name for k in KINDS for name in available(k)
    }
    raise RecipeError(_nothing_found(name_or_path, kinds, everything))


def _choice(kind: Kind, path: Path) -> str:
    key, default = _CHOICES[kind]
    choices = [schema.partition(".")[2] for schema in _SCHEMAS if schema.startswith(f"{kind}.")]
    table = read_toml(path)
    if key not in table and BASE_KEY in table:
        table = read_toml(find_base(path, table[BASE_KEY], kind))
    choice = table.get(key, default)
    if choice not in choices:
        raise RecipeError(f"{path}: {key}: {unknown(key, str(choice), choices)}")
    return choice


def _kinds_of(name_or_path: str) -> list[Kind]:
    """Return the kind of a path by its innermost folder of recipes; a bare name may be of any kind."""
    for parent in reversed(Path(name_or_path).expanduser().parts[:-1]):
        for kind in KINDS:
            if parent in (kind, FORMER_FOLDERS.get(kind)):
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
