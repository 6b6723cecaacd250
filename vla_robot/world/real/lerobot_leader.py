"""Reads teleoperators through lerobot's own classes: leader arms, and devices that report motions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vla_robot.core.errors import RecipeError, TeleopError, VlaError, unknown
from vla_robot.core.host.optional import require
from vla_robot.core.joint_units import JointScale, JointScales, opening_of, scale_of
from vla_robot.core.messages import Vector
from vla_robot.recipe.teleoperator import LeaderJointRecipe, LerobotTeleoperatorRecipe
from vla_robot.world.real.lerobot_common import (
    DEVICE_FAULTS,
    choice,
    drop_late_answers,
    in_one_line,
    make_device,
    ports_as_options,
    require_port,
)
from vla_robot.world.real.lerobot_wiring import SUFFIX, ArmPart, driver_scale, parts_of

TELEOPERATOR_MODULES = (
    "so_leader",
    "bi_so_leader",
    "koch_leader",
    "omx_leader",
    "openarm_leader",
    "bi_openarm_leader",
    "openarm_mini",
    "bi_openarm_mini",
    "rebot_102_leader",
    "bi_rebot_102_leader",
    "gamepad",
    "keyboard",
    "homunculus",
    "phone",
)
"""Modules to import: lerobot registers a teleoperator class when its module is imported."""

CONNECT_TRIES = 3


class LerobotTeleoperator:
    """One of lerobot's teleoperators, which reports numbers by name."""

    def __init__(self, recipe: LerobotTeleoperatorRecipe) -> None:
        """
        Args:
            recipe: lerobot's type of the teleoperator, and its fields.

        Raises:
            RecipeError: lerobot has no such teleoperator, or the teleoperator has no such field.
            MissingDependencyError: lerobot or its drivers are not installed.
        """
        require("lerobot", "arm", "a leader arm")
        self.recipe = recipe
        self._device = _make(recipe)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers that the device reports."""
        features: Mapping[str, Any] = self._device.action_features
        return tuple(features.get("names", features))

    def connect(self) -> None:
        """Connect to the device. A leader arm has no torque, so that it can be moved by hand.

        Raises:
            TeleopError: no such port, no permission, no answer, or not calibrated.
        """
        for part in self._parts:
            self._require_port(part)
            if part.bus is not None and not part.robot.calibration:
                raise TeleopError(self._uncalibrated(f"has no calibration at {part.robot.calibration_fpath}"))
        with self._explained("cannot be connected"):
            self._patiently()
        if self._is_arm and not self._device.is_calibrated:
            self.close()
            raise TeleopError(self._uncalibrated("is calibrated differently from its file"))

    def read(self) -> Mapping[str, float]:
        """Return the device's present numbers, by name.

        Raises:
            TeleopError: the device does not answer.
        """
        with self._explained("does not answer"):
            return {name: float(value) for name, value in self._device.get_action().items()}

    def close(self) -> None:
        """Disconnect from the device. May be called twice."""
        for part in self._parts:
            with contextlib.suppress(*DEVICE_FAULTS):
                if part.robot.is_connected:
                    part.robot.disconnect()

    def scale(self, motor: str) -> JointScale | None:
        """Return the scale of one of the device's motors; None where the driver does not tell it."""
        return driver_scale(self._device, motor)

    @property
    def _is_arm(self) -> bool:
        """Whether the device has motors, which must be calibrated."""
        return any(part.bus is not None for part in self._parts)

    @property
    def _parts(self) -> tuple[ArmPart, ...]:
        return parts_of(self._device)

    def _patiently(self) -> None:
        """Try to connect up to CONNECT_TRIES times: lerobot sends dozens of requests, and none may be lost."""
        for left in reversed(range(CONNECT_TRIES)):
            try:
                return self._connect()
            except DEVICE_FAULTS:
                self.close()
                if not left:
                    raise

    def _connect(self) -> None:
        if not self._is_arm:
            return self._device.connect()
        self._device.connect(calibrate=False)
        for part in self._parts:
            if part.feetech is not None:
                drop_late_answers(part.feetech.port_handler)

    def _require_port(self, part: ArmPart) -> None:
        port = getattr(getattr(part.robot, "config", None), "port", None)
        try:
            require_port(port, f"[fields{'.' * bool(part.table)}{part.table}]")
        except VlaError as error:
            raise TeleopError(str(error)) from error

    def _uncalibrated(self, what: str) -> str:
        recipe = self.recipe
        folder = f" --teleop.calibration_dir={recipe.calibration_dir}" if recipe.calibration_dir else ""
        command = f"lerobot-calibrate --teleop.type={recipe.type}{ports_as_options('teleop', recipe.fields)}"
        command += f" --teleop.id={recipe.id}{folder}"
        return f"{self._named()} {what}. Calibrate it: `{command}`."

    def _named(self) -> str:
        port = self.recipe.fields.get("port")
        return f"the {self.recipe.type} '{self.recipe.id}'" + (f" at {port}" if port else "")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except DEVICE_FAULTS as error:
            raise TeleopError(f"{self._named()} {what}: {in_one_line(error)} Check cable and supply.") from error


