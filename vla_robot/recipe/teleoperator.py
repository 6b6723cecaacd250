"""TeleoperatorRecipe: a leader arm, or another of lerobot's teleoperators, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.teleop_device import AXES
from vla_robot.recipe.reading.kinds import Kinds
from vla_robot.recipe.robot import Field


@dataclass(frozen=True)
class LeaderJointRecipe:
    """How the driver tells a joint of the scene, where that is not simply its angle in degrees.

    Attributes:
        motor: the driver's name of it; by default the joint's own.
        zero: what the driver tells where the scene's joint is at zero.
        deg_per_unit: degrees of the joint for one unit of what the driver tells, negative if it turns the other way. A
            driver that tells -100 to 100 over the calibrated range has a hundredth of half that range here.
    """

    motor: str | None = None
    zero: float = 0.0
    deg_per_unit: float = 1.0

    def __post_init__(self) -> None:
        if self.deg_per_unit == 0:
            raise RecipeError("deg_per_unit is 0: that joint would never turn")


@dataclass(frozen=True, kw_only=True)
class TeleoperatorRecipe:
    """What a person holds while the arm moves. What all kinds have; `kind` chooses the dataclass.

    Attributes:
        kind: which device; left out, a recipe with [axes] is of kind "axes" and any other of kind "leader".
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
        id: which one of that type; names its calibration file.
        fields: of lerobot's configuration of that teleoperator, e.g. port.
        calibration_dir: folder of the calibration files, relative to this recipe; by default lerobot's own.
        gripper: the driver's name of the gripper.
        gripper_closed: what it tells when the gripper is closed.
        gripper_open: what it tells when it is open.
        gripper_keeps: what it tells when the gripper is to stay as it is, if it has such a word.
    """

    type: str
    id: str
    fields: dict[str, Field] = field(default_factory=dict[str, Field])
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
    """A leader arm: its tool leads the tool of the arm.

    Attributes:
        scene: MJCF file with the leader's joints and lengths, relative to this recipe.
        joints: joint of the scene -> how the driver tells it, where that differs.
        scale: metres that the arm moves for one metre of the leader.
        turn_deg: how far the leader's base is turned about the vertical against the arm's [degrees]; 180 for a leader
            that faces its arm.
    """

    kind: Literal["leader"] = "leader"
    scene: Path
    joints: dict[str, LeaderJointRecipe] = field(default_factory=dict[str, LeaderJointRecipe])
    scale: float = 1.0
    turn_deg: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.05 <= self.scale <= 5:
            raise RecipeError(f"scale {self.scale:g} is outside 0.05 to 5")


@dataclass(frozen=True, kw_only=True)
class AxesDeviceRecipe(LerobotTeleoperatorRecipe):
    """A device that tells motions itself, such as a gamepad.

    Attributes:
        axes: "dx", "dy", "dz", "droll", "dpitch" or "dyaw" -> the driver's name of a motion from -1 to 1.
    """

    kind: Literal["axes"] = "axes"
    axes: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.axes:
            raise RecipeError("a device that tells motions needs [axes]")
        for name in self.axes:
            if name not in AXES:
                raise RecipeError(f"axes: {unknown('axis', name, AXES)}")


def _kind_of(table: Mapping[str, object]) -> str:
    """The kind of a recipe that does not say it."""
    return "axes" if table.get("axes") and "scene" not in table else "leader"


TeleoperatorRecipe.kinds = Kinds(
    "teleoperator",
    TeleoperatorRecipe,
    (LeaderArmRecipe, AxesDeviceRecipe),
    groups=("vla_robot.teleoperators",),
    default=_kind_of,
)
