"""The composition root: recipes in, connected parts out. The only module that knows every room.

Imports of heavy rooms are inside, so that a mistake in a recipe is told before torch has loaded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.ports import Policy, World
from vla_robot.loop.control_loop import Guard
from vla_robot.recipe import find, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy import PolicyRecipe
from vla_robot.recipe.schemas import is_bare_checkpoint
from vla_robot.transport.keys import ClientSecurity, KeyFolder, ServerSecurity
from vla_robot.transport.sockets import is_loopback

if TYPE_CHECKING:
    from vla_robot.serve.arm import Arm
    from vla_robot.serve.bridge import Filter
    from vla_robot.serve.remote_robot import RemoteRobot

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


def build_arm(env: EnvRecipe) -> Arm:
    """The arm of a recipe, in this process, as a bridge drives it.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: the simulator or OpenGL cannot start.
        MissingDependencyError: a simulator is not installed.
    """
    from vla_robot.serve.arm import WorldArm
    from vla_robot.world.kinds import build_world

    return WorldArm(build_world(env))


def build_limits(embodiment: Embodiment, env: EnvRecipe) -> Filter:
    """What stands between a bridge and its arm.

    Raises:
        ContractError: the recipe's limits do not fit the arm.
    """
    from vla_robot.act.limits import limits_of
    from vla_robot.act.safety import SafetyFilter

    return SafetyFilter(embodiment, limits_of(embodiment, env.limits))


def connect_robot(address: str, key: str | None = None) -> RemoteRobot:
    """The robot behind a bridge.

    Raises:
        TransportError: nobody answers there, or keys are missing.
    """
    from vla_robot.serve.remote_robot import RemoteRobot

    return RemoteRobot(address, security=client_security(address, key))


def server_security(address: str, key: str | None) -> ServerSecurity | None:
    """Keys for a server: where its address leaves this computer, or one is named."""
    return KeyFolder().server_security(key) if key or not is_loopback(address) else None


def client_security(address: str, key: str | None) -> ClientSecurity | None:
    """The same for a client."""
    return KeyFolder().client_security(address, key) if key or not is_loopback(address) else None


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


def build_robot_policy(policy: str, robot: RemoteRobot) -> Policy:
    """Who drives the robot behind a bridge.

    Raises:
        ContractError: it needs the simulator's truth, which no robot tells, or was made for another arm.
        VlaError: as `build_policy`.
    """
    path = find("policies", policy)
    if sees_the_truth(path):
        raise ContractError(
            f"policy '{path.stem}' needs to know where the objects are, and a robot tells what it sees and feels "
            "only. Choose one that sees: `vla list policies`."
        )
    # Nothing of the recipe is looked at but its expert, and that one was refused.
    nobody = EnvRecipe(kind="robosuite", task=robot.embodiment.name, instruction=robot.instruction)
    return build_policy(path, nobody, robot.embodiment)


def build_guard(space: ActionSpace) -> Guard:
    """What stands between the policy and the world."""
    from vla_robot.act.limits import Guard as Limits

    return Limits(space)
