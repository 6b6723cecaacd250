"""TeleoperatorRecipe: a leader arm, or another of lerobot's teleoperators, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.teleop_device import AXES
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


@dataclass(frozen=True)
class TeleoperatorRecipe:
    """What a person holds while the arm moves: a leader arm (scene), or a device that tells motions itself (axes).

    Attributes:
        type: lerobot's name of the teleoperator, e.g. "so101_leader".
        id: which one of that type; names its calibration file.
        description: one line for `vla list`.
        fields: of lerobot's configuration of that teleoperator, e.g. port.
        calibration_dir: folder of the calibration files, relative to this recipe; by default lerobot's own.
        scene: MJCF file with the leader's joints and lengths, relative to this recipe; its tool leads.
        joints: joint of the scene -> how the driver tells it, where that differs.
        axes: "dx", "dy", "dz", "droll", "dpitch" or "dyaw" -> the driver's name of a motion from -1 to 1, for a device
            without a scene.
        gripper: the driver's name of the gripper.
        gripper_closed: what it tells when the gripper is closed.
        gripper_open: what it tells when it is open.
        gripper_keeps: what it tells when the gripper is to stay as it is, if it has such a word.
        scale: metres that the arm moves for one metre of the leader.
        turn_deg: how far the leader's base is turned about the vertical against the arm's [degrees]; 180 for a leader
            that faces its arm.
    """

    type: str
    id: str
    description: str = ""
    fields: dict[str, Field] = field(default_factory=dict[str, Field])
    calibration_dir: Path | None = None
    scene: Path | None = None
    joints: dict[str, LeaderJointRecipe] = field(default_factory=dict[str, LeaderJointRecipe])
    axes: dict[str, str] = field(default_factory=dict[str, str])
    gripper: str = "gripper.pos"
    gripper_closed: float = 0.0
    gripper_open: float = 100.0
    gripper_keeps: float | None = None
    scale: float = 1.0
    turn_deg: float = 0.0

    def __post_init__(self) -> None:
        if (self.scene is None) == (not self.axes):
            raise RecipeError("a leader arm needs scene (an MJCF file), and a device that tells motions needs [axes]")
        if self.joints and self.scene is None:
            raise RecipeError("[joints] are those of scene, which is missing")
        for name in self.axes:
            if name not in AXES:
                raise RecipeError(f"axes: {unknown('axis', name, AXES)}")
        if self.gripper_open == self.gripper_closed:
            raise RecipeError(f"gripper_open and gripper_closed are both {self.gripper_open:g}")
        if not 0.05 <= self.scale <= 5:
            raise RecipeError(f"scale {self.scale:g} is outside 0.05 to 5")
