"""Builds policies from recipes of OpenVLA's two kinds, and checks their folders without reading weights."""

from __future__ import annotations

from vla_robot.core.embodiment import Embodiment, require_fit
from vla_robot.core.errors import ContractError, unknown
from vla_robot.policy.device import torch_device
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.oft import OFTPolicy, load_oft
from vla_robot.policy.openvla.oft import check_oft as check_oft_folder
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load_any
from vla_robot.policy.openvla.policy import check as check_folder
from vla_robot.policy.openvla.prompt import OpenVLAPrompts
from vla_robot.policy.vla.heads.policy import HeadPolicy, sampling_as
from vla_robot.policy.vla.heads.sizes import require_flow
from vla_robot.policy.vla.inputs.preprocess import Preprocessor
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.policy import OFTRecipe, OpenVLAOFTRecipe, OpenVLARecipe

type AnyHeadPolicy = HeadPolicy[OpenVLA, OpenVLAPrompts, Preprocessor]


def build(recipe: OpenVLARecipe, embodiment: Embodiment | None, expert: str | None) -> OpenVLAPolicy | AnyHeadPolicy:
    """Build the policy as `load_policy` does."""
    torch_device(recipe.device)  # what is not there is told before anything is read
    require_flow(recipe.flow, OpenVLAConfig.read(recipe.checkpoint).head)
    policy = load_any(recipe.checkpoint, Loading.as_recipe(recipe))
    return _fitted(sampling_as(policy, recipe.flow), embodiment)


def build_oft(recipe: OpenVLAOFTRecipe, embodiment: Embodiment | None, expert: str | None) -> OFTPolicy:
    """Build the policy as `load_policy` does."""
    if embodiment is not None:
        _require_room(recipe.oft, embodiment)  # before gigabytes are read
    policy = load_oft(recipe.checkpoint, recipe.oft, Loading.as_recipe(recipe))
    return _fitted(policy, embodiment)


def check(recipe: OpenVLARecipe) -> None:
    """Check the folder as `check_policy` does."""
    check_folder(recipe.checkpoint, recipe.statistics_key, recipe.image_preprocessing)
    require_flow(recipe.flow, OpenVLAConfig.read(recipe.checkpoint).head)


def check_oft(recipe: OpenVLAOFTRecipe) -> None:
    """Check the folder as `check_policy` does."""
    check_oft_folder(recipe.checkpoint, recipe.oft, recipe.statistics_key, recipe.image_preprocessing)


def _fitted[P: OpenVLAPolicy | OFTPolicy | AnyHeadPolicy](policy: P, embodiment: Embodiment | None) -> P:
    if policy.embodiment is not None and embodiment is not None:
        require_fit(policy.embodiment, embodiment)
    return policy


def _require_room(oft: OFTRecipe, embodiment: Embodiment) -> None:
    """Raise ContractError unless the world has the policy's cameras and takes its actions.

    A published folder names neither. The length of the state is checked with the first observation.
    """
    cameras = [camera.name for camera in embodiment.cameras]
    for name in oft.cameras:
        if name not in cameras:
            raise ContractError(unknown("camera", name, cameras))
    if oft.action_dim != len(embodiment.action):
        raise ContractError(
            f"the policy gives {oft.action_dim} numbers per action, but '{embodiment.name}' takes "
            f"{len(embodiment.action)}: {', '.join(embodiment.action.names)}."
        )
