"""Builds worlds of MuJoCo scenes. MuJoCo, which a base install lacks, is imported when a world is built."""

from __future__ import annotations

from vla_robot.core.host.optional import require
from vla_robot.core.ports import VisibleWorld
from vla_robot.recipe.env import MujocoRecipe


def build_mujoco(recipe: MujocoRecipe, privileged: bool, warm: bool) -> VisibleWorld:
    """Build the world of a recipe; see `build_world`."""
    require("mujoco", "sim", "a MuJoCo world")
    from vla_robot.world.sim.render import start_mujoco

    start_mujoco()
    from vla_robot.world.sim.mujoco_world import MujocoWorld

    return MujocoWorld(recipe, privileged, warm)
