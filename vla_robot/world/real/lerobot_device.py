"""Drives motors through lerobot's own classes, and turns their exceptions into WorldError with what to do.

This module uses radians for joints, and 0 to 1 for grippers; lerobot_wiring.py converts them to lerobot's units.

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

from vla_robot.core.errors import RecipeError, WorldError
from vla_robot.core.host.optional import require
from vla_robot.core.messages import Vector
from vla_robot.recipe.robot import LIMITED_FIELD, RobotRecipe
from vla_robot.world.real.lerobot_common import (
    DEVICE_FAULTS,
    choice,
    drop_late_answers,
    in_one_line,
    make_device,
    ports_as_options,
    require_port,
)
from vla_robot.world.real.lerobot_wiring import SUFFIX, ArmPart, parts_of, require_positions_only, wire

ROBOT_MODULES = (
    "so_follower",
    "bi_so_follower",
    "koch_follower",
    "omx_follower",
    "openarm_follower",
    "bi_openarm_follower",
    "rebot_b601_follower",
    "bi_rebot_b601_follower",
    "hope_jr",
    "reachy2",
)
"""Modules to import: lerobot registers a robot class when its module is imported."""

STATUS_BITS = {1: "voltage out of range", 2: "angle sensor", 4: "too hot", 8: "too much current", 32: "overload"}
"""Bit of a motor's status -> fault. Source: Feetech STS3215 memory table, register 65."""

