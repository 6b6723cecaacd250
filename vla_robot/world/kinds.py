"""Maps each kind of world or robot recipe to the function that builds it. It is the only such list.

The functions are named and not imported, so that a base install can import this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import attribute
from vla_robot.core.ports import Arm, VisibleWorld
from vla_robot.recipe.env import (
    EnvRecipe,
    LiberoRecipe,
    MetaWorldRecipe,
    MujocoRecipe,
    RealArmRecipe,
    RobosuiteRecipe,
    SimulationRecipe,
)
from vla_robot.recipe.reading.plugins import plugin_names
from vla_robot.world.environments.location import find_environment
from vla_robot.world.sim.paced_cameras import PacedCameras

WORLDS: dict[type[EnvRecipe], str] = {
    RobosuiteRecipe: "vla_robot.world.sim.robosuite_world:RobosuiteWorld",
    MujocoRecipe: "vla_robot.world.sim.build:build_mujoco",
    LiberoRecipe: "vla_robot.world.sim.libero.world:LiberoWorld",
    MetaWorldRecipe: "vla_robot.world.sim.metaworld.world:MetaWorldWorld",
}
"""Recipe's dataclass -> "module:function" of a function (recipe, privileged, warm) -> VisibleWorld."""

ROBOTS: dict[type[EnvRecipe], str] = {
    RealArmRecipe: "vla_robot.world.real.build:build_lerobot",
}
"""Recipe's dataclass -> "module:function" of a function (recipe, interrupted, show) -> Arm."""


def build_world(recipe: EnvRecipe, privileged: bool = False, warm: bool = True) -> VisibleWorld:
    """Build the world of a recipe, also of a plugin's kind.

    Args:
        recipe: the world's recipe.
        privileged: whether to put the simulator's state into `Observation.privileged`, for scripted experts and labels.
        warm: start OpenGL now, so that it fails now and the first episode begins at once; False waits for a reset.

    Raises:
        RecipeError: the recipe names something that does not exist, or a robot.
        WorldError: the simulator or OpenGL cannot start.
        MissingDependencyError: the extra [sim], or the world's own environment, is not installed.
    """
    if is_robot(recipe):
        raise RecipeError(
            f"'{recipe.arm}' is a real robot, which does not wait for its next action: drive it with `vla bridge`, and "
            "connect to that with `vla run --robot ADDRESS`."
        )
    _require_environment(recipe)
    world = _builder(recipe, WORLDS)(recipe, privileged, warm)
    rates_hz = {camera.name: camera.rate_hz for camera in recipe.cameras if camera.rate_hz is not None}
    return PacedCameras(world, rates_hz) if rates_hz else world


def environment_of(recipe: EnvRecipe) -> str | None:
    """Return the name of the environment of its own in which a world runs; None for this one's packages."""
    return recipe.environment if isinstance(recipe, SimulationRecipe) else None


def _require_environment(recipe: EnvRecipe) -> None:
    """Raise an error unless this process runs in the environment that the recipe names, if it names one."""
    name = environment_of(recipe)
    if name is None or (environment := find_environment(name)).is_this_process:
        return
    environment.require_made("this world")
    raise RecipeError(
        f"this world runs in the environment '{name}', in a process of its own, and not in this one. `vla run`, "
        "`vla eval` and `vla record` start it there; a bridge cannot serve it yet."
    )


def build_robot(recipe: EnvRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None) -> Arm:
    """Connect to the robot of a recipe for which `is_robot` holds. It does not move before `reset`.

    Args:
        recipe: the robot's recipe.
        interrupted: called while the robot moves home; True makes it hold its pose.
        show: makes this a dry run, and is called with the commands that would be sent, in words.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: port, calibration, motors or cameras do not work.
        MissingDependencyError: the drivers are not installed.
    """
    return _builder(recipe, ROBOTS)(recipe, interrupted, show)


def is_robot(recipe: EnvRecipe) -> bool:
    """Return whether a recipe describes a robot with its own clock and not a world that waits for each action."""
    if recipe.kind in EnvRecipe.kinds.built_in:
        return type(recipe) in ROBOTS
    return recipe.kind in plugin_names("vla_robot.robots")


def _builder(recipe: EnvRecipe, built_in: dict[type[EnvRecipe], str]) -> Callable[..., Any]:
    if path := built_in.get(type(recipe)):
        return attribute(path)
    return EnvRecipe.kinds.plugin(recipe.kind).build
