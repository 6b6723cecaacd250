"""LimitsRecipe: limits of an arm as data, enforced on the robot's side for every policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_robot.core.errors import RecipeError

OnViolation = Literal["clamp", "reject", "stop"]

PANDA_ACCELERATION_M_S2 = 13.0
PANDA_ACCELERATION_RAD_S2 = 25.0
"""Source: Franka Emika, "Robot and interface specifications", Cartesian limits of the Panda."""

RANGES: Mapping[str, tuple[float, float, str]] = {
    "max_speed_m_s": (1e-4, 20, "m/s"),
    "max_speed_rad_s": (1e-4, 100, "rad/s"),
    "max_acceleration_m_s2": (1e-3, 1e3, "m/s2"),
    "max_acceleration_rad_s2": (1e-3, 1e4, "rad/s2"),
    "max_jerk_rad_s3": (1e-2, 1e6, "rad/s3"),
    "max_joint_step_rad": (1e-4, 10, "rad"),
    "max_step_m": (1e-6, 1, "m"),
    "max_step_rad": (1e-6, math.pi, "rad"),
    "gripper_per_s": (1e-3, 1e3, "of its way per second"),
    "opening_per_s": (1e-3, 1e3, "of its way per second"),
    "workspace_low": (-100, 100, "m"),
    "workspace_high": (-100, 100, "m"),
    "low": (-1e4, 1e4, "in the dimension's unit"),
    "high": (-1e4, 1e4, "in the dimension's unit"),
    "max_step": (1e-6, 1e4, "in the dimension's unit"),
    "max_speed": (1e-6, 1e4, "in the dimension's unit per second"),
    "max_acceleration": (1e-3, 1e5, "in the dimension's unit per second squared"),
    "gripper_width_m": (1e-3, 1, "m"),
    "home_speed_deg_s": (0.1, 1e3, "degrees/s"),
    "clearance_m": (1e-4, 0.5, "m"),
    "max_lead_m": (1e-4, 1, "m"),
    "max_lead_rad": (1e-3, math.pi, "rad"),
    "max_temperature_c": (20, 120, "degrees Celsius"),
}
"""Field of a recipe -> smallest and largest plausible value of an arm, and the unit. Values outside are typing errors,
or would make the filter's arithmetic overflow or round every motion to 0."""


def require_ranges(recipe: Any, names: tuple[str, ...], of: str = "") -> None:
    """Raise RecipeError for the first field outside RANGES; fields without a value are not checked."""
    for name in names:
        value: float | tuple[float, ...] | None = getattr(recipe, name)
        low, high, unit = RANGES[name]
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        for number in numbers:
            if not low <= number <= high:  # also false for NaN
                raise RecipeError(f"{of}{name} {number:g} is outside {low:g} to {high:g} {unit}")


@dataclass(frozen=True)
class DimLimitsRecipe:
    """Limits of one action dimension, in its unit, which replace those of the whole arm.

    Attributes:
        low: smallest position: of the tool along this axis [m], of the joint [rad], or of the gripper [1].
        high: largest position, in the same unit.
        max_step: largest distance of a command from the measured position, in the same unit.
        max_speed: largest speed, in the unit per second.
        max_acceleration: largest acceleration, in the unit per second squared.
    """

    low: float | None = None
    high: float | None = None
    max_step: float | None = None
    max_speed: float | None = None
    max_acceleration: float | None = None

    def __post_init__(self) -> None:
        require_ranges(self, ("low", "high", "max_step", "max_speed", "max_acceleration"))
        _require_order("low", "high", self.low, self.high)


@dataclass(frozen=True)
class LimitsRecipe:
    """Limits of an arm. Missing ones come from the embodiment, whose ranges the world reads from its model.

    Attributes:
        on_violation: "clamp" sends the nearest allowed action and reports it, "reject" sends no action, "stop" stops
            the arm until it is armed again.
        workspace_low: smallest x, y, z of the tool in the base frame [m].
        workspace_high: largest x, y, z of the tool in the base frame [m].
        max_speed_m_s: largest speed per axis of the tool [m/s].
        max_speed_rad_s: largest speed per axis of the tool, or per joint [rad/s].
        max_acceleration_m_s2: largest acceleration per axis of the tool [m/s2].
        max_acceleration_rad_s2: largest acceleration per axis of the tool, or per joint [rad/s2].
        max_joint_step_rad: largest distance of a commanded joint from the measured one [rad].
        gripper_per_s: largest speed of the gripper, in parts of its whole way per second.
        clearance_m: smallest distance of a real arm's bodies from each other, from its twin's and from obstacles, by
            the shapes of its scene [m]; without it, they are not watched.
        dims: action dimension -> limits of its own.
    """

    on_violation: OnViolation = "clamp"
    workspace_low: tuple[float, float, float] | None = None
    workspace_high: tuple[float, float, float] | None = None
    max_speed_m_s: float | None = None
    max_speed_rad_s: float | None = None
    max_acceleration_m_s2: float = PANDA_ACCELERATION_M_S2
    max_acceleration_rad_s2: float = PANDA_ACCELERATION_RAD_S2
    max_joint_step_rad: float = 0.5
    gripper_per_s: float | None = None
    clearance_m: float | None = None
    dims: dict[str, DimLimitsRecipe] = field(default_factory=dict[str, DimLimitsRecipe])

    def __post_init__(self) -> None:
        require_ranges(self, tuple(name for name in vars(self) if name in RANGES))
        for low, high in zip(self.workspace_low or (), self.workspace_high or (), strict=False):
            _require_order("workspace_low", "workspace_high", low, high)


def _require_order(low_name: str, high_name: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low >= high:
        raise RecipeError(f"{low_name} {low:g} must be below {high_name} {high:g}")
