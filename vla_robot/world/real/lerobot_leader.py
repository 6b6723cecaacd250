"""Teleoperators through lerobot's own classes: a leader arm that a person leads, or a device that tells motions."""

from __future__ import annotations

import contextlib
import dataclasses
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
    decoded,
    drop_late_answers,
    in_one_line,
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
"""lerobot registers a class when its module is imported."""

CONNECT_TRIES = 3


class LerobotTeleoperator:
    """One of lerobot's teleoperators: the numbers that it tells, by the names that it has for them."""

    def __init__(self, recipe: LerobotTeleoperatorRecipe) -> None:
        """
        Args:
            recipe: which one, and its fields.

        Raises:
            RecipeError: lerobot has no such teleoperator, or it has no such field.
            MissingDependencyError: lerobot or its drivers are not installed.
        """
        require("lerobot", "arm", "a leader arm")
        self.recipe = recipe
        self._device = _make(recipe)

    @property
    def calibration_file(self) -> Path:
        return Path(self._device.calibration_fpath)

    @property
    def names(self) -> tuple[str, ...]:
        """What it tells."""
        features: Mapping[str, Any] = self._device.action_features
        return tuple(features.get("names", features))

    def connect(self) -> None:
        """Open it. A leader arm has no torque: it can be moved by hand.

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
        """What it tells now.

        Raises:
            TeleopError: it does not answer.
        """
        with self._explained("does not answer"):
            return {name: float(value) for name, value in self._device.get_action().items()}

    def close(self) -> None:
        """Let go of it. May be called twice."""
        with contextlib.suppress(*DEVICE_FAULTS):
            if self._device.is_connected:
                self._device.disconnect()

    @property
    def _is_arm(self) -> bool:
        """Whether it has motors, which must be calibrated."""
        return hasattr(self._device, "bus")

    def _patiently(self) -> None:
        """lerobot asks dozens of questions while it connects, each once: one lost answer must not end it."""
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
            raise TeleopError(f"{self._named()} {what}: {in_one_line(error)} Look at cable and supply.") from error


class Leader:
    """A leader arm: the joints of its scene, and how far its gripper is open."""

    def __init__(
        self, device: LerobotTeleoperator, told_as: Mapping[str, LeaderJointRecipe], joints: Sequence[str]
    ) -> None:
        """
        Args:
            device: the arm.
            told_as: joint -> how the driver tells it, where that differs.
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
        """(J,) joints [rad], and the gripper's opening, 0 to 1.

        Raises:
            TeleopError: it does not answer.
        """
        values = self._device.read()
        told = np.array([values[key] for key in self._keys])
        opening = opening_of(values[self._device.recipe.gripper], self._device.recipe)
        return np.radians(self._deg_per_unit * (told - self._zero)), opening

    def close(self) -> None:
        self._device.close()


def opening_of(value: float, recipe: LerobotTeleoperatorRecipe) -> float:
    """What a driver tells of its gripper, as 0 closed to 1 open."""
    share = (value - recipe.gripper_closed) / (recipe.gripper_open - recipe.gripper_closed)
    return min(max(share, 0.0), 1.0)


def _make(recipe: LerobotTeleoperatorRecipe) -> Any:
    """lerobot's teleoperator of that type, not connected yet."""
    from lerobot.teleoperators.config import TeleoperatorConfig
    from lerobot.teleoperators.utils import make_teleoperator_from_config

    schema = choice(TeleoperatorConfig, "teleoperator", recipe.type, "lerobot.teleoperators", TELEOPERATOR_MODULES)
    known = {f.name for f in dataclasses.fields(schema)}
    own: dict[str, Any] = {"id": recipe.id}
    own |= {"calibration_dir": str(recipe.calibration_dir)} if recipe.calibration_dir else {}
    fields = {name: value for name, value in own.items() if name in known} | recipe.fields
    try:
        return make_teleoperator_from_config(decoded(schema, fields, "[fields]"))
    except ImportError as error:
        raise RecipeError(f"lerobot's '{recipe.type}' needs a package that is not installed: {error}") from error
