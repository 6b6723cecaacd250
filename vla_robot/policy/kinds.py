"""Policy kinds by name. The only list; imports are inside, so that holding still needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.errors import ContractError, RecipeError, unknown
from vla_robot.core.ports import Policy
from vla_robot.recipe.policy import OFTRecipe, PolicyRecipe

if TYPE_CHECKING:
    from vla_robot.policy.openvla.oft import OFTPolicy
    from vla_robot.policy.openvla.policy import OpenVLAPolicy

Builder = Callable[[PolicyRecipe, Embodiment | None, str | None], Policy]


def load_policy(recipe: PolicyRecipe, embodiment: Embodiment | None, *, expert: str | None = None) -> Policy:
    """The policy of a recipe, fit to drive an embodiment.

    Args:
        recipe: what it is; any kind that runs in this process.
        embodiment: what it will drive; None where each client brings its own arm, as it is for a server.
        expert: the world's scripted expert, for policies of kind "expert".

    Raises:
        RecipeError: the recipe names something that does not exist, or a kind that runs elsewhere.
        CheckpointError: the folder is incomplete or damaged.
        ContractError: the policy was made for another arm; every difference is in the message.
    """
    if recipe.kind not in _BUILDERS:
        raise RecipeError(unknown("policy kind", recipe.kind, _BUILDERS))
    return _BUILDERS[recipe.kind](recipe, embodiment, expert)


def check_policy(recipe: PolicyRecipe) -> None:
    """Find what `load_policy` and the first action would refuse, without reading weights; needs the extra [policy].

    Kinds without a checkpoint have nothing more to look at than their recipe.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
        ContractError: the recipe names statistics that the folder does not hold.
    """
    if recipe.checkpoint is None:
        return
    if recipe.oft is not None:
        from vla_robot.policy.openvla.oft import check_oft

        check_oft(recipe.checkpoint, recipe.oft, recipe.statistics_key, recipe.pre_step)
    else:
        from vla_robot.policy.openvla.policy import check

        check(recipe.checkpoint, recipe.statistics_key, recipe.pre_step)


def _openvla(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.openvla.policy import load

    assert recipe.checkpoint is not None  # PolicyRecipe requires it for this kind
    policy = load(
        recipe.checkpoint,
        recipe.dtype,
        statistics_key=recipe.statistics_key,
        pre_step=recipe.pre_step,
        compiled=recipe.compiled,
        quantise=recipe.quantise,
    )
    return _fitted(policy, embodiment)


def _openvla_oft(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.openvla.oft import load_oft

    assert recipe.checkpoint is not None and recipe.oft is not None  # PolicyRecipe requires them for this kind
    if embodiment is not None:
        _require_room(recipe.oft, embodiment)  # before gigabytes are read
    policy = load_oft(
        recipe.checkpoint, recipe.oft, recipe.dtype, statistics_key=recipe.statistics_key, pre_step=recipe.pre_step
    )
    return _fitted(policy, embodiment)


def _fitted[P: "OpenVLAPolicy | OFTPolicy"](policy: P, embodiment: Embodiment | None) -> P:
    if policy.embodiment is not None and embodiment is not None:
        require_fit(policy.embodiment, embodiment)
    return policy


def _require_room(oft: OFTRecipe, embodiment: Embodiment) -> None:
    """Raise ContractError unless the world has these cameras and takes such actions.

    A published folder names neither; how long the state must be is checked with the first observation.
    """
    cameras = [camera.name for camera in embodiment.cameras]
    for name in oft.cameras:
        if name not in cameras:
            raise ContractError(unknown("camera", name, cameras))
    if oft.action_dim != len(embodiment.action):
        raise ContractError(
            f"the policy gives {oft.action_dim} numbers per action, '{embodiment.name}' takes "
            f"{len(embodiment.action)}: {', '.join(embodiment.action.names)}."
        )


def _hold(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.scripted.simple import HoldPolicy

    embodiment = _named(recipe, embodiment)
    if embodiment.action.kind != "eef_delta":
        raise ContractError(f"'hold' needs an arm that is moved by deltas; '{embodiment.name}' takes positions.")
    return HoldPolicy(embodiment.action)


def _random(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.scripted.simple import RandomPolicy

    return RandomPolicy(_named(recipe, embodiment).action)


def _reach(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.scripted.waypoints import ReachPolicy

    return ReachPolicy(_named(recipe, embodiment), recipe.poses, recipe.relative)


def _expert(recipe: PolicyRecipe, embodiment: Embodiment | None, expert: str | None) -> Policy:
    from vla_robot.policy.scripted.experts import build_expert

    return build_expert(expert, _named(recipe, embodiment).action)


def _named(recipe: PolicyRecipe, embodiment: Embodiment | None) -> Embodiment:
    """The arm of a policy that was made for none in particular."""
    if embodiment is None:
        raise ContractError(f"a policy of kind '{recipe.kind}' works for any arm, so it must be told for which one.")
    return embodiment


_BUILDERS: dict[str, Builder] = {
    "openvla": _openvla,
    "openvla_oft": _openvla_oft,
    "hold": _hold,
    "random": _random,
    "expert": _expert,
    "reach": _reach,
}
