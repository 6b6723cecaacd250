"""RobotRecipe: a real robot as data: driver, its settings, cameras, and the start of an episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.core.joint_units import JointUnit
from vla_robot.recipe.limits import require_ranges

Field = bool | int | float | str
"""A value of a driver's own configuration."""

FieldOrTable = Field | dict[str, Field]
"""The same, or a table of them, such as the configuration of one arm of a pair."""

LIMITED_FIELD = "max_relative_target"

MAX_DELAY_S = 1.0
"""Longest delay by set points [s]. It increases the memory of the smoothing window and the arm's lag."""
MAX_ANGLE_DEG = 720.0
MAX_OBSTACLE_M = 100.0


@dataclass(frozen=True)
class RobotCameraRecipe:
    """One camera on the robot's computer.

    Attributes:
        type: lerobot's name of the camera class, e.g. "opencv" or "intelrealsense".
        fields: lerobot's configuration of that class, e.g. index_or_path, width, height, fps.
    """

    type: str = "opencv"
    fields: dict[str, Field] = field(default_factory=dict[str, Field])


@dataclass(frozen=True)
class JointRecipe:
    """Conversion of a joint for the driver, where the two differ, and its range, where nothing else tells it.

    Attributes:
        motor: the driver's name of the joint; by default the joint's own.
        inverted: whether the motor turns the other way.
        zero_deg: the motor's angle at the zero of the joint [degrees].
        low_deg: smallest angle of the joint [degrees], for joint positions.
        high_deg: largest angle of the joint [degrees].
    """

    motor: str | None = None
    inverted: bool = False
    zero_deg: float = 0.0
    low_deg: float | None = None
    high_deg: float | None = None

    def __post_init__(self) -> None:
        _require_angle("zero_deg", self.zero_deg)
        if (self.low_deg is None) != (self.high_deg is None):
            raise RecipeError("low_deg and high_deg belong together: give both, or neither")
        if self.low_deg is not None and self.high_deg is not None:
            _require_angle("low_deg", self.low_deg)
            _require_angle("high_deg", self.high_deg)
            if self.low_deg >= self.high_deg:
                raise RecipeError(f"low_deg {self.low_deg:g} must be below high_deg {self.high_deg:g}")


@dataclass(frozen=True)
class MountRecipe:
    """Place of one arm of a pair.

    Attributes:
        pos: origin of the arm's scene in the frame of the pair [m].
        yaw_deg: rotation about the vertical [degrees].
    """

    pos: tuple[float, float, float]
    yaw_deg: float = 0.0

    def __post_init__(self) -> None:
        _require_angle("yaw_deg", self.yaw_deg)


