"""Builds policies from recipes of scripted policies. Each works for any arm, and must be told for which one."""

from __future__ import annotations

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.ports import Policy
from vla_robot.policy.scripted.experts import build_expert
from vla_robot.policy.scripted.simple import HoldPolicy, RandomPolicy
from vla_robot.policy.scripted.waypoints import ReachPolicy
from vla_robot.recipe.policy import ExpertRecipe, HoldRecipe, PolicyRecipe, RandomRecipe, WaypointsRecipe


def hold(recipe: HoldRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    """Build the policy as `load_policy` does."""
    return HoldPolicy(require_deltas(recipe, _named(recipe, embodiment)).action)


def uniform(recipe: RandomRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    """Build the policy as `load_policy` does."""
    return RandomPolicy(_named(recipe, embodiment).action)


def waypoints(recipe: WaypointsRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    """Build the policy as `load_policy` does."""
    return ReachPolicy(_named(recipe, embodiment), recipe.poses, recipe.relative)


def scripted_expert(recipe: ExpertRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    """Build the policy as `load_policy` does."""
    return build_expert(expert, _named(recipe, embodiment).action)


def require_deltas(recipe: PolicyRecipe, embodiment: Embodiment) -> Embodiment:
    """Return the embodiment. Raises ContractError unless its actions are deltas, of which zeros stand still."""
    if embodiment.action.kind != "eef_delta":
        raise ContractError(
            f"'{recipe.kind}' needs an arm with actions of deltas; '{embodiment.name}' takes positions."
        )
    return embodiment


def _named(recipe: PolicyRecipe, embodiment: Embodiment | None) -> Embodiment:
    """Return the embodiment. Raises ContractError if there is none."""
    if embodiment is None:
        raise ContractError(f"a policy of kind '{recipe.kind}' works for any arm, so it must be told for which one.")
    return embodiment
