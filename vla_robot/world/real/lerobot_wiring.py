"""Reads from one of lerobot's robots, or a pair in one, how its joints and grippers are called and counted.

    lerobot      "left_elbow_flex.pos" -> -12.5, in degrees, radians or -100..100 of the calibrated range
    wiring       joint "left_elbow_flex" -> -0.218 rad; gripper "left_gripper" -> 0.4 of its opening

Which unit a motor has is read from the driver; only where it does not tell it, the recipe does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.joint_units import JOINT_UNITS, JointScale, JointScales, JointUnit, opening_of, scale_of
from vla_robot.core.messages import Vector
from vla_robot.recipe.robot import JointRecipe, RobotRecipe

SUFFIX = ".pos"
"""End of lerobot's name of a position."""

NORM_MODES: Mapping[str, JointUnit] = {"DEGREES": "degrees", "RANGE_M100_100": "range", "RANGE_0_100": "share"}
"""Name of lerobot's MotorNormMode -> our unit. Source: lerobot 0.6.1, motors/motors_bus.py."""

RANGED: tuple[JointUnit, ...] = ("range", "share")
"""Units that count over a joint's range."""


@dataclass(frozen=True)
class ArmPart:
    """One arm of lerobot's: the robot itself, or one of a pair.

    Attributes:
        prefix: what the pair puts before the names of its motors, such as "left_"; "" for a single arm.
        robot: lerobot's robot.
    """

    prefix: str
    robot: Any

    @property
    def table(self) -> str:
        """Field of the pair's configuration that holds this arm's, such as "left_arm_config"; "" for a single arm."""
        return f"{self.prefix}arm_config" if self.prefix else ""

    @property
    def bus(self) -> Any:
        """Its bus of motors; None for a robot without one."""
        return getattr(self.robot, "bus", None)

    @property
    def feetech(self) -> Any:
        """Its bus of Feetech motors; None for other motors."""
        return self.bus if type(self.bus).__name__ == "FeetechMotorsBus" else None


def parts_of(robot: Any) -> tuple[ArmPart, ...]:
    """Return the arms of one of lerobot's robots; its pairs hold `left_arm` and `right_arm`."""
    if hasattr(robot, "left_arm") and hasattr(robot, "right_arm"):
        return ArmPart("left_", robot.left_arm), ArmPart("right_", robot.right_arm)
    return (ArmPart("", robot),)


@dataclass(frozen=True)
class Wiring:
    """Names, units and ranges of a robot's joints and grippers.

    Attributes:
        joints: (J,) names of the joints.
        keys: (J,) lerobot's names of their positions.
        scales: conversion of lerobot's numbers to angles.
        low: (J,) smallest angle that recipe or calibration allows [rad]; -inf where neither tells it.
        high: (J,) largest angle [rad].
        grippers: (G,) names of the grippers.
        gripper_keys: (G,) lerobot's names of their positions.
        closed: lerobot's number of a closed gripper.
        opened: lerobot's number of an open gripper.
        order: (J + G,) all names, in lerobot's order.
    """

    joints: tuple[str, ...]
    keys: tuple[str, ...]
    scales: JointScales
    low: Vector
    high: Vector
    grippers: tuple[str, ...]
    gripper_keys: tuple[str, ...]
    closed: float
    opened: float
    order: tuple[str, ...]

    def from_device(self, numbers: Mapping[str, Any]) -> tuple[Vector, Vector]:
        """Return the (J,) joints [rad] and the (G,) openings of lerobot's numbers."""
        joints = self.scales.to_rad([float(numbers[key]) for key in self.keys])
        openings = [opening_of(float(numbers[key]), self.closed, self.opened) for key in self.gripper_keys]
        return joints, np.array(openings)

    def to_device(self, joints: Vector, openings: Vector) -> dict[str, float]:
        """Return lerobot's numbers of (J,) joints [rad] and (G,) openings."""
        told = dict(zip(self.keys, self.scales.from_rad(joints).tolist(), strict=True))
        grips = self.closed + openings * (self.opened - self.closed)
        return told | dict(zip(self.gripper_keys, grips.tolist(), strict=True))

    def steps(self, max_step_rad: float) -> dict[str, float]:
        """Return lerobot's name of each position -> the largest step in its unit; a gripper's is its whole way."""
        steps = (max_step_rad / np.abs(self.scales.rad_per_unit)).tolist()
        grips = dict.fromkeys(self.gripper_keys, abs(self.opened - self.closed))
        return dict(zip(self.keys, steps, strict=True)) | grips


