"""Drives motors through lerobot's own classes, and turns their exceptions into WorldError with what to do.

lerobot uses degrees for joints and 0 to 100 for the gripper; this module uses radians, and 0 to 1.

    check            calibrated?  cool?  powered?                nothing has moved yet
    anchor           goal := measured position                   before torque, so that the arm does not jump
    connect          lerobot's own: motors configured, torque on
    read, send       each tick
    reopen           after the cable was out: motors that kept their torque keep it
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Vector
from vla_robot.recipe.robot import LIMITED_FIELD, JointRecipe, RobotRecipe
from vla_robot.world.real.lerobot_common import (
    DEVICE_FAULTS,
    choice,
    drop_late_answers,
    in_one_line,
    make_device,
    require_port,
)

ROBOT_MODULES = ("so_follower", "koch_follower", "omx_follower", "openarm_follower", "rebot_b601_follower", "hope_jr")
"""Modules to import: lerobot registers a robot class when its module is imported."""

STATUS_BITS = {1: "voltage out of range", 2: "angle sensor", 4: "too hot", 8: "too much current", 32: "overload"}
"""Bit of a motor's status -> fault. Source: Feetech STS3215 memory table, register 65."""

CONNECT_TRIES = 3
HEALTH_REGISTERS = ("Status", "Present_Temperature", "Present_Voltage")


@dataclasses.dataclass(frozen=True)
class Health:
    """Health of one motor.

    Attributes:
        temperature_c: temperature of its case [degrees Celsius].
        voltage_v: voltage of its supply [V].
        faults: the faults that it reports, in words.
    """

    temperature_c: float
    voltage_v: float
    faults: tuple[str, ...]


