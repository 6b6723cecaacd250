"""Table of the families of vision-language-action models, by the `model_type` of their config.json.

Families are named and not imported, so that a folder's family costs no import of the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.errors import CheckpointError, RecipeError, unknown
from vla_robot.core.host.optional import attribute
from vla_robot.policy.vla.heads.sizes import require_flow
from vla_robot.policy.vla.json_files import read_json, require_folder
from vla_robot.recipe.policy import VLARecipe

if TYPE_CHECKING:
    from vla_robot.policy.vla.family import Family
    from vla_robot.policy.vla.policy import AnyVLAPolicy

FAMILIES = {
    "openvla": "vla_robot.policy.openvla.family:OPENVLA",
    "paligemma": "vla_robot.policy.paligemma.family:PALIGEMMA",
    "qwen2_vl": "vla_robot.policy.qwen_vl.family:QWEN2_VL",
    "qwen2_5_vl": "vla_robot.policy.qwen_vl.family:QWEN2_5_VL",
    "qwen3_vl": "vla_robot.policy.qwen_vl.family:QWEN3_VL",
    "gemma4": "vla_robot.policy.gemma4.family:GEMMA4",
    "gemma4_unified": "vla_robot.policy.gemma4.family:GEMMA4_UNIFIED",
    "smolvlm": "vla_robot.policy.smolvlm.family:SMOLVLM",
    "idefics3": "vla_robot.policy.smolvlm.family:SMOLVLM_1",
}

NEW_MODELS = {**FAMILIES, "minivla": "vla_robot.policy.openvla.family:MINIVLA"}
"""Families of new models; the folder of a new MiniVLA has the `model_type` "openvla"."""


def family_named(name: str) -> Family:
    """Return the family of a new model. Raises RecipeError for an unknown one."""
    if name not in NEW_MODELS:
        raise RecipeError(unknown("family", name, NEW_MODELS))
    return attribute(NEW_MODELS[name])


def family_of(folder: Path) -> Family:
    """Return the family of a checkpoint folder.

    Raises:
        CheckpointError: config.json is missing or damaged, or names a `model_type` that no family has.
    """
    path = folder / "config.json"
    require_folder(folder)
    data = read_json(path)
    model_type = data.get("model_type")
    if model_type is None and isinstance(data.get("vla"), dict):
        raise CheckpointError(
            f"{path} is of a training run of OpenVLA's or MiniVLA's own code, whose weights are pickled and not read: "
            "convert the run to safetensors with its own script first."
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"{path}: model_type is {model_type!r}; supported: {', '.join(FAMILIES)}.")
    return attribute(FAMILIES[model_type])


def build(recipe: VLARecipe, embodiment: Embodiment | None, expert: str | None) -> AnyVLAPolicy:
    """Build the policy of a recipe as `load_policy` does."""
    sampling_as = attribute("vla_robot.policy.vla.heads.policy:sampling_as")
    loading = attribute("vla_robot.policy.vla.loading:Loading")
    loaded = family_of(recipe.checkpoint).load(recipe.checkpoint, loading.as_recipe(recipe))
    policy = sampling_as(loaded, recipe.flow)
    if policy.embodiment is not None and embodiment is not None:
        require_fit(policy.embodiment, embodiment)
    return policy


def check(recipe: VLARecipe) -> None:
    """Check the folder of a recipe as `check_policy` does."""
    family = family_of(recipe.checkpoint)
    family.check(recipe.checkpoint, recipe.statistics_key, recipe.image_preprocessing)
    require_flow(recipe.flow, family.read(recipe.checkpoint).config.head)
