"""Kinds of worlds and robots: the recipe's dataclass, and what builds it. The only list.

What builds is named and not imported, so that a base install can read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import attribute
from vla_robot.core.ports import Arm, VisibleWorld
from vla_robot.recipe.env import EnvRecipe, MujocoRecipe, RealArmRecipe, RobosuiteRecipe
from vla_robot.recipe.reading.plugins import plugin_names
from vla_robot.world.sim.paced_cameras import PacedCameras

WORLDS: dict[type[EnvRecipe], str] = {
    RobosuiteRecipe: "vla_robot.world.sim.robosuite_world:RobosuiteWorld",
    MujocoRecipe: "vla_robot.world.sim.build:build_mujoco",
}
"""Dataclass -> "module:function" of (recipe, privileged, warm) -> VisibleWorld."""

ROBOTS: dict[type[EnvRecipe], str] = {
    RealArmRecipe: "vla_robot.world.real.build:build_lerobot",
}
"""Dataclass -> "module:function" of (recipe, interrupted, show) -> Arm."""


def build_world(recipe: EnvRecipe, privileged: bool = False, warm: bool = True) -> VisibleWorld:
    """The world of a recipe, of a plugin's kind too.

    Args:
        recipe: what to build.
        privileged: give the simulator's truth in `Observation.privileged`, for scripted experts and labels.
        warm: start OpenGL now, so that it fails now and the first episode begins at once; False waits for a reset.

    Raises:
        RecipeError: the recipe names something that does not exist, or a robot.
        WorldError: the simulator or OpenGL cannot start.
        MissingDependencyError: the extra [sim] is not installed.
    """
    if is_robot(recipe):
        raise RecipeError(
            f"'{recipe.arm}' is a real robot, which does not wait for its next action: `vla bridge` drives it, and "
            "`vla run --robot ADDRESS` talks to that."
        )
    world = _builder(recipe, WORLDS)(recipe, privileged, warm)
    rates_hz = {camera.name: camera.rate_hz for camera in recipe.cameras if camera.rate_hz is not None}
    return PacedCameras(world, rates_hz) if rates_hz else world


def build_robot(recipe: EnvRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None) -> Arm:
    """The robot of a recipe for which `is_robot` holds; nothing moves before `reset`.

    Args:
        recipe: what to build.
        interrupted: asked while the robot goes home; True lets it hold where it is.
        show: for a dry run: told in words what would be sent.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: port, calibration, motors or cameras are at fault.
        MissingDependencyError: the drivers are not installed.
    """
    return _builder(recipe, ROBOTS)(recipe, interrupted, show)


def is_robot(recipe: EnvRecipe) -> bool:
    """Whether a recipe describes a robot, which `vla bridge` drives, and not a world that waits."""
    if recipe.kind in EnvRecipe.kinds.built_in:
        return type(recipe) in ROBOTS
    return recipe.kind in plugin_names("vla_robot.robots")


def _builder(recipe: EnvRecipe, built_in: dict[type[EnvRecipe], str]) -> Callable[..., Any]:
    if path := built_in.get(type(recipe)):
        return attribute(path)
    return EnvRecipe.kinds.plugin(recipe.kind).build
