"""Table of the policy kinds that run in this process: each recipe dataclass and the function that builds its policy.

Functions are named and not imported, so that a policy of kind "hold" needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.host.optional import attribute
from vla_robot.core.ports import Policy
from vla_robot.recipe.policy import (
    ExpertRecipe,
    HoldRecipe,
    LeRobotRecipe,
    OnnxRecipe,
    OpenVLAOFTRecipe,
    OpenVLARecipe,
    PolicyRecipe,
    RandomRecipe,
    VLARecipe,
    WaypointsRecipe,
)
from vla_robot.recipe.reading.kinds import kind_name


@dataclass(frozen=True)
class Functions:
    """Functions of a policy kind, each as "module:function".

    Attributes:
        build: (recipe, embodiment or None, the world's expert or None) -> policy.
        check: (recipe) -> None; raises what `build` and the first action would raise, without reading weights.
    """

    build: str
    check: str | None = None


KINDS: dict[type[PolicyRecipe], Functions] = {
    OpenVLARecipe: Functions("vla_robot.policy.openvla.build:build", "vla_robot.policy.openvla.build:check"),
    OpenVLAOFTRecipe: Functions("vla_robot.policy.openvla.build:build_oft", "vla_robot.policy.openvla.build:check_oft"),
    VLARecipe: Functions("vla_robot.policy.families:build", "vla_robot.policy.families:check"),
    OnnxRecipe: Functions("vla_robot.policy.onnx.policy:build", "vla_robot.policy.onnx.policy:check"),
    LeRobotRecipe: Functions("vla_robot.policy.lerobot.build:build", "vla_robot.policy.lerobot.build:check"),
    HoldRecipe: Functions("vla_robot.policy.scripted.build:hold"),
    RandomRecipe: Functions("vla_robot.policy.scripted.build:uniform"),
    ExpertRecipe: Functions("vla_robot.policy.scripted.build:scripted_expert"),
    WaypointsRecipe: Functions("vla_robot.policy.scripted.build:waypoints"),
}


def load_policy(recipe: PolicyRecipe, embodiment: Embodiment | None, *, expert: str | None = None) -> Policy:
    """Build the policy of a recipe and check that it fits an embodiment.

    Args:
        recipe: of any kind that runs in this process, including a plugin's.
        embodiment: the arm that it will control; None for a server, where each client brings its own arm.
        expert: the world's scripted expert, for policies of kind "expert".

    Raises:
        RecipeError: the recipe names something that does not exist, or a kind that runs elsewhere.
        CheckpointError: the folder is incomplete or damaged.
        ContractError: the policy was made for another arm; the message lists every difference.
    """
    if known := KINDS.get(type(recipe)):
        return attribute(known.build)(recipe, embodiment, expert)
    if recipe.kind in PolicyRecipe.kinds.built_in:
        raise RecipeError(unknown("policy kind", recipe.kind, map(kind_name, KINDS)))
    return PolicyRecipe.kinds.plugin(recipe.kind).build(recipe, embodiment)


def check_policy(recipe: PolicyRecipe) -> None:
    """Raise what `load_policy` and the first action would raise, without reading weights; needs the extra [policy].

    For kinds without a checkpoint this does nothing.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
        ContractError: the recipe names statistics that the folder does not hold.
    """
    known = KINDS.get(type(recipe))
    if known is not None and known.check is not None:
        attribute(known.check)(recipe)
