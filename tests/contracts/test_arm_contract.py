"""What every arm and every robot promises. The arm of real servos is asked in tests/arms, on emulated ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import ActionSpace, Dim, Embodiment
from vla_robot.core.messages import StepResult, Vector
from vla_robot.core.ports import Arm
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.faults import Faults, contained
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.testing import ToyArm, ToyRobot, ToyWorld, check_arm, check_robot
from vla_robot.world.real.set_points import SetPoints, StreamBounds, StreamedArm
from vla_robot.world.real.smooth import MotionBounds

JOINTS = tuple(Dim(f"joint_{i}", "rad", -2.0, 2.0) for i in range(3))
JOINT_ARM = Embodiment(
    "joints", ActionSpace("joint_position", "base", (*JOINTS, Dim("gripper", "1", 0, 1))), JOINTS, (), 10.0
)


class Motors:
    """Follow at once."""

    joints, opening = np.zeros(3), 1.0

    def read(self) -> tuple[Any, float]:
        return self.joints, self.opening

    def send(self, joints: Any, opening: float) -> tuple[Any, float]:
        self.joints, self.opening = joints, opening
        return joints, opening


class GoalArm(ToyArm):
    """Hands its commands on as goals."""

    motors: SetPoints

    def command(self, action: Vector) -> StepResult:
        self.motors.send(action[:-1], float(action[-1]))
        return super().command(action)


def streamed() -> Arm:
    clock = FakeClock(NS_PER_S)
    arm = GoalArm(clock, JOINT_ARM)
    bounds = StreamBounds(MotionBounds(1.5, 30.0, 2000.0), np.full(3, -2.0), np.full(3, 2.0), opening_per_s=3.0)
    arm.motors = SetPoints(Motors(), JOINT_ARM.rate_hz, 100.0, bounds, clock)
    return StreamedArm(arm, arm.motors)


KINDS: dict[str, Callable[[], Arm]] = {
    "toy": ToyArm,
    "world": lambda: WorldArm(ToyWorld()),
    "contained": lambda: contained(ToyArm(), Faults()),
    "streamed": streamed,
    "streamed and contained": lambda: contained(streamed(), Faults()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_keeps_its_contract(kind: str) -> None:
    check_arm(KINDS[kind])


def test_a_robot_with_a_clock_keeps_its_contract() -> None:
    check_robot(ToyRobot)


@pytest.mark.parametrize("make_arm", [ToyArm, lambda: WorldArm(ToyWorld())], ids=["arm", "world"])
def test_a_robot_behind_a_bridge_keeps_its_contract(bridge_of: Callable[[Arm], str], make_arm: Any) -> None:
    with contextlib.closing(RemoteRobot(bridge_of(make_arm()))) as robot:
        check_robot(lambda: robot, patience=200)
