"""Builds the connected objects of recipes; the only module that imports every room.
Heavy rooms are imported in functions, so that a mistake in a recipe is reported before torch has loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.ports import Guard, Policy, TaskRunner, World
from vla_robot.recipe.env import EnvRecipe, SimulationRecipe
from vla_robot.recipe.peer import PeerRecipe
from vla_robot.recipe.policy import (
    GrootRecipe,
    OpenpiRecipe,
    PolicyRecipe,
    RemoteRecipe,
    ReplayRecipe,
)
from vla_robot.recipe.policy_source import PolicySource
from vla_robot.transport.keys import ClientSecurity, KeyFolder, ServerSecurity
from vla_robot.transport.sockets import is_loopback, require_address

if TYPE_CHECKING:
    from vla_robot.core.ports import ActionFilter, Arm
    from vla_robot.serve.bridge.remote_robot import RemoteRobot


def open_runner(cluster: str | None, most_workers: int) -> AbstractContextManager[TaskRunner]:
    """Open the place where tasks run: threads of this process, or the cluster that --cluster names.

    Args:
        cluster: value of --cluster; None for this process.
        most_workers: largest number of workers in this process.

    Raises:
        VlaError: as `ray_cluster`.
    """
    if cluster is None:
        from vla_robot.cluster.local import LocalRunner

        return contextlib.nullcontext(LocalRunner(most_workers))
    from vla_robot.cluster.ray_connection import ray_cluster

    return ray_cluster(cluster)


def require_cluster_name(name: str) -> None:
    """Raise RecipeError or MissingDependencyError unless a value of --cluster can be used; connects to nothing."""
    from vla_robot.cluster.ray_connection import require_cluster_name as require_name

    require_name(name)


def open_world(env: EnvRecipe, privileged: bool = False) -> AbstractContextManager[World]:
    """Open the world of a recipe in a process of its own, which ends with the `with` block.

    Raises:
        RecipeError: the recipe names something that does not exist.
        MissingDependencyError: the environment that the recipe names is not installed.
        WorldError: the simulator or OpenGL cannot start.
        TransportError: the process did not answer.
    """
    from vla_robot.serve.world.world_process import spawn_world

    return spawn_world(env, privileged=privileged)


def open_world_here(env: EnvRecipe, privileged: bool = False) -> AbstractContextManager[World]:
    """Open the world of a recipe in this process, or, if it names an environment of its own, in a process there.

    Raises:
        VlaError: as `open_world`.
    """
    from vla_robot.world.kinds import build_world, environment_of

    if environment_of(env) is None:
        return contextlib.closing(build_world(env, privileged))
    return open_world(env, privileged)


def build_arm(
    env: EnvRecipe, interrupted: Callable[[], bool] = lambda: False, show: Callable[[str], None] | None = None
) -> Arm:
    """Build the arm of a recipe in this process, for a bridge.

    Args:
        env: a simulation or a real arm.
        interrupted: called while a real arm goes home; if True, the arm holds where it is.
        show: for a dry run of a real arm: receives each command as text.

    Raises:
        RecipeError: the recipe names something that does not exist, or a simulation is to run dry.
        WorldError: the simulator or OpenGL cannot start, or the real arm's port, calibration, motors or cameras
            cannot be used.
        MissingDependencyError: a simulator, or the drivers of a real arm, are not installed.
    """
    from vla_robot.world.kinds import build_robot, build_world, is_robot

    if is_robot(env):
        return build_robot(env, interrupted, show)
    if show is not None:
        raise RecipeError("--dry-run is for real robots; leave it out for a simulation.")
    from vla_robot.serve.bridge.arm import WorldArm

    return WorldArm(build_world(env))


def build_limits(embodiment: Embodiment, env: EnvRecipe) -> ActionFilter:
    """Build the filter that applies the recipe's limits to an arm's commands.

    Raises:
        ContractError: the recipe's limits do not fit the arm.
    """
    from vla_robot.safety.filter import SafetyFilter
    from vla_robot.safety.limits import limits_of

    return SafetyFilter(embodiment, limits_of(embodiment, env.limits))


def connect_robot(address: str, key: str | None = None) -> RemoteRobot:
    """Connect to the robot behind a bridge.

    Raises:
        TransportError: no server answers there, or keys are missing.
    """
    from vla_robot.serve.bridge.remote_robot import RemoteRobot

    return RemoteRobot(address, security=client_security(address, key))


def server_security(address: str, key: str | None) -> ServerSecurity | None:
    """Return a server's keys; None if its address is on this computer and no key is named."""
    require_address(address, keys=True)  # this check tells whether keys are needed
    return KeyFolder().server_security(key) if key or not is_loopback(address) else None


def client_security(address: str, key: str | None) -> ClientSecurity | None:
    """Return a client's keys; None if the address is on this computer and no key is named."""
    require_address(address, keys=True)
    return KeyFolder().client_security(address, key) if key or not is_loopback(address) else None


def build_policy(
    source: PolicySource,
    env: EnvRecipe | None,
    embodiment: Embodiment,
    key: str | None = None,
    rows: int | None = None,
) -> Policy:
    """Build a policy, here or behind its server, and check that it fits the embodiment.

    Args:
        source: recipe or address of the policy.
        env: the world's recipe, which names its expert; None without a simulation.
        embodiment: of the arm.
        key: name of this computer's key for a server; only needed if there are several.
        rows: its execution horizon; None for the recipe's.

    Raises:
        CheckpointError: its folder is incomplete or corrupt.
        ContractError: it was made for another arm; the message lists every difference.
        TransportError: its server does not answer.
    """
    from vla_robot.policy.wrappers import wrap_policy

    recipe = source.recipe if rows is None else replace(source.recipe, rows=rows)
    policy = _connect_policy(recipe, embodiment, key) or _load_policy(recipe, env, embodiment)
    return wrap_policy(policy, recipe, embodiment)


def build_robot_policy(
    source: PolicySource, robot: RemoteRobot, key: str | None = None, rows: int | None = None
) -> Policy:
    """Build the policy that drives the robot behind a bridge.

    Raises:
        ContractError: it needs the simulator's state, which a robot does not have, or was made for another arm.
        VlaError: as `build_policy`.
    """
    if source.is_privileged:
        raise ContractError(
            f"policy '{source.name}' needs the positions of the objects, and a robot has only cameras and joint "
            "sensors. Choose a policy that uses cameras: `vla list policies`."
        )
    return build_policy(source, None, robot.embodiment, key, rows)


def _load_policy(recipe: PolicyRecipe, env: EnvRecipe | None, embodiment: Embodiment) -> Policy:
    if isinstance(recipe, ReplayRecipe):
        from vla_robot.record.replay import build_replay

        return build_replay(recipe, embodiment)
    from vla_robot.policy.kinds import load_policy

    return load_policy(recipe, embodiment, expert=env.expert if isinstance(env, SimulationRecipe) else None)


def _connect_policy(recipe: PolicyRecipe, embodiment: Embodiment, key: str | None) -> Policy | None:
    """Connect to a policy behind a server; None for one that runs here."""
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
    """Build the check of a policy's actions, before they reach the world."""
    from vla_robot.safety.limits import RangeGuard

    return RangeGuard(space)
