"""World kinds by name. The only list; imports are inside, so that a base install can read it."""

from __future__ import annotations

from collections.abc import Callable

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.host.optional import require
from vla_robot.core.ports import VisibleWorld
from vla_robot.recipe.env import EnvRecipe
from vla_robot.world.sim.paced_cameras import PacedCameras


def build_world(recipe: EnvRecipe, privileged: bool = False, warm: bool = True) -> VisibleWorld:
    """The world of a recipe.

    Args:
        recipe: what to build.
        privileged: give the simulator's truth in `Observation.privileged`, for scripted experts and labels.
        warm: start OpenGL now, so that it fails now and the first episode begins at once; False waits for a reset.

    Raises:
        RecipeError: the recipe names something that does not exist.
        WorldError: the simulator or OpenGL cannot start.
        MissingDependencyError: the extra [sim] is not installed.
    """
    if recipe.kind == "robot":
        raise RecipeError(
            f"'{recipe.arm}' is an arm of metal, which does not wait for its next action: `vla bridge` drives it, and "
            "`vla run --robot ADDRESS` talks to that."
        )
    if recipe.kind not in _BUILDERS:
        raise RecipeError(unknown("world kind", recipe.kind, _BUILDERS))
    world = _BUILDERS[recipe.kind](recipe, privileged, warm)
    rates_hz = {camera.name: camera.rate_hz for camera in recipe.cameras if camera.rate_hz is not None}
    return PacedCameras(world, rates_hz) if rates_hz else world


def _robosuite(recipe: EnvRecipe, privileged: bool, warm: bool) -> VisibleWorld:
    from vla_robot.world.sim.robosuite_world import RobosuiteWorld

    return RobosuiteWorld(recipe, privileged, warm)


def _mujoco(recipe: EnvRecipe, privileged: bool, warm: bool) -> VisibleWorld:
    require("mujoco", "sim", "a MuJoCo world")
    from vla_robot.world.sim.render import start_mujoco

    start_mujoco()
    from vla_robot.world.sim.mujoco_world import MujocoWorld

    return MujocoWorld(recipe, privileged, warm)


_BUILDERS: dict[str, Callable[[EnvRecipe, bool, bool], VisibleWorld]] = {"robosuite": _robosuite, "mujoco": _mujoco}