def wire(recipe: RobotRecipe, robot: Any, joints: Sequence[str] | None) -> Wiring:
    """Return the wiring of one of lerobot's robots, which need not be connected.

    Args:
        recipe: the robot's recipe.
        robot: lerobot's robot.
        joints: names of the arm's joints in the scene, in order; None for every motor that is no gripper.

    Raises:
        RecipeError: a joint, motor or gripper does not exist; the robot takes more than positions; or the unit of a
            motor is not known, or is another one than the recipe says.
    """
    motors = _motors(robot)
    grippers = _grippers(recipe, motors)
    if joints is None:
        joints = _all_joints(recipe, [motor for motor in motors if motor not in grippers])
    for name in recipe.joints:
        if name not in joints:
            raise RecipeError(unknown("joint in [robot.joints]", name, joints))
    told = [recipe.joints.get(name, JointRecipe()) for name in joints]
    names = {joint.motor or name: name for name, joint in zip(joints, told, strict=True)}
    for motor in names:
        if motor not in motors:
            raise RecipeError(unknown("motor", motor, motors, "See [robot.joints]."))
    rows = [_scaled(recipe, robot, m, joint) for m, joint in zip(names, told, strict=True)]
    return Wiring(
        joints=tuple(joints),
        keys=tuple(motor + SUFFIX for motor in names),
        scales=JointScales.of([scale for scale, _, _ in rows]),
        low=np.array([low for _, low, _ in rows]),
        high=np.array([high for _, _, high in rows]),
        grippers=grippers,
        gripper_keys=tuple(motor + SUFFIX for motor in grippers),
        closed=recipe.gripper_closed,
        opened=recipe.gripper_open,
        order=tuple(names.get(motor, motor) for motor in motors if motor in names or motor in grippers),
    )


def _motors(robot: Any) -> list[str]:
    """Return lerobot's names of the motors, in its order."""
    return [name.removesuffix(SUFFIX) for name in robot.action_features if name.endswith(SUFFIX)]


def require_positions_only(recipe: RobotRecipe, robot: Any) -> None:
    """Raise RecipeError for a robot whose action holds more than positions, such as a moving base's speed."""
    others = [name for name in robot.action_features if not name.endswith(SUFFIX)]
    if others:
        raise RecipeError(
            f"'{recipe.type}' also takes {', '.join(others)}, which are no positions of joints: such a robot cannot be "
            "driven in joint positions."
        )


def _grippers(recipe: RobotRecipe, motors: Sequence[str]) -> tuple[str, ...]:
    if not recipe.gripper:
        return ()
    found = tuple(m for m in motors if m == recipe.gripper or m.endswith(f"_{recipe.gripper}"))
    if not found:
        raise RecipeError(unknown("motor", recipe.gripper, motors, 'See gripper in [robot]; "" for none.'))
    return found


def _all_joints(recipe: RobotRecipe, motors: Sequence[str]) -> list[str]:
    """Return the names of all joints: the recipe's for a motor, else the motor's own."""
    own = {joint.motor or name: name for name, joint in recipe.joints.items()}
    for motor in own:
        if motor not in motors:
            raise RecipeError(unknown("motor", motor, motors, "See [robot.joints]."))
    return [own.get(motor, motor) for motor in motors]


