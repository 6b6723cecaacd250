"""The composition root: recipes in, connected parts out. The only module that knows every room.

Imports of heavy rooms are inside, so that a mistake in a recipe is told before torch has loaded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.ports import Policy, World
from vla_robot.loop.control_loop import Guard
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy import PolicyRecipe
from vla_robot.recipe.schemas import is_bare_checkpoint

EXPERT = "expert"


def sees_the_truth(policy: Path) -> bool:
    """Whether a policy works from the simulator's truth; every other one gets cameras and the arm's own state only."""
    return not is_bare_checkpoint(policy) and read(PolicyRecipe, policy).kind == EXPERT


def open_world(env: Path, privileged: bool = False) -> AbstractContextManager[World]:
    """The world of a recipe, in a process of its own that ends with the `with` block.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: the simulator or OpenGL cannot start.
        TransportError: the process did not answer.
    """
    from vla_robot.serve.child import spawn_world

    return spawn_world(env, privileged=privileged)


def build_policy(policy: Path, env: EnvRecipe, embodiment: Embodiment) -> Policy:
    """The policy of a recipe or of a checkpoint folder, fit to drive this embodiment.

    Raises:
        CheckpointError: its folder is incomplete or corrupt.
        ContractError: it was made for another arm; every difference is in the message.
    """
    from vla_robot.observe.select import Selecting
    from vla_robot.policy.kinds import load_policy

    loaded = load_policy(policy, embodiment, expert=env.expert)
    wanted: Embodiment | None = getattr(loaded, "embodiment", None)  # only a trained policy was made for some arm
    return loaded if wanted is None else Selecting(loaded, wanted, embodiment)


def build_guard(space: ActionSpace) -> Guard:
    """What stands between the policy and the world."""
    from vla_robot.act.limits import Guard as Limits

    return Limits(space)
