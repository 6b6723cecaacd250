"""Builds real arms from their recipes, with set points between control steps where the recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable

from vla_robot.core.clock import MonotonicClock
from vla_robot.core.ports import Arm
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.recipe.robot import SetPointsRecipe
from vla_robot.world.real.joint_arm import JointArm
from vla_robot.world.real.lerobot_arm import LerobotArm
from vla_robot.world.real.set_points import SetPoints, StreamBounds, StreamedArm
from vla_robot.world.real.smooth import MotionBounds


def build_lerobot(recipe: RealArmRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None) -> Arm:
    """Connect to the robot of a recipe; see `build_robot`."""
    kind = JointArm if recipe.robot.actions == "joints" else LerobotArm
    arm = kind(recipe, interrupted=interrupted, show=show)
    wanted = recipe.robot.set_points
    return arm if wanted is None or show else _streamed(arm, wanted, recipe.rate_hz)


def _streamed(arm: LerobotArm | JointArm, wanted: SetPointsRecipe, rate_hz: float) -> Arm:
    motion = MotionBounds(wanted.max_speed_rad_s, wanted.max_acceleration_rad_s2, wanted.max_jerk_rad_s3)
    names = (*arm.body.joint_names, *arm.body.grippers)
    bounds = StreamBounds(motion, *arm.body.joint_range, wanted.opening_per_s, names)
    motors = SetPoints(arm.motors, rate_hz, wanted.rate_hz, bounds, MonotonicClock())
    arm.motors = motors
    return StreamedArm(arm, motors)
