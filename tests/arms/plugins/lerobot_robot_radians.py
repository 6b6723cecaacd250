"""A robot of another package, as lerobot finds one: four joints in radians and two grippers, without a bus of motors.

Its motors follow at once. Where the class has no `moves`, nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.robots import Robot, RobotConfig

MOTORS = ("base", "reach", "left_claw", "right_claw")


@RobotConfig.register_subclass("radians")
@dataclass
class RadiansConfig(RobotConfig):
    port: str = "nowhere"
    wheels: bool = False


class Radians(Robot):
    """A robot whose goals are its positions."""

    config_class = RadiansConfig
    name = "radians"

    def __init__(self, config: RadiansConfig) -> None:
        super().__init__(config)
        self.config = config
        self.at = dict.fromkeys((f"{motor}.pos" for motor in MOTORS), 0.25)
        self.sent: list[dict[str, float]] = []
        self._connected = False

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.at, float) | ({"x.vel": float} if self.config.wheels else {})

    @property
    def observation_features(self) -> dict[str, type]:
        return dict.fromkeys(self.at, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return dict(self.at)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(dict(action))
        self.at |= action
        return action

    def disconnect(self) -> None:
        self._connected = False
