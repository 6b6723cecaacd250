"""The folder that lerobot loads, and the loading of the policy in it.

    config.json                  type "vla_robot", and lerobot's features; it names no policy
    model.safetensors            no tensors; lerobot's tools expect the file
    policy_preprocessor.json     } processor_vla_robot.py
    policy_postprocessor.json    }
    embodiment.json              the arm that the policy was made for
    policy/                      recipe.toml, and the files of the policy's own folder

The folder is complete: it may be moved, uploaded and downloaded. What a downloaded folder says is not trusted: its
recipe may name neither files outside of it nor a server.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from safetensors.torch import save_file

from lerobot_policy_vla_robot.configuration_vla_robot import VlaRobotConfig
from lerobot_policy_vla_robot.features import input_features, output_features
from lerobot_policy_vla_robot.processor_vla_robot import make_vla_robot_pre_post_processors
from vla_robot.cli.build import build_policy, client_security, open_world
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, RecipeError
from vla_robot.core.host.durable import write_whole, writing
from vla_robot.core.ports import Policy
from vla_robot.core.ports.wrapped_policy import history_steps
from vla_robot.policy.kinds import load_policy
from vla_robot.policy.wrappers import wrap_policy
from vla_robot.recipe import dump, read
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy import GrootRecipe, OpenpiRecipe, PolicyRecipe, RemoteRecipe, WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.policy.client import RemotePolicy

CONFIG, WEIGHTS, EMBODIMENT, POLICY, RECIPE = (
    "config.json",
    "model.safetensors",
    "embodiment.json",
    "policy",
    "recipe.toml",
)
NOT_COPIED = (".git", ".cache", RECIPE)


@dataclass(frozen=True)
class Loaded:
    """A policy that can act.

    Attributes:
        source: its recipe and where it was found.
        policy: the policy.
        embodiment: the arm that it drives: its own, or the one that it was given.
    """

    source: PolicySource
    policy: Policy
    embodiment: Embodiment


def load_by_name(name: str | None, env: str | None) -> Loaded:
    """Load a policy by name, path or address.

    Args:
        name: as `vla run --policy` takes it.
        env: world whose arm a policy drives that does not say its own.

    Raises:
        RecipeError: no policy is named, or it reads the simulator's state.
        ContractError: it does not say its arm and `env` is None, or it does not fit that arm.
        VlaError: it cannot be loaded.
    """
    if name is None:
        raise RecipeError(
            "no policy is named: --policy.path=FOLDER of `vla export lerobot`, or --policy.policy=NAME "
            "beside --policy.type=vla_robot."
        )
    source = find_policy(name)
    return load(source, None if env is None else embodiment_of_world(env))


def embodiment_of_world(env: str) -> Embodiment:
    """Open a world to get its embodiment. Raises VlaError if it cannot be opened."""
    with open_world(find_env(env).recipe) as world:
        return world.embodiment


def load(source: PolicySource, arm: Embodiment | None) -> Loaded:
    """Load a policy for this arm, or for its own if `arm` is None. Raises as `load_by_name`."""
    if source.is_privileged:
        raise RecipeError(
            f"policy '{source.name}' reads the simulator's state, which lerobot does not pass on. "
            "`vla list policies` shows others."
        )
    if arm is not None:
        policy = build_policy(source, None, arm)
    else:
        policy = _load_for_its_own_arm(source)
        arm = getattr(policy, "embodiment", None)
        if arm is None:
            raise _needs_arm(source)
        policy = wrap_policy(policy, source.recipe, arm)
    if history := history_steps(policy):
        raise RecipeError(
            f"policy '{source.name}' reads {history + 1} observations for an answer, and a batch of lerobot's has one."
        )
    return Loaded(source, policy, arm)


def _load_for_its_own_arm(source: PolicySource) -> Policy:
    """Load a policy that may say its own arm. Raises ContractError for kinds that are always built for one."""
    match source.recipe:
        case RemoteRecipe() as recipe:
            security = client_security(recipe.address, None)
            return RemotePolicy(recipe.address, security=security, statistics_key=recipe.statistics_key)
        case WeightsRecipe() as recipe:
            return load_policy(recipe, None)
        case recipe if recipe.kind in PolicyRecipe.kinds.built_in:
            raise _needs_arm(source)
        case recipe:  # a plugin's
            return load_policy(recipe, None)


def _needs_arm(source: PolicySource) -> ContractError:
    return ContractError(
        f"policy '{source.name}' does not say which arm it drives. Name a world that has it: --policy.env=lift, or "
        f"`vla export lerobot {source.name} FOLDER --env lift`."
    )


def load_folder(folder: Path) -> Loaded:
    """Load the policy of a folder of `write_policy`.

    Raises:
        CheckpointError: the folder is incomplete, or its recipe names a place outside of it.
        VlaError: the policy cannot be loaded.
    """
    inside = folder / POLICY
    for path in (folder / EMBODIMENT, inside / RECIPE):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. `vla export lerobot POLICY FOLDER` writes a complete folder.")
    recipe = read(PolicyRecipe, inside / RECIPE)
    require_inside(recipe, inside)
    try:
        embodiment = Embodiment.from_dict(json.loads((folder / EMBODIMENT).read_text(encoding="utf-8")))
    except (ValueError, ContractError) as error:
        raise CheckpointError(f"{folder / EMBODIMENT} is damaged: {error}") from error
    return load(PolicySource(recipe, inside), embodiment)


def require_inside(recipe: PolicyRecipe, folder: Path) -> None:
    """Raise CheckpointError if a recipe names a server, or files outside of its folder."""
    if isinstance(recipe, RemoteRecipe | OpenpiRecipe | GrootRecipe):
        raise CheckpointError(
            f"the recipe in {folder} names the server {recipe.address}. A folder holds a policy; a server's is "
            f"named on the command line: --policy.type=vla_robot --policy.policy={recipe.address}"
        )
    for key, value in _paths(recipe).items():
        if not value.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"the recipe in {folder} names a place outside of it: {key} = '{value}'.")


def read_named_policy(folder: Path) -> str | None:
    """Return the policy that a folder's config.json names. Raises CheckpointError if the file is damaged."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("policy")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}.") from error