class LerobotDevice:
    """One of lerobot's robots without its cameras."""

    def __init__(self, recipe: RobotRecipe, joints: Sequence[str], max_step_rad: float) -> None:
        """
        Args:
            recipe: lerobot's type of the robot, and its fields.
            joints: names of the scene's joints, in order.
            max_step_rad: largest distance of a commanded joint from the measured one; lerobot gets the same limit.

        Raises:
            RecipeError: lerobot has no such robot, or the robot has no such field or motor.
            MissingDependencyError: lerobot or its drivers are not installed.
        """
        require("lerobot", "arm", "a real arm")
        self.recipe = recipe
        self._joints = [(name, recipe.joints.get(name, JointRecipe())) for name in joints]
        for name in recipe.joints:
            if name not in joints:
                raise RecipeError(unknown("joint in [robot.joints]", name, joints))
        motors = [joint.motor or name for name, joint in self._joints]
        # The gripper's unit is a hundredth of its range, so that 100 does not limit it.
        steps = {**dict.fromkeys(motors, math.degrees(max_step_rad)), recipe.gripper: 100.0}
        self._robot = _make_robot(recipe, steps)
        self._keys = [f"{joint.motor or name}.pos" for name, joint in self._joints]
        self._gripper = f"{recipe.gripper}.pos"
        for key in (*self._keys, self._gripper):
            if key not in self._robot.action_features:
                motors = [f.removesuffix(".pos") for f in self._robot.action_features]
                raise RecipeError(unknown("motor", key.removesuffix(".pos"), motors, "See [robot.joints]."))
        if self._bus is not None:
            drop_late_answers(self._bus.port_handler)

    @property
    def port(self) -> str:
        """The serial port, or the robot's type where it has none."""
        return str(self.recipe.fields.get("port", self.recipe.type))

    @property
    def calibration_file(self) -> Path:
        """Path of lerobot's calibration file of this arm."""
        return Path(self._robot.calibration_fpath)

    @property
    def calibrate_command(self) -> str:
        """The command that calibrates this arm, in backticks."""
        folder = self.recipe.calibration_dir
        return (
            f"`lerobot-calibrate --robot.type={self.recipe.type} --robot.port={self.port} --robot.id={self.recipe.id}"
            + (f" --robot.calibration_dir={folder}`" if folder else "`")
        )

    @property
    def limited_to_deg(self) -> float:
        """lerobot's own largest step of a joint [degrees]."""
        return min(
            value for motor, value in self._robot.config.max_relative_target.items() if motor != self.recipe.gripper
        )

    @property
    def _bus(self) -> Any:
        """The Feetech bus below lerobot's robot; None for robots with other motors."""
        bus = getattr(self._robot, "bus", None)
        return bus if bus is not None and type(bus).__name__ == "FeetechMotorsBus" else None

    def connect(self) -> None:
        """Check the motors, then switch the torque on. For a moment nothing holds the arm, so it must be at rest.

        Raises:
            WorldError: no such port, no permission, no answer, not calibrated, or a motor reports a fault.
        """
        self._require_port()
        if not self._robot.calibration:
            raise WorldError(self._uncalibrated(f"has no calibration at {self.calibration_file}"))
        if self._bus is not None:
            with self._explained("does not answer"):
                self._patiently(self._look)
        with self._explained("cannot be connected"):
            self._patiently(lambda: self._robot.connect(calibrate=False))
        if not self._robot.is_calibrated:
            raise WorldError(self._uncalibrated("is calibrated differently from its file"))

    def open_quietly(self) -> None:
        """Open the port to read only, without torque.

        Raises:
            WorldError: no such port, no permission, or a motor does not answer.
        """
        self._require_port()
        if self._bus is None:
            raise WorldError(f"'{self.recipe.type}' has no Feetech bus, so it cannot be read without torque.")
        with self._explained("does not answer"):
            self._patiently(self._meet)

    def reopen(self) -> None:
        """Reconnect after the cable was out. A motor that lost its power is held at its present position.

        Raises:
            WorldError: the cable is still out, or a motor reports a fault.
        """
        self._require_port()
        bus = self._bus
        if bus is None:
            with contextlib.suppress(*DEVICE_FAULTS):
                self._robot.disconnect()
            with self._explained("cannot be connected"):
                self._robot.connect(calibrate=False)
            return
        self._close_port()
        with self._explained("does not answer"):
            self._patiently(self._hold_again)

    def read(self) -> tuple[Vector, float]:
        """Return the measured joints, (J,) [rad], and the gripper's opening, 0 closed to 1 open.

        Raises:
            WorldError: a motor does not answer, or its answer is damaged.
        """
        with self._explained("does not answer"):
            return self._from_device(self._robot.get_observation())

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Set the goals.

        Args:
            joints: (J,) joint goals [rad].
            opening: goal of the gripper, 0 closed to 1 open.

        Returns:
            The goals that lerobot sent: it limits their distance from the measured positions.

        Raises:
            WorldError: a motor does not answer, or its answer is damaged.
        """
        goal = dict(zip(self._keys, self._to_degrees(joints), strict=True)) | {self._gripper: 100.0 * opening}
        with self._explained("does not take commands"):
            return self._from_device(self._robot.send_action(goal))

    def health(self) -> dict[str, Health]:
        """Return motor -> temperature, voltage and faults; empty for robots that do not report them.

        Raises:
            WorldError: a motor does not answer.
        """
        if self._bus is None:
            return {}
        values: list[dict[str, int]] = []
        for name in HEALTH_REGISTERS:
            with self._explained("does not answer"):
                values.append(self._bus.sync_read(name, num_retry=2))
        status, heat, voltage = values
        return {m: Health(float(heat[m]), voltage[m] / 10, _faults(int(status[m]))) for m in status}

    def unfit(self, register: int) -> str:
        """Read one of HEALTH_REGISTERS, which takes a millisecond, and return the faults in words; "" if there are
        none.

        Args:
            register: its index, modulo their number.

        Raises:
            WorldError: a motor does not answer.
        """
        if self._bus is None:
            return ""
        name = HEALTH_REGISTERS[register % len(HEALTH_REGISTERS)]
        with self._explained("does not answer"):
            values = self._bus.sync_read(name, num_retry=2)
        if name == "Status":
            found = [f"motor '{m}' reports: {', '.join(_faults(int(v)))}" for m, v in values.items() if v]
        elif name == "Present_Temperature":
            limit = self.recipe.max_temperature_c
            found = [f"motor '{m}' has {v:g} °C, allowed are {limit:g} °C" for m, v in values.items() if v > limit]
        else:
            found = []
        return "; ".join(found)

    def matches_calibration(self) -> bool:
        """Return whether the motors' calibration is that of the file."""
        with self._explained("does not answer"):
            return bool(self._robot.calibration) and bool(self._robot.is_calibrated)

    def close(self) -> None:
        """Close the port. The torque stays on, unless the recipe's fields set disable_torque_on_disconnect."""
        with contextlib.suppress(*DEVICE_FAULTS):
            if self._robot.is_connected:
                self._robot.disconnect()
        self._close_port()

    def _check_and_anchor(self) -> None:
        """Raise WorldError unless all motors work; set the goals of motors without torque to their positions."""
        self._require_healthy()
        if not self._robot.is_calibrated:
            raise WorldError(self._uncalibrated("is calibrated differently from its file"))
        if limp := self._limp():
            here = self._bus.sync_read("Present_Position", limp, normalize=False)
            self._bus.sync_write("Goal_Position", here, normalize=False)

    def _limp(self) -> list[str]:
        """Return the names of the motors without torque."""
        return [motor for motor, on in self._bus.sync_read("Torque_Enable").items() if not on]

    def _require_healthy(self) -> None:
        for register in range(len(HEALTH_REGISTERS)):
            if unfit := self.unfit(register):
                raise WorldError(f"{self._named()}: {unfit}. Let it cool, look for what blocks it, check its supply.")

    def _from_device(self, values: Mapping[str, Any]) -> tuple[Vector, float]:
        degrees = np.array([float(values[key]) for key in self._keys])
        sign = np.array([-1.0 if joint.inverted else 1.0 for _, joint in self._joints])
        zero = np.array([joint.zero_deg for _, joint in self._joints])
        return np.radians(sign * (degrees - zero)), float(values[self._gripper]) / 100

    def _to_degrees(self, joints: Vector) -> list[float]:
        return [
            math.degrees(angle) * (-1.0 if joint.inverted else 1.0) + joint.zero_deg
            for angle, (_, joint) in zip(joints.tolist(), self._joints, strict=True)
        ]

    def _look(self) -> None:
        self._meet()
        self._check_and_anchor()
        self._bus.disconnect(disable_torque=False)

    def _hold_again(self) -> None:
        self._meet()
        self._check_and_anchor()
        self._bus.enable_torque(self._limp())

    def _meet(self) -> None:
        """Open the bus and ping every motor; lerobot's own handshake takes a hot motor for an absent one."""
        bus = self._bus
        bus.connect(handshake=False)
        absent = [f"'{name}' (id {motor.id})" for name, motor in bus.motors.items() if not self._is_there(motor.id)]
        if absent:
            raise WorldError(
                f"{self._named()}: no answer from motor {', '.join(absent)}. Check the cables, in the order of the "
                "ids, and the supply."
            )

    def _is_there(self, number: int) -> bool:
        bus = self._bus
        return any(bus.packet_handler.ping(bus.port_handler, number)[1] == 0 for _ in range(CONNECT_TRIES))

    def _patiently(self, connect: Callable[[], None]) -> None:
        """Try to connect up to CONNECT_TRIES times: lerobot sends some eighty requests, and none may be lost."""
        for left in reversed(range(CONNECT_TRIES)):
            try:
                return connect()
            except DEVICE_FAULTS:
                if not left:
                    raise
                self._close_port()

    def _require_port(self) -> None:
        require_port(self.recipe.fields.get("port"), "[robot.fields]")

    def _close_port(self) -> None:
        bus = self._bus
        if bus is None or not bus.port_handler.is_open:
            return
        with contextlib.suppress(*DEVICE_FAULTS):
            bus.port_handler.closePort()
        # The servo library leaves both flags set when a cable is pulled during a request.
        bus.port_handler.is_open = bus.port_handler.is_using = False

    def _uncalibrated(self, what: str) -> str:
        return f"{self._named()} {what}. Nothing was moved. Calibrate it: {self.calibrate_command}."

    def _named(self) -> str:
        return f"the arm '{self.recipe.id}' at {self.port}"

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except DEVICE_FAULTS as error:
            told = in_one_line(error)
            raise WorldError(f"{self._named()} {what}: {told} Check cable and supply, then arm and reset.") from error


def _faults(status: int) -> tuple[str, ...]:
    return tuple(text for bit, text in STATUS_BITS.items() if status & bit)


def _make_robot(recipe: RobotRecipe, max_steps: Mapping[str, float]) -> Any:
    """Return lerobot's robot of that type, not connected yet."""
    from lerobot.robots.config import RobotConfig
    from lerobot.robots.utils import make_robot_from_config

    schema = choice(RobotConfig, "robot type", recipe.type, "lerobot.robots", ROBOT_MODULES)
    own = {LIMITED_FIELD: dict(max_steps), "disable_torque_on_disconnect": False}
    return make_device(make_robot_from_config, schema, recipe, own, "[robot.fields]")
