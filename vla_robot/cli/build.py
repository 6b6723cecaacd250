"""The composition root: recipes in, connected parts out. The only module that knows every room.

Imports of heavy rooms are inside, so that a mistake in a recipe is told before torch has loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.ports import Guard, Policy, World
from vla_robot.recipe.env import EnvRecipe, SimulationRecipe
from vla_robot.recipe.peer import PeerRecipe
from vla_robot.recipe.policy import CheckpointRecipe, GrootRecipe, OpenpiRecipe, PolicyRecipe, RemoteRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.transport.keys import ClientSecurity, KeyFolder, ServerSecurity
from vla_robot.transport.sockets import is_loopback, require_address

if TYPE_CHECKING:
    from vla_robot.core.ports import ActionFilter, Arm
    from vla_robot.serve.bridge.remote_robot import RemoteRobot
    from vla_robot.serve.policy.batcher import Act


def open_world(env: Path, privileged: bool = False) -> AbstractContextManager[World]:
    """The world of a recipe, in a process of its own that ends with the `with` block.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: the simulator or OpenGL cannot start.
        TransportError: the process did not answer.
    """
    from vla_robot.serve.world.world_process import spawn_world

    return spawn_world(env, privileged=privileged)


def build_arm(
    env: EnvRecipe, interrupted: Callable[[], bool] = lambda: False, show: Callable[[str], None] | None = None
) -> Arm:
    """The arm of a recipe, in this process, as a bridge drives it.

    Args:
        env: a simulation or a real arm.
        interrupted: asked while a real arm goes home; True lets it hold where it is.
        show: for a dry run of a real arm: told in words what would be sent.

    Raises:
        RecipeError: the recipe names something that does not exist, or a simulation is to run dry.
        WorldError: the simulator or OpenGL cannot start; the real arm's port, calibration, motors or cameras are at
            fault.
        MissingDependencyError: a simulator, or the drivers of a real arm, are not installed.
    """
    from vla_robot.world.kinds import build_robot, build_world, is_robot

    if is_robot(env):
        return build_robot(env, interrupted, show)
    if show is not None:
        raise RecipeError("a dry run is for real robots; a simulation breaks nothing: leave out --dry-run.")
    from vla_robot.serve.bridge.arm import WorldArm

    return WorldArm(build_world(env))


def build_limits(embodiment: Embodiment, env: EnvRecipe) -> ActionFilter:
    """What stands between a bridge and its arm.

    Raises:
        ContractError: the recipe's limits do not fit the arm.
    """
    from vla_robot.safety.filter import SafetyFilter
    from vla_robot.safety.limits import limits_of

    return SafetyFilter(embodiment, limits_of(embodiment, env.limits))


def connect_robot(address: str, key: str | None = None) -> RemoteRobot:
    """The robot behind a bridge.

    Raises:
        TransportError: no server answers there, or keys are missing.
    """
    from vla_robot.serve.bridge.remote_robot import RemoteRobot

    return RemoteRobot(address, security=client_security(address, key))


def server_security(address: str, key: str | None) -> ServerSecurity | None:
    """Keys for a server: where its address leaves this computer, or one is named."""
    require_address(address, keys=True)  # whether it needs them is decided here
    return KeyFolder().server_security(key) if key or not is_loopback(address) else None


def client_security(address: str, key: str | None) -> ClientSecurity | None:
    """The same for a client."""
    require_address(address, keys=True)
    return KeyFolder().client_security(address, key) if key or not is_loopback(address) else None


def build_policy(source: PolicySource, env: EnvRecipe | None, embodiment: Embodiment, key: str | None = None) -> Policy:
    """A policy, here or behind its server, fit to drive this embodiment.

    Args:
        source: which.
        env: the world's recipe, which names its expert; None where there is no simulation.
        embodiment: of the arm.
        key: which of this computer's keys a server is shown; only needed when there are several.

    Raises:
        CheckpointError: its folder is incomplete or corrupt.
        ContractError: it was made for another arm; every difference is in the message.
        TransportError: its server does not answer.
    """
    from vla_robot.policy.adapter import ObservationAdapter

    loaded = _connect_policy(source.recipe, embodiment, key) or _load_policy(source.recipe, env, embodiment)
    wanted: Embodiment | None = getattr(loaded, "embodiment", None)  # only a trained policy was made for some arm
    return loaded if wanted is None else ObservationAdapter(loaded, wanted, embodiment)


def build_served_policy(source: PolicySource) -> tuple[Act, Embodiment | None]:
    """A policy in this process for clients elsewhere, and the arm that it was made for, if it says so.

    Raises:
        ContractError: it needs the simulator's truth, or to be told of one arm.
        RecipeError: it is served elsewhere already.
        CheckpointError: its folder is incomplete or corrupt.
    """
    from vla_robot.policy.kinds import load_policy

    recipe = source.recipe
    if not isinstance(recipe, CheckpointRecipe):
        raise RecipeError(
            f"'{source.name}' is a policy of kind '{recipe.kind}', and a server needs one with weights: "
            "`vla list policies` shows them."
        )
    policy: Any = load_policy(recipe, None)  # kinds with a checkpoint take statistics keys, and say their arm
    return policy.act, policy.embodiment


def build_robot_policy(policy: str, robot: RemoteRobot, key: str | None = None) -> Policy:
    """The policy that drives the robot behind a bridge.

    Raises:
        ContractError: it needs the simulator's truth, which no robot tells, or was made for another arm.
        VlaError: as `build_policy`.
    """
    source = find_policy(policy)
    if source.is_privileged:
        raise ContractError(
            f"policy '{source.name}' needs to know where the objects are, and a robot tells what it sees and feels "
            "only. Choose one that sees: `vla list policies`."
        )
    return build_policy(source, None, robot.embodiment, key)


def _load_policy(recipe: PolicyRecipe, env: EnvRecipe | None, embodiment: Embodiment) -> Policy:
    from vla_robot.policy.kinds import load_policy

    return load_policy(recipe, embodiment, expert=env.expert if isinstance(env, SimulationRecipe) else None)


def _connect_policy(recipe: PolicyRecipe, embodiment: Embodiment, key: str | None) -> Policy | None:
    """The client of a policy that runs behind a server; None for one that runs here."""
    match recipe:
        case RemoteRecipe():
            return _connect_remote(recipe, key)
        case OpenpiRecipe():
            return _connect_openpi(recipe, embodiment)
        case GrootRecipe():
            return _connect_groot(recipe, embodiment)
        case _:
            return None


def _connect_remote(recipe: RemoteRecipe, key: str | None) -> Policy:
    from vla_robot.serve.policy.client import RemotePolicy

    security = client_security(recipe.address, key)
    return RemotePolicy(recipe.address, security=security, statistics_key=recipe.statistics_key)


def _connect_openpi(recipe: OpenpiRecipe, embodiment: Embodiment) -> Policy:
    from vla_robot.serve.interop.mapping import PeerMapping, Timeouts
    from vla_robot.serve.interop.openpi_policy import OpenpiPolicy

    peer = recipe.peer
    mapping, timeouts = PeerMapping(peer, embodiment), Timeouts(answer_s=peer.answer_timeout_s)
    return OpenpiPolicy(recipe.address, mapping, prompt=peer.prompt, token=_token(peer), timeouts=timeouts)


def _connect_groot(recipe: GrootRecipe, embodiment: Embodiment) -> Policy:
    from vla_robot.serve.interop.groot_policy import GrootPolicy
    from vla_robot.serve.interop.mapping import PeerMapping, Timeouts

    peer = recipe.peer
    mapping, timeouts = PeerMapping(peer, embodiment), Timeouts(answer_s=peer.answer_timeout_s)
    return GrootPolicy(
        recipe.address, mapping, peer.generation, prompt=peer.prompt, token=_token(peer), timeouts=timeouts
    )


def _token(peer: PeerRecipe) -> str | None:
    return None if peer.token is None else _secret_line(peer.token)


def _secret_line(path: Path) -> str:
    try:
        line = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"peer.token: {path} cannot be read: {error}.") from error
    if not line or not line.isprintable() or " " in line:
        raise RecipeError(f"peer.token: {path} must hold one line, the server's token, and nothing else.")
    return line


def build_guard(space: ActionSpace) -> Guard:
    """What stands between the policy and the world."""
    from vla_robot.safety.limits import RangeGuard

    return RangeGuard(space)
