"""Reads teleoperators through lerobot's own classes: leader arms, and devices that report motions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.core.errors import RecipeError, TeleopError, VlaError, unknown
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Vector
from vla_robot.recipe.teleoperator import LeaderJointRecipe, LerobotTeleoperatorRecipe
from vla_robot.world.real.lerobot_common import (
    DEVICE_FAULTS,
    choice,
    drop_late_answers,
    in_one_line,
    make_device,
    require_port,
)

TELEOPERATOR_MODULES = (
    "so_leader",
    "koch_leader",
    "omx_leader",
    "openarm_leader",
    "openarm_mini",
    "rebot_102_leader",
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
    def calibration_file(self) -> Path:
        """Path of lerobot's calibration file of this device."""
        return Path(self._device.calibration_fpath)

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
        try:
            require_port(self.recipe.fields.get("port"), "[fields]")
        except VlaError as error:
            raise TeleopError(str(error)) from error
        if self._is_arm and not self._device.calibration:
            raise TeleopError(self._uncalibrated(f"has no calibration at {self.calibration_file}"))
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
        with contextlib.suppress(*DEVICE_FAULTS):
            if self._device.is_connected:
                self._device.disconnect()

    @property
    def _is_arm(self) -> bool:
        """Whether the device has motors, which must be calibrated."""
        return hasattr(self._device, "bus")

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
        if type(self._device.bus).__name__ == "FeetechMotorsBus":
            drop_late_answers(self._device.bus.port_handler)

    def _uncalibrated(self, what: str) -> str:
        recipe = self.recipe
        folder = f" --teleop.calibration_dir={recipe.calibration_dir}" if recipe.calibration_dir else ""
        port = f" --teleop.port={recipe.fields['port']}" if "port" in recipe.fields else ""
        command = f"lerobot-calibrate --teleop.type={recipe.type}{port} --teleop.id={recipe.id}{folder}"
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
    """A leader arm, which reports the joints of its scene and its gripper's opening."""

    def __init__(
        self, device: LerobotTeleoperator, told_as: Mapping[str, LeaderJointRecipe], joints: Sequence[str]
    ) -> None:
        """
        Args:
            device: lerobot's teleoperator.
            told_as: joint -> the driver's name, zero and unit, where they differ from the scene's.
            joints: names of the scene's joints, in order.

        Raises:
            RecipeError: the recipe names a joint or a motor that does not exist.
        """
        recipe = device.recipe
        for name in told_as:
            if name not in joints:
                raise RecipeError(unknown("joint in [joints]", name, joints))
        told = [told_as.get(name, LeaderJointRecipe()) for name in joints]
        self._keys = [f"{joint.motor or name}.pos" for name, joint in zip(joints, told, strict=True)]
        for key in (*self._keys, recipe.gripper):
            if key not in device.names:
                raise RecipeError(unknown("value of the leader", key, device.names, "See [joints] and gripper."))
        self._device = device
        self._zero = np.array([joint.zero for joint in told])
        self._deg_per_unit = np.array([joint.deg_per_unit for joint in told])

    def read(self) -> tuple[Vector, float]:
        """Return the joints, (J,) [rad], and the gripper's opening, 0 closed to 1 open.

        Raises:
            TeleopError: the device does not answer.
        """
        values = self._device.read()
        told = np.array([values[key] for key in self._keys])
        opening = opening_of(values[self._device.recipe.gripper], self._device.recipe)
        return np.radians(self._deg_per_unit * (told - self._zero)), opening

    def close(self) -> None:
        self._device.close()


def opening_of(value: float, recipe: LerobotTeleoperatorRecipe) -> float:
    """Convert a driver's value of the gripper to an opening, 0 closed to 1 open."""
    share = (value - recipe.gripper_closed) / (recipe.gripper_open - recipe.gripper_closed)
    return min(max(share, 0.0), 1.0)


def _make(recipe: LerobotTeleoperatorRecipe) -> Any:
    """Return lerobot's teleoperator of that type, not connected yet."""
    from lerobot.teleoperators.config import TeleoperatorConfig
    from lerobot.teleoperators.utils import make_teleoperator_from_config

    schema = choice(TeleoperatorConfig, "teleoperator", recipe.type, "lerobot.teleoperators", TELEOPERATOR_MODULES)
    return make_device(make_teleoperator_from_config, schema, recipe, {}, "[fields]")
