"""Wraps a policy as its recipe says: what it sees of an arm, and its execution horizon."""

from __future__ import annotations

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.ports import Policy
from vla_robot.policy.adapter import MirroredFrames, ObservationAdapter
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.recipe.policy import PolicyRecipe, WeightsRecipe


def wrap_policy(policy: Policy, recipe: PolicyRecipe, offered: Embodiment) -> Policy:
    """Return a policy that gets mirrored frames, the cameras and the state that it was trained with, and a horizon.

    Args:
        policy: as `load_policy` builds it.
        recipe: the policy's recipe.
        offered: embodiment of the arm that it is to drive.

    Raises:
        ContractError: the arm lacks a camera or a state that the policy knows, or its actions mean something else.
    """
    wanted: Embodiment | None = getattr(policy, "embodiment", None)  # only a trained policy has one
    if isinstance(recipe, WeightsRecipe) and recipe.mirror:
        policy = MirroredFrames(policy)
    if wanted is not None:
        policy = ObservationAdapter(policy, wanted, offered)
    return policy if recipe.rows is None else ExecutionHorizon(policy, recipe.rows)
