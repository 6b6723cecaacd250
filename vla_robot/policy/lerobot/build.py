"""Builds a policy from a recipe of kind "lerobot", and checks its folder without reading weights."""

from __future__ import annotations

import logging

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import require
from vla_robot.policy.device import torch_device
from vla_robot.policy.lerobot.features import Features, require_arm
from vla_robot.policy.lerobot.folder import PolicyFolder, read_folder
from vla_robot.policy.lerobot.model import audit, build_model, new_config
from vla_robot.policy.lerobot.policy import LeRobotPolicy
from vla_robot.policy.lerobot.processors import build_processors, ranges
from vla_robot.recipe.policy import LeRobotRecipe

_LOG = logging.getLogger(__name__)


def build(recipe: LeRobotRecipe, embodiment: Embodiment | None, expert: str | None) -> LeRobotPolicy:
    """Build the policy as `load_policy` does."""
    device = str(torch_device(recipe.device))
    folder = _folder(recipe)
    arm = require_arm(folder.embodiment, embodiment, folder)
    processors = build_processors(folder, new_config(folder, recipe.hub, device), recipe.hub, device)
    features = Features(folder, recipe, arm, {**ranges(processors[0]), **ranges(processors[1])})
    if folder.embodiment is None and recipe.action is None:
        _LOG.warning(
            "%s does not say for which arm it was trained: the sizes, cameras and ranges of its features were compared "
            "with '%s', its units, order and rate were not. docs/lerobot.md says how to state them.",
            folder.path,
            arm.name,
        )
    return LeRobotPolicy(
        build_model(folder, recipe.hub, device),
        processors,
        folder.family,
        features,
        embodiment=folder.embodiment,
        history_steps=folder.earlier_steps,
        whole_chunks=recipe.rows is not None,
    )


def check(recipe: LeRobotRecipe) -> None:
    """Check the folder as `check_policy` does."""
    audit(_folder(recipe), recipe.hub)


def _folder(recipe: LeRobotRecipe) -> PolicyFolder:
    require("lerobot", "lerobot", "a policy of kind 'lerobot'")
    folder = read_folder(recipe.checkpoint, recipe.embodiment)
    if folder.kind == "diffusion":
        require("diffusers", "lerobot", "a diffusion policy")
    if folder.config.get("temporal_ensemble_coeff") is not None and recipe.rows is None:
        raise RecipeError(
            f"{folder.path}: lerobot would average the chunks of this policy (temporal_ensemble_coeff). Here a bridge "
            "does that, with --splice ensemble: write a recipe with `rows = 1` for it."
        )
    return folder