def write_folder(folder: Path, source: PolicySource, env: str | None = None) -> Embodiment:
    """Write a policy as a folder that lerobot loads, processors included; return the arm that it drives.

    Args:
        folder: an empty folder.
        source: the policy; it is loaded once, so that nothing is written that cannot act.
        env: world whose arm a policy drives that does not say its own.

    Raises:
        VlaError: the policy cannot be loaded or copied, or the folder cannot be written.
    """
    require_copyable(source)
    loaded = load(source, None if env is None else embodiment_of_world(env))
    config = VlaRobotConfig(push_to_hub=False)
    write_policy(folder, loaded, config)
    for processor in make_vla_robot_pre_post_processors(config):
        processor.save_pretrained(folder)
    return loaded.embodiment


def write_policy(folder: Path, loaded: Loaded, config: VlaRobotConfig) -> None:
    """Write a policy into a folder: everything but the processors, which lerobot saves itself.

    Raises:
        RecipeError: it is not a policy of this computer that can be copied.
        DataError: the folder cannot be written.
    """
    require_copyable(loaded.source)
    features = {
        "input_features": input_features(loaded.embodiment),
        "output_features": output_features(loaded.embodiment),
    }
    named = list(loaded.embodiment.action.names)
    saved: PreTrainedConfig = replace(config, policy=None, env=None, action_feature_names=named, **features)
    with writing(folder):
        _copy(loaded.source.recipe, folder / POLICY)
        write_whole(folder / EMBODIMENT, json.dumps(loaded.embodiment.to_dict(), indent=2).encode())
        save_file({}, folder / WEIGHTS, metadata={"format": "pt", "weights": f"in the folder {POLICY}"})
        saved._save_pretrained(folder)  # pyright: ignore[reportPrivateUsage]  # lerobot's name of the hook


def require_copyable(source: PolicySource) -> None:
    """Raise RecipeError unless a folder can hold the policy."""
    recipe = source.recipe
    if isinstance(recipe, RemoteRecipe | OpenpiRecipe | GrootRecipe):
        raise RecipeError(
            f"'{source.name}' is a policy of a server, so there are no weights to export. lerobot's tools take it by "
            f"name: --policy.type=vla_robot --policy.policy={source}"
        )
    if source.is_privileged:
        raise RecipeError(f"policy '{source.name}' reads the simulator's state, which lerobot does not pass on.")
    if others := set(_paths(recipe)) - {"checkpoint"}:
        raise RecipeError(f"'{source.name}' names files by {', '.join(sorted(others))}, which cannot be copied.")


def _copy(recipe: PolicyRecipe, target: Path) -> None:
    """Copy a policy's files; its recipe is written last, whole, and names its own folder."""
    if isinstance(recipe, WeightsRecipe):
        shutil.copytree(recipe.checkpoint, target, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
        recipe = replace(recipe, checkpoint=Path("."))
    write_whole(target / RECIPE, dump(recipe).encode())


def _paths(recipe: PolicyRecipe) -> dict[str, Path]:
    """Return key -> the path that it names; a table's are "table.key"."""
    values: dict[str, Any] = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    inner = {
        f"{name}.{key}": value
        for name, table in values.items()
        if isinstance(table, dict)
        for key, value in table.items()
    }
    return {name: value for name, value in (values | inner).items() if isinstance(value, Path)}
