"""Stands in for the motors in a dry run, which reads them and sends them nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_robot.core.errors import WorldError
from vla_robot.core.messages import Vector
from vla_robot.world.real.lerobot_device import Health, LerobotDevice


class DryDevice:
    """The motors in a dry run: they are read, and get neither torque nor goals. Every sixth goal is shown instead."""

    SHOWN_EVERY = 6

    def __init__(self, device: LerobotDevice, show: Callable[[str], None]) -> None:
        self._device, self._show = device, show
        self._names = (*device.wiring.joints, *device.wiring.grippers)
        self._asked = 0

    def connect(self) -> None:
        self._device.open_quietly()
        if not self._device.matches_calibration():
            raise WorldError(
                "the arm's calibration file differs from its motors' calibration: a dry run would show wrong angles. "
                f"Calibrate it: {self._device.calibrate_command}."
            )

    def reopen(self) -> None:
        self._device.close()
        self._device.open_quietly()

    def read(self) -> tuple[Vector, Vector]:
        return self._device.read()

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        """Show the goals. Return the measured joints and openings, since nothing was sent."""
        now, open_now = self._device.read()
        if self._asked % self.SHOWN_EVERY == 0:
            before = [*np.degrees(now), *(100 * open_now)]
            after = [*np.degrees(joints), *(100 * openings)]
            pairs = zip(self._names, before, after, strict=True)
            self._show("would send  " + "  ".join(f"{n} {a:+.1f} -> {b:+.1f}" for n, a, b in pairs))
        self._asked += 1
        return now, open_now

    def unfit(self, register: int) -> str:
        return self._device.unfit(register)

    def health(self) -> dict[str, Health]:
        return self._device.health()

    def close(self) -> None:
        self._device.close()
