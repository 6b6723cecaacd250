"""TeleoperatorRecipe: a leader arm, or another of lerobot's teleoperators, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.teleop_device import AXES
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.robot import FieldOrTable


@dataclass(frozen=True)
class LeaderJointRecipe:
    """Conversion of the driver's reading to a joint, where it is not what the driver tells.

    Attributes:
        motor: the driver's name of the joint; by default the joint's own.
        zero: the driver's reading at the zero of the joint; by default where the driver has it.
        deg_per_unit: degrees of the joint per unit of the driver's reading, negative if it turns the other way. By
            default what the driver tells of its unit, and 1 if it tells nothing.
    """

    motor: str | None = None
    zero: float | None = None
    deg_per_unit: float | None = None

    def __post_init__(self) -> None:
        if self.deg_per_unit == 0:
            raise RecipeError("deg_per_unit is 0: that joint would never turn")


@dataclass(frozen=True, kw_only=True)
class TeleoperatorRecipe:
    """A teleoperation device. These keys are common to all kinds; `kind` chooses the dataclass.

    Attributes:
        kind: kind of device; without it, a recipe with [axes] is of kind "axes" and any other of kind "leader".
        description: one line for `vla list`.
    """

    kinds: ClassVar[Kinds[TeleoperatorRecipe]]

    kind: str
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class LerobotTeleoperatorRecipe(TeleoperatorRecipe):
    """One of lerobot's teleoperators.

    Attributes:
        type: lerobot's name of the teleoperator, e.g. "so101_leader".
        id: identifies the device among those of its type; names its calibration file.
        fields: lerobot's configuration of that teleoperator, e.g. port.
        calibration_dir: folder of the calibration files, relative to this recipe; by default lerobot's own.
        gripper: the driver's name of the gripper.
        gripper_closed: its reading for a closed gripper.
        gripper_open: its reading for an open gripper.
        gripper_keeps: its reading for an unchanged gripper, if it has one.
    """

    type: str
    id: str
    fields: dict[str, FieldOrTable] = field(default_factory=dict[str, FieldOrTable])
    calibration_dir: Path | None = None
    gripper: str = "gripper.pos"
    gripper_closed: float = 0.0
    gripper_open: float = 100.0
    gripper_keeps: float | None = None

    def __post_init__(self) -> None:
        if self.gripper_open == self.gripper_closed:
            raise RecipeError(f"gripper_open and gripper_closed are both {self.gripper_open:g}")


@dataclass(frozen=True, kw_only=True)
class LeaderArmRecipe(LerobotTeleoperatorRecipe):
    """A leader arm, whose tool the arm's tool follows; an arm in joint positions takes the leader's joints instead.

    Attributes:
        scene: MJCF file with the leader's joints and lengths, relative to this recipe; joint positions need none.
        joints: joint -> its conversion from the driver's reading, where they differ.
        scale: metres that the arm moves for one metre of the leader.
        turn_deg: rotation of the leader's base about the vertical against the arm's [degrees]; 180 for a leader
            that faces its arm.
    """

    kind: Literal["leader"] = "leader"
    scene: Path | None = None
    joints: dict[str, LeaderJointRecipe] = field(default_factory=dict[str, LeaderJointRecipe])
    scale: float = 1.0
    turn_deg: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.05 <= self.scale <= 5:
            raise RecipeError(f"scale {self.scale:g} is outside 0.05 to 5")


@dataclass(frozen=True, kw_only=True)
class AxesDeviceRecipe(LerobotTeleoperatorRecipe):
    """A device that gives motions, such as a gamepad.

    Attributes:
        axes: "dx", "dy", "dz", "droll", "dpitch" or "dyaw" -> the driver's name of a motion from -1 to 1.
    """

    kind: Literal["axes"] = "axes"
    axes: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.axes:
            raise RecipeError("a device that gives motions needs [axes]")
        for name in self.axes:
            if name not in AXES:
                raise RecipeError(f"axes: {unknown('axis', name, AXES)}")


def _kind_of(table: Mapping[str, object]) -> str:
    """Return the kind of a recipe without the key `kind`."""
    return "axes" if table.get("axes") and "scene" not in table else "leader"


TeleoperatorRecipe.kinds = Kinds(
    "teleoperator",
    TeleoperatorRecipe,
    (LeaderArmRecipe, AxesDeviceRecipe),
    groups=("vla_robot.teleoperators",),
    default=_kind_of,
)
