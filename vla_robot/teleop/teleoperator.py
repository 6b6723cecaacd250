"""Opens lerobot's teleoperators: a leader arm with its scene, or a device that reports motions with its axes."""

from __future__ import annotations

from vla_robot.core.clock import Clock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.teleop_device import AXES, require_drivable
from vla_robot.recipe.teleoperator import AxesDeviceRecipe, LeaderArmRecipe
from vla_robot.teleop.joint_leader import JointLeaderMotion
from vla_robot.teleop.leader import LeaderMotion
from vla_robot.teleop.motion import TeleopDevice
from vla_robot.teleop.sticks import DeviceState, StickMotion
from vla_robot.world.real.kinematics.arm_model import ArmModel
from vla_robot.world.real.lerobot_leader import Leader, LerobotTeleoperator, clipped_opening


class ToldAxes:
    """Implements Sticks for a lerobot device that reports motions from -1 to 1."""

    help = (("device", "moves the tool"),)

    def __init__(self, device: LerobotTeleoperator, recipe: AxesDeviceRecipe) -> None:
        """
        Raises:
            RecipeError: the recipe names a value that the device does not report.
        """
        for name in recipe.axes.values():
            if name not in device.names:
                raise RecipeError(unknown("value of the device", name, device.names, "See [axes]."))
        self._device, self._recipe = device, recipe

    def read(self) -> DeviceState:
        values = self._device.read()
        axes = tuple(values[self._recipe.axes[axis]] if axis in self._recipe.axes else 0.0 for axis in AXES)
        grip = values.get(self._recipe.gripper, self._recipe.gripper_keeps)
        if grip is None or grip == self._recipe.gripper_keeps:
            return DeviceState(axes)
        return DeviceState(axes, opening=clipped_opening(grip, self._recipe))

    def close(self) -> None:
        self._device.close()


def open_leader(recipe: LeaderArmRecipe, embodiment: Embodiment, clock: Clock | None = None) -> TeleopDevice:
    """Connect to a leader arm. Arguments and errors are those of `open_teleoperator`."""
    device = LerobotTeleoperator(recipe)
    joints = embodiment.action.kind == "joint_position"
    motion = _joint_leader(device, recipe, embodiment) if joints else _tool_leader(device, recipe, embodiment, clock)
    device.connect()
    return motion


def _tool_leader(
    device: LerobotTeleoperator, recipe: LeaderArmRecipe, embodiment: Embodiment, clock: Clock | None
) -> TeleopDevice:
    require_drivable(embodiment.action)
    if recipe.scene is None:
        raise RecipeError("scene is missing: this arm follows the leader's tool, and the scene tells where that is.")
    model = ArmModel(recipe.scene)
    leader = Leader(device, recipe.joints, model.names)
    return LeaderMotion(leader, model, embodiment, scale=recipe.scale, turn_deg=recipe.turn_deg, clock=clock)


def _joint_leader(device: LerobotTeleoperator, recipe: LeaderArmRecipe, embodiment: Embodiment) -> TeleopDevice:
    space = embodiment.action
    if recipe.scale != 1 or recipe.turn_deg != 0:
        raise RecipeError(
            "scale and turn_deg change the motion of a tool; this arm takes the leader's joints as they are."
        )
    joints = [dim.name for dim, is_grip in zip(space.dims, space.is_grip, strict=True) if not is_grip]
    grippers = [dim.name for dim, is_grip in zip(space.dims, space.is_grip, strict=True) if is_grip]
    return JointLeaderMotion(Leader(device, recipe.joints, joints, grippers), embodiment)


def open_axes(recipe: AxesDeviceRecipe, embodiment: Embodiment, clock: Clock | None = None) -> TeleopDevice:
    """Connect to a device that reports motions. Arguments and errors are those of `open_teleoperator`."""
    require_drivable(embodiment.action)
    device = LerobotTeleoperator(recipe)
    motion = StickMotion(ToldAxes(device, recipe), embodiment)
    device.connect()
    return motion