class Leader:
    """A leader arm or a pair, which reports joints and the openings of its grippers."""

    def __init__(
        self,
        device: LerobotTeleoperator,
        told_as: Mapping[str, LeaderJointRecipe],
        joints: Sequence[str],
        grippers: Sequence[str] = ("gripper",),
    ) -> None:
        """
        Args:
            device: lerobot's teleoperator.
            told_as: joint -> the driver's name, zero and unit, where they differ from the joint's.
            joints: names of the joints, in order.
            grippers: names of the grippers, in order. A single one is the recipe's `gripper`.

        Raises:
            RecipeError: the recipe names a joint or a motor that does not exist.
        """
        recipe = device.recipe
        for name in told_as:
            if name not in joints:
                raise RecipeError(unknown("joint in [joints]", name, joints))
        told = [told_as.get(name, LeaderJointRecipe()) for name in joints]
        self._keys = [(joint.motor or name) + SUFFIX for name, joint in zip(joints, told, strict=True)]
        self._gripper_keys = [recipe.gripper] if len(grippers) == 1 else [name + SUFFIX for name in grippers]
        for key in (*self._keys, *self._gripper_keys):
            if key not in device.names:
                raise RecipeError(unknown("value of the leader", key, device.names, "See [joints] and gripper."))
        self._device = device
        self._scales = JointScales.of([_scale(device, *row) for row in zip(self._keys, told, strict=True)])

    def read(self) -> tuple[Vector, Vector]:
        """Return the joints, (J,) [rad], and the grippers' openings, (G,) 0 closed to 1 open.

        Raises:
            TeleopError: the device does not answer.
        """
        values = self._device.read()
        openings = [clipped_opening(values[key], self._device.recipe) for key in self._gripper_keys]
        return self._scales.to_rad([values[key] for key in self._keys]), np.array(openings)

    def close(self) -> None:
        self._device.close()


def _scale(device: LerobotTeleoperator, key: str, joint: LeaderJointRecipe) -> JointScale:
    """Return the scale of a leader's joint: what the recipe says, else what the driver tells, else degrees."""
    told = device.scale(key.removesuffix(SUFFIX)) or scale_of("degrees")
    rad_per_unit = told.rad_per_unit if joint.deg_per_unit is None else math.radians(joint.deg_per_unit)
    return JointScale(rad_per_unit, told.zero if joint.zero is None else joint.zero)


def clipped_opening(value: float, recipe: LerobotTeleoperatorRecipe) -> float:
    """Convert a driver's value of the gripper to an opening, 0 closed to 1 open."""
    return min(max(opening_of(value, recipe.gripper_closed, recipe.gripper_open), 0.0), 1.0)


def _make(recipe: LerobotTeleoperatorRecipe) -> Any:
    """Return lerobot's teleoperator of that type, not connected yet."""
    from lerobot.teleoperators.config import TeleoperatorConfig
    from lerobot.teleoperators.utils import make_teleoperator_from_config

    schema = choice(TeleoperatorConfig, "teleoperator", recipe.type, "lerobot.teleoperators", TELEOPERATOR_MODULES)
    return make_device(make_teleoperator_from_config, schema, recipe, {}, "[fields]")