def _scaled(recipe: RobotRecipe, robot: Any, motor: str, joint: JointRecipe) -> tuple[JointScale, float, float]:
    """Return the scale of a joint, and its smallest and largest angle [rad]."""
    low, high = _recipe_range(joint)
    unit, calibrated = told_by_driver(robot, motor)
    if unit and recipe.unit not in (None, unit):
        raise RecipeError(
            f"unit is '{recipe.unit}', but the driver's motor '{motor}' counts in '{unit}'. Leave unit out, or change "
            "the driver's own setting in [robot.fields]."
        )
    unit = unit or recipe.unit
    if unit is None:
        raise RecipeError(
            f"'{recipe.type}' does not tell the unit of its motor '{motor}': write unit to [robot], one of "
            f"{', '.join(JOINT_UNITS)}. A wrong unit moves the arm to wrong poses."
        )
    zero_rad = math.radians(joint.zero_deg)
    motor_range = calibrated or _motor_range(low, high, zero_rad, joint.inverted)
    if unit in RANGED and motor_range is None:
        raise RecipeError(
            f"the motor '{motor}' counts in parts of its range, which is not known: calibrate the arm, or give "
            f"low_deg and high_deg in [robot.joints.{motor}]."
        )
    scale = _mirrored(scale_of(unit, *(motor_range or ())), robot, motor, unit)
    scale = scale.from_zero(zero_rad, joint.inverted)
    if calibrated is not None:
        ends = sorted((-1.0 if joint.inverted else 1.0) * (end - zero_rad) for end in calibrated)
        low, high = max(low, ends[0]), min(high, ends[1])
    return scale, low, high


def _recipe_range(joint: JointRecipe) -> tuple[float, float]:
    if joint.low_deg is None or joint.high_deg is None:
        return -math.inf, math.inf
    return math.radians(joint.low_deg), math.radians(joint.high_deg)


def _motor_range(low: float, high: float, zero_rad: float, inverted: bool) -> tuple[float, float] | None:
    """Return a joint's range as its motor counts it [rad]; None where it is not known."""
    if not math.isfinite(low):
        return None
    first, last = sorted((-1.0 if inverted else 1.0) * end + zero_rad for end in (low, high))
    return first, last


def told_by_driver(device: Any, motor: str) -> tuple[JointUnit | None, tuple[float, float] | None]:
    """Return the unit of a motor and its calibrated range [rad], as far as lerobot's bus tells them.

    The angle is what lerobot's own degrees would be: zero in the middle of the calibrated range.

    Args:
        device: lerobot's robot or leader arm, or a pair.
        motor: lerobot's name of the motor.
    """
    part, name = _part_with(device, motor)
    motors: Mapping[str, Any] = getattr(part.bus, "motors", None) or {}
    if name not in motors:
        return None, None
    unit = NORM_MODES.get(getattr(motors[name].norm_mode, "name", ""))
    row = (getattr(part.bus, "calibration", None) or {}).get(name)
    ticks = (getattr(part.bus, "model_resolution_table", None) or {}).get(motors[name].model)
    if row is None or ticks is None or not row.range_min < row.range_max:
        return unit, None
    half_rad = (row.range_max - row.range_min) / 2 * 2 * math.pi / (ticks - 1)
    return unit, (-half_rad, half_rad)


def driver_scale(device: Any, motor: str) -> JointScale | None:
    """Return the scale of a motor that lerobot's bus tells; None where it does not."""
    unit, calibrated = told_by_driver(device, motor)
    if unit is None or (unit in RANGED and calibrated is None):
        return None
    return _mirrored(scale_of(unit, *(calibrated or ())), device, motor, unit)


def _mirrored(scale: JointScale, device: Any, motor: str, unit: JointUnit) -> JointScale:
    """Return the scale of a motor whose drive mode lets lerobot's normalised units count down; degrees do not."""
    part, name = _part_with(device, motor)
    row = (getattr(part.bus, "calibration", None) or {}).get(name)
    counts_down = bool(getattr(part.bus, "apply_drive_mode", False) and row is not None and row.drive_mode)
    if unit in RANGED and counts_down:
        middle = 0.0 if unit == "range" else 50.0
        return JointScale(-scale.rad_per_unit, 2 * middle - scale.zero)
    return scale


def _part_with(device: Any, motor: str) -> tuple[ArmPart, str]:
    """Return the arm that a motor belongs to, and its name there."""
    part = next(p for p in parts_of(device) if motor.startswith(p.prefix))
    return part, motor.removeprefix(part.prefix)
