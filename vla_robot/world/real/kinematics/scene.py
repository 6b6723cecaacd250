"""Compiles the MuJoCo scene of a real arm or a pair: the MJCF file, mounted arms, and obstacles of the recipe.

A pair of arms is one file, mounted twice; its joints and bodies get the mount's name before their own. Obstacles are
boxes, fixed to the base frame, which is the frame of the workspace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.sim.render import start_mujoco

if TYPE_CHECKING:
    import mujoco  # at run time only after `start_mujoco`, which turns a failure of OpenGL into a WorldError

BASE = "base"
"""Body whose frame is the arm's."""


def compiled(recipe: RealArmRecipe) -> mujoco.MjModel:
    """Return the model of a recipe's scene.

    Raises:
        RecipeError: the recipe has no scene, it cannot be read, or a name is used twice.
    """
    start_mujoco()
    import mujoco

    if recipe.scene is None:
        raise RecipeError("scene is missing: it tells where the arm's bodies are.")
    if not recipe.scene.is_file():
        raise RecipeError(f"the scene '{recipe.scene}' does not exist. Paths are relative to the recipe's folder.")
    try:
        spec = _mounted(recipe) if recipe.robot.mounts else mujoco.MjSpec.from_file(str(recipe.scene))
        _add_obstacles(spec, recipe)
        return spec.compile()
    except ValueError as error:
        told = " ".join(str(error).split())
        raise RecipeError(f"the scene '{recipe.scene}' is not valid MJCF: {told}.") from error


def joint_ranges_of(model: mujoco.MjModel, joints: Sequence[str]) -> tuple[Vector, Vector]:
    """Return the smallest and largest angles of a scene's joints, each (J,) [rad]; infinite where it has no limit.

    Raises:
        RecipeError: the scene lacks a joint.
    """
    names = [model.joint(j).name for j in range(model.njnt)]
    for name in joints:
        if name not in names:
            raise RecipeError(unknown("joint in the scene", name, names, "See [robot.joints]."))
    at = [names.index(name) for name in joints]
    limited = model.jnt_limited[at].astype(bool)
    low, high = np.where(limited[:, None], model.jnt_range[at], [-np.inf, np.inf]).T
    return low, high


def _mounted(recipe: RealArmRecipe) -> mujoco.MjSpec:
    """Return a scene with one copy of the arm for each mount."""
    import mujoco

    whole = mujoco.MjSpec()
    for name, mount in recipe.robot.mounts.items():
        arm = mujoco.MjSpec.from_file(str(recipe.scene))
        whole.compiler.degree = arm.compiler.degree
        half = math.radians(mount.yaw_deg) / 2
        frame = whole.worldbody.add_frame(pos=list(mount.pos), quat=[math.cos(half), 0.0, 0.0, math.sin(half)])
        whole.attach(arm, prefix=f"{name}_", frame=frame)
    return whole


def _add_obstacles(spec: mujoco.MjSpec, recipe: RealArmRecipe) -> None:
    """Add the recipe's boxes to the base frame; a pair's is the world's."""
    import mujoco

    if not recipe.obstacles:
        return
    frame = spec.worldbody if recipe.robot.mounts else spec.body(BASE)
    if frame is None:
        raise RecipeError(f"{recipe.scene}: obstacles need the body '{BASE}', whose frame they are in.")
    for name, box in recipe.obstacles.items():
        low, high = np.array(box.low), np.array(box.high)
        body = frame.add_body(name=name)
        kind = mujoco.mjtGeom.mjGEOM_BOX
        body.add_geom(type=kind, pos=(low + high) / 2, size=(high - low) / 2, contype=1, conaffinity=1)