TORQUE_FIELD = "disable_torque_on_disconnect"
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
    """One of lerobot's robots, or a pair of arms in one, without its cameras."""

    def __init__(self, recipe: RobotRecipe, joints: Sequence[str] | None, max_step_rad: float) -> None:
        """
        Args:
            recipe: lerobot's type of the robot, and its fields.
            joints: names of the scene's joints, in order, for an arm that takes tool steps; None for every joint that
                lerobot drives.
            max_step_rad: largest distance of a commanded joint from the measured one; lerobot gets the same limit.

        Raises:
            RecipeError: lerobot has no such robot, or the robot has no such field, motor or unit.
            MissingDependencyError: lerobot or its drivers are not installed.
        """
        require("lerobot", "arm", "a real arm")
        self.recipe = recipe
        self._robot = _make_robot(recipe)
        self._parts = parts_of(self._robot)
        if joints is None:
            require_positions_only(recipe, self._robot)
        elif len(self._parts) > 1:
            raise RecipeError(
                f"'{recipe.type}' is a pair of arms, and tool steps move one: set actions to \"joints\" in [robot]."
            )
        self.wiring = wire(recipe, self._robot, joints)
        self._configure(self.wiring.steps(max_step_rad))
        for _, bus in self._buses:
            drop_late_answers(bus.port_handler)

    @property
    def port(self) -> str:
        """The serial ports, or the robot's type where it has none."""
        return ", ".join(port for port, _ in self._ports) or self.recipe.type

    @property
    def calibration_files(self) -> tuple[Path, ...]:
        """Path of lerobot's calibration file of each arm."""
        return tuple(Path(part.robot.calibration_fpath) for part in self._parts)

    @property
    def calibrate_command(self) -> str:
        """The command that calibrates this arm, in backticks."""
        recipe = self.recipe
        folder = f" --robot.calibration_dir={recipe.calibration_dir}" if recipe.calibration_dir else ""
        ports = ports_as_options("robot", recipe.fields)
        return f"`lerobot-calibrate --robot.type={recipe.type}{ports} --robot.id={recipe.id}{folder}`"

    @property
    def limited_to_deg(self) -> float | None:
        """lerobot's own largest step of a joint [degrees]; None for a robot that lerobot does not limit."""
        steps = [
            math.degrees(step * rad_per_unit)
            for key, rad_per_unit in zip(self.wiring.keys, np.abs(self.wiring.scales.rad_per_unit), strict=True)
            if (step := self._step_of(key)) is not None
        ]
        return min(steps, default=None)

    @property
    def _buses(self) -> list[tuple[str, Any]]:
        """Prefix and bus of each arm with Feetech motors."""
        return [(part.prefix, part.feetech) for part in self._parts if part.feetech is not None]

    @property
    def _ports(self) -> list[tuple[str, str]]:
        """Port of each arm, and the recipe's table that names it."""
        told = [(getattr(part.robot.config, "port", None), part.table) for part in self._parts]
        return [(port, f"[robot.fields{'.' * bool(table)}{table}]") for port, table in told if isinstance(port, str)]

    def _configure(self, steps: Mapping[str, float]) -> None:
        """Set what the recipe cannot: lerobot's own limit of a step, for arms that have one for each motor, and that
        an arm keeps its torque when it disconnects, unless the recipe's fields say otherwise."""
        for part in self._parts:
            kinds = {field.name: str(field.type) for field in dataclasses.fields(part.robot.config)}
            if "dict" in kinds.get(LIMITED_FIELD, ""):
                mine = {key for key in steps if key.startswith(part.prefix)}
                own = {key.removeprefix(part.prefix).removesuffix(SUFFIX): steps[key] for key in mine}
                setattr(part.robot.config, LIMITED_FIELD, own)
            if TORQUE_FIELD in kinds and TORQUE_FIELD not in self._fields_of(part):
                setattr(part.robot.config, TORQUE_FIELD, False)

    def _fields_of(self, part: ArmPart) -> Mapping[str, Any]:
        """Return the recipe's fields of one arm."""
        table = self.recipe.fields.get(part.table, {}) if part.prefix else self.recipe.fields
        return table if isinstance(table, dict) else {}

    def _step_of(self, key: str) -> float | None:
        part = next(p for p in self._parts if key.startswith(p.prefix))
        limits = getattr(part.robot.config, LIMITED_FIELD, None) or {}
        return limits.get(key.removeprefix(part.prefix).removesuffix(SUFFIX))

    def connect(self) -> None:
        """Check the motors, then switch the torque on. For a moment nothing holds the arm, so it must be at rest.

        Raises:
            WorldError: no such port, no permission, no answer, not calibrated, or a motor reports a fault.
        """
        self._require_ports()
        for part in self._parts:
            if hasattr(part.bus, "calibration") and not part.robot.calibration:
                raise WorldError(self._uncalibrated(f"has no calibration at {part.robot.calibration_fpath}"))
        if self._buses:
            with self._explained("does not answer"):
                self._patiently(self._look)
        with self._explained("cannot be connected"):
            self._patiently(lambda: self._robot.connect(calibrate=False))
        if not self._robot.is_calibrated:
            raise WorldError(self._uncalibrated("is calibrated differently from its file"))

    def open_quietly(self) -> None:
        """Open the ports to read only, without torque.

        Raises:
            WorldError: no such port, no permission, or a motor does not answer.
        """
        self._require_ports()
        if len(self._buses) < len(self._parts):
            raise WorldError(f"'{self.recipe.type}' has no Feetech bus, so it cannot be read without torque.")
        with self._explained("does not answer"):
            self._patiently(self._meet)

    def reopen(self) -> None:
        """Reconnect after the cable was out. A motor that lost its power is held at its present position.

        Raises:
            WorldError: the cable is still out, or a motor reports a fault.
        """
        self._require_ports()
        if len(self._buses) < len(self._parts):
            with contextlib.suppress(*DEVICE_FAULTS):
                self._robot.disconnect()
            with self._explained("cannot be connected"):
                self._robot.connect(calibrate=False)
            return
        self._close_ports()
        with self._explained("does not answer"):
            self._patiently(self._hold_again)

    def read(self) -> tuple[Vector, Vector]:
        """Return the measured joints, (J,) [rad], and the grippers' openings, (G,) 0 closed to 1 open.

        Raises:
            WorldError: a motor does not answer, or its answer is damaged.
        """
        with self._explained("does not answer"):
            return self.wiring.from_device(self._robot.get_observation())

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        """Set the goals.

        Args:
            joints: (J,) joint goals [rad].
            openings: (G,) goals of the grippers, 0 closed to 1 open.

        Returns:
            The goals that lerobot sent: it limits their distance from the measured positions.

        Raises:
            WorldError: a motor does not answer, or its answer is damaged.
        """
        with self._explained("does not take commands"):
            return self.wiring.from_device(self._robot.send_action(self.wiring.to_device(joints, openings)))

    def health(self) -> dict[str, Health]:
        """Return motor -> temperature, voltage and faults; empty for robots that do not report them.

        Raises:
            WorldError: a motor does not answer.
        """
        found: dict[str, Health] = {}
        for prefix, bus in self._buses:
            values: list[dict[str, int]] = []
            for name in HEALTH_REGISTERS:
                with self._explained("does not answer"):
                    values.append(bus.sync_read(name, num_retry=2))
            status, heat, voltage = values
            found |= {prefix + m: Health(float(heat[m]), voltage[m] / 10, _faults(int(status[m]))) for m in status}
        return found

    def unfit(self, register: int) -> str:
        """Read one of HEALTH_REGISTERS, which takes a millisecond, and return the faults in words; "" if there are
        none.

        Args:
            register: its index, modulo their number.

        Raises:
            WorldError: a motor does not answer.
        """
        name, found = HEALTH_REGISTERS[register % len(HEALTH_REGISTERS)], list[str]()
        for prefix, bus in self._buses:
            with self._explained("does not answer"):
                values = bus.sync_read(name, num_retry=2)
            found += self._judged(name, {prefix + motor: value for motor, value in values.items()})
        return "; ".join(found)

    def _judged(self, register: str, values: Mapping[str, float]) -> list[str]:
        """Return the faults that the values of a register tell, one sentence for each motor."""
        if register == "Status":
            return [f"motor '{m}' reports: {', '.join(_faults(int(v)))}" for m, v in values.items() if v]
        if register == "Present_Temperature":
            limit = self.recipe.max_temperature_c
            return [f"motor '{m}' has {v:g} °C, allowed are {limit:g} °C" for m, v in values.items() if v > limit]
        return []

    def matches_calibration(self) -> bool:
        """Return whether the motors' calibration is that of the file."""
        with self._explained("does not answer"):
            return all(part.robot.calibration for part in self._parts) and bool(self._robot.is_calibrated)

    def close(self) -> None:
        """Close the ports. The torque stays on, unless the recipe's fields set disable_torque_on_disconnect."""
        for part in self._parts:
            with contextlib.suppress(*DEVICE_FAULTS):
                if part.robot.is_connected:
                    part.robot.disconnect()
        self._close_ports()

    def _check_and_anchor(self) -> None:
        """Raise WorldError unless all motors work; set the goals of motors without torque to their positions."""
        self._require_healthy()
        if not self._robot.is_calibrated:
            raise WorldError(self._uncalibrated("is calibrated differently from its file"))
        for _, bus in self._buses:
            if limp := _limp(bus):
                here = bus.sync_read("Present_Position", limp, normalize=False)
                bus.sync_write("Goal_Position", here, normalize=False)

    def _require_healthy(self) -> None:
        for register in range(len(HEALTH_REGISTERS)):
            if unfit := self.unfit(register):
                raise WorldError(f"{self._named()}: {unfit}. Let it cool, look for what blocks it, check its supply.")

    def _look(self) -> None:
        self._meet()
        self._check_and_anchor()
        for _, bus in self._buses:
            bus.disconnect(disable_torque=False)

    def _hold_again(self) -> None:
        self._meet()
        self._check_and_anchor()
        for _, bus in self._buses:
            bus.enable_torque(_limp(bus))

    def _meet(self) -> None:
        """Open each bus and ping every motor; lerobot's own handshake takes a hot motor for an absent one."""
        absent: list[str] = []
        for prefix, bus in self._buses:
            bus.connect(handshake=False)
            absent += [f"'{prefix}{name}' (id {m.id})" for name, m in bus.motors.items() if not _is_there(bus, m.id)]
        if absent:
            raise WorldError(
                f"{self._named()}: no answer from motor {', '.join(absent)}. Check the cables, in the order of the "
                "ids, and the supply."
            )

    def _patiently(self, connect: Callable[[], None]) -> None:
        """Try to connect up to CONNECT_TRIES times: lerobot sends some eighty requests, and none may be lost."""
        for left in reversed(range(CONNECT_TRIES)):
            try:
                return connect()
            except DEVICE_FAULTS:
                if not left:
                    raise
                self._close_ports()

    def _require_ports(self) -> None:
        for port, where in self._ports:
            require_port(port, where)

    def _close_ports(self) -> None:
        for _, bus in self._buses:
            if not bus.port_handler.is_open:
                continue
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


def _limp(bus: Any) -> list[str]:
    """Return the names of a bus's motors without torque."""
    return [motor for motor, on in bus.sync_read("Torque_Enable").items() if not on]


def _is_there(bus: Any, number: int) -> bool:
    return any(bus.packet_handler.ping(bus.port_handler, number)[1] == 0 for _ in range(CONNECT_TRIES))


def _make_robot(recipe: RobotRecipe) -> Any:
    """Return lerobot's robot of that type, not connected yet."""
    from lerobot.robots.config import RobotConfig
    from lerobot.robots.utils import make_robot_from_config

    schema = choice(RobotConfig, "robot type", recipe.type, "lerobot.robots", ROBOT_MODULES)
    return make_device(make_robot_from_config, schema, recipe, {}, "[robot.fields]")
