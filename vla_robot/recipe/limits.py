"""LimitsRecipe: what may reach the arm, as data. Checked on the robot's side, whatever policy or network do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vla_robot.core.errors import RecipeError

OnViolation = Literal["clamp", "reject", "stop"]

PANDA_ACCELERATION_M_S2 = 13.0
PANDA_ACCELERATION_RAD_S2 = 25.0
"""Source: Franka Emika, "Robot and interface specifications", Cartesian limits of the Panda."""


@dataclass(frozen=True)
class DimLimitsRecipe:
    """Limits of one action dimension, in its unit, over those of the whole arm.

    Attributes:
        low: smallest position: of the tool along this axis [m], of the joint [rad], or of the gripper [1].
        high: largest position, in the same unit.
        max_step: furthest that a command may lie from where the arm was measured, in the same unit.
        max_speed: in the unit per second.
        max_acceleration: in the unit per second squared.
    """

    low: float | None = None
    high: float | None = None
    max_step: float | None = None
    max_speed: float | None = None
    max_acceleration: float | None = None

    def __post_init__(self) -> None:
        _require_order("low", "high", self.low, self.high)
        for name in ("max_step", "max_speed", "max_acceleration"):
            _require_positive(name, getattr(self, name))


@dataclass(frozen=True)
class LimitsRecipe:
    """Limits of an arm. What is not given comes from the embodiment, whose ranges the world reads from its model.

    Attributes:
        on_violation: "clamp" sends the nearest allowed action and says so, "reject" sends nothing, "stop" stops the
            arm until it is armed again.
        workspace_low: smallest x, y, z of the tool in the base frame [m].
        workspace_high: largest x, y, z of the tool in the base frame [m].
        max_speed_m_s: per axis of the tool [m/s].
        max_speed_rad_s: per axis of the tool, or per joint [rad/s].
        max_acceleration_m_s2: per axis of the tool [m/s2].
        max_acceleration_rad_s2: per axis of the tool, or per joint [rad/s2].
        max_joint_step_rad: furthest that a commanded joint may lie from the measured one [rad].
        gripper_per_s: of the gripper's whole way, in one second.
        dims: action dimension -> its own limits.
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
    dims: dict[str, DimLimitsRecipe] = field(default_factory=dict[str, DimLimitsRecipe])

    def __post_init__(self) -> None:
        for low, high in zip(self.workspace_low or (), self.workspace_high or (), strict=False):
            _require_order("workspace_low", "workspace_high", low, high)
        for name in (
            "max_speed_m_s",
            "max_speed_rad_s",
            "max_acceleration_m_s2",
            "max_acceleration_rad_s2",
            "max_joint_step_rad",
            "gripper_per_s",
        ):
            _require_positive(name, getattr(self, name))


def _require_order(low_name: str, high_name: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low >= high:
        raise RecipeError(f"{low_name} {low:g} must be below {high_name} {high:g}")


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise RecipeError(f"{name} {value:g} must be above 0")