@dataclass(frozen=True)
class ObstacleRecipe:
    """A box that the arm must not touch, such as a table or a post, in the frame of the workspace.

    Attributes:
        low: smallest x, y, z [m].
        high: largest x, y, z [m].
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        for low, high in zip(self.low, self.high, strict=True):
            if not -MAX_OBSTACLE_M <= low < high <= MAX_OBSTACLE_M:
                raise RecipeError(
                    f"an obstacle reaches from {list(self.low)} to {list(self.high)} m; each number of low must be "
                    f"below that of high, and all between {-MAX_OBSTACLE_M:g} and {MAX_OBSTACLE_M:g}"
                )


@dataclass(frozen=True)
class SetPointsRecipe:
    """Positions that the motors get between two control steps, for a smooth motion.

    They cause a constant delay, max_speed / max_acceleration + max_acceleration / max_jerk: 65 ms by default.

    Attributes:
        rate_hz: rate of the positions, which bus and drives must support.
        max_speed_rad_s: largest speed of each joint.
        max_acceleration_rad_s2: largest acceleration of each joint.
        max_jerk_rad_s3: largest jerk of each joint.
        opening_per_s: largest speed of the gripper, in parts of its whole way per second.
    """

    rate_hz: float
    max_speed_rad_s: float = 1.5
    max_acceleration_rad_s2: float = 30.0
    max_jerk_rad_s3: float = 2000.0
    opening_per_s: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.rate_hz <= 1000:
            raise RecipeError(f"set_points.rate_hz {self.rate_hz:g} is outside 1 to 1000")
        names = ("max_speed_rad_s", "max_acceleration_rad_s2", "max_jerk_rad_s3", "opening_per_s")
        require_ranges(self, names, "set_points.")
        delay_s = (
            self.max_speed_rad_s / self.max_acceleration_rad_s2 + self.max_acceleration_rad_s2 / self.max_jerk_rad_s3
        )
        if delay_s > MAX_DELAY_S:
            raise RecipeError(
                f"set_points delay every motion by {delay_s:g} s, at most {MAX_DELAY_S:g} s is allowed: "
                "max_speed_rad_s / max_acceleration_rad_s2 + max_acceleration_rad_s2 / max_jerk_rad_s3"
            )


@dataclass(frozen=True)
class RobotRecipe:
    """A real arm.

    Attributes:
        driver: driver of the motors: "lerobot".
        type: lerobot's name of the robot, e.g. "so101_follower".
        id: identifies the robot among those of its type; names its calibration file.
        actions: meaning of an action: "tool" moves the tool by steps, "joints" gives the position of every joint.
        fields: lerobot's configuration of that robot, e.g. port. The largest step is not set here: lerobot gets
            `max_joint_step_rad` of [limits].
        calibration_dir: folder of the calibration files, relative to this recipe; by default lerobot's own.
        unit: unit of the driver's joints, where the driver itself does not tell it: "degrees", "radians", "range"
            (-100 to 100) or "share" (0 to 100 of the joint's range).
        joints: joint -> its conversion for the driver, and its range, where they are not known otherwise.
        gripper: the driver's name of the gripper; in a pair of arms, each arm's is called left_ or right_ and this.
            "" for a robot without one, which joint positions allow.
        gripper_closed: the driver's number of a closed gripper.
        gripper_open: its number of an open one.
        gripper_width_m: distance between the open fingers [m].
        mounts: "left" and "right" -> place of that arm; the scene is then the one of each.
        home_deg: joint -> angle at which episodes begin [degrees]; without it, they begin at the arm's
            present pose.
        home_gripper: gripper's opening at which episodes begin, 0 to 1.
        home_speed_deg_s: speed of the fastest joint on the way there [degrees/s].
        max_lead_m: largest distance of the tool's target from the measured tool [m].
        max_lead_rad: the same for its orientation [rad].
        max_temperature_c: temperature at which a motor stops the arm [degrees Celsius].
        set_points: positions between the control steps; without it the motors get one goal per step.
        cameras: cameras that `source` of a [[cameras]] table may name.
    """

    driver: Literal["lerobot"]
    type: str
    id: str
    actions: Literal["tool", "joints"] = "tool"
    fields: dict[str, FieldOrTable] = field(default_factory=dict[str, FieldOrTable])
    calibration_dir: Path | None = None
    unit: JointUnit | None = None
    joints: dict[str, JointRecipe] = field(default_factory=dict[str, JointRecipe])
    gripper: str = "gripper"
    gripper_closed: float = 0.0
    gripper_open: float = 100.0
    gripper_width_m: float = 0.1
    mounts: dict[str, MountRecipe] = field(default_factory=dict[str, MountRecipe])
    home_deg: dict[str, float] = field(default_factory=dict[str, float])
    home_gripper: float = 1.0
    home_speed_deg_s: float = 30.0
    max_lead_m: float = 0.04
    max_lead_rad: float = 0.4
    max_temperature_c: float = 60.0
    set_points: SetPointsRecipe | None = None
    cameras: dict[str, RobotCameraRecipe] = field(default_factory=dict[str, RobotCameraRecipe])

    def __post_init__(self) -> None:
        tables = [self.fields, *(value for value in self.fields.values() if isinstance(value, dict))]
        if any(LIMITED_FIELD in table for table in tables):
            raise RecipeError(
                f"leave out fields.{LIMITED_FIELD}: the largest step is max_joint_step_rad of [limits], and lerobot is "
                "told the same"
            )
        if self.gripper_open == self.gripper_closed:
            raise RecipeError(f"gripper_open and gripper_closed are both {self.gripper_open:g}")
        if not self.gripper and self.actions == "tool":
            raise RecipeError('an arm without a gripper takes joint positions only: actions = "joints"')
        if not 0 <= self.home_gripper <= 1:
            raise RecipeError(f"home_gripper is {self.home_gripper:g}, allowed is 0 (closed) to 1 (open)")
        names = ("gripper_width_m", "home_speed_deg_s", "max_lead_m", "max_lead_rad", "max_temperature_c")
        require_ranges(self, names)
        if self.mounts and set(self.mounts) != {"left", "right"}:
            raise RecipeError(f"mounts are those of 'left' and 'right', not of {', '.join(self.mounts)}")
        for joint, angle in self.home_deg.items():
            _require_angle(f"home_deg.{joint}", angle)


def _require_angle(name: str, angle_deg: float) -> None:
    if not abs(angle_deg) <= MAX_ANGLE_DEG:
        raise RecipeError(f"{name} {angle_deg:g} is outside {-MAX_ANGLE_DEG:g} to {MAX_ANGLE_DEG:g} degrees")
