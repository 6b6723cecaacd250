"""What every arm, and every robot with a clock of its own, promises. A new one joins by one line in ARMS or ROBOTS."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import Dim
from vla_robot.core.messages import StepResult, Vector
from vla_robot.core.ports import Arm, Robot
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.faults import Faults, contained
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.testing import ToyArm, ToyRobot, ToyWorld, check_arm, check_robot, toy_embodiment
from vla_robot.world.kinds import build_robot
from vla_robot.world.real.set_points import SetPoints, StreamBounds, StreamedArm
from vla_robot.world.real.smooth import MotionBounds

# The emulated arm's fixtures; "bus" and "desk" are asked for by name.
from ..arms.conftest import bus, desk, patience, plugins, quick_threads  # noqa: F401
from .kinds import Get, as_named

JOINTS = tuple(Dim(f"joint_{i}", "rad", -2.0, 2.0) for i in range(3))
JOINT_ARM = toy_embodiment(axes=JOINTS, state=JOINTS, kind="joint_position", cameras=())
NAMES = (*(dim.name for dim in JOINTS), "gripper")
BOUNDS = StreamBounds(MotionBounds(1.5, 30.0, 2000.0), np.full(3, -2.0), np.full(3, 2.0), 3.0, NAMES)


class StillMotors:
    """Follow at once."""

    joints, openings = np.zeros(3), np.ones(1)

    def read(self) -> tuple[Vector, Vector]:
        return self.joints, self.openings

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        self.joints, self.openings = joints, openings
        return joints, openings


class GoalArm(ToyArm):
    """Hands its commands on as goals."""

    motors: SetPoints

    def command(self, action: Vector) -> StepResult:
        self.motors.send(action[:-1], action[-1:])
        return super().command(action)


def streamed() -> Arm:
    clock = FakeClock(NS_PER_S)
    arm = GoalArm(clock, JOINT_ARM)
    arm.motors = SetPoints(StillMotors(), JOINT_ARM.rate_hz, 100.0, BOUNDS, clock)
    return StreamedArm(arm, arm.motors)


def real(get: Get, actions: str = "tool") -> Arm:
    """lerobot's own driver, on emulated servos."""
    pytest.importorskip("scservo_sdk")

    servos = get("bus")
    servos.now_s = itertools.count(servos.now_s(), 1.0).__next__  # they arrive, however busy this computer is
    recipe = read(RealArmRecipe, get("desk")(robot=f'actions = "{actions}"'))
    return build_robot(recipe, interrupted=lambda: False, show=None)


ARMS: dict[str, Callable[[Get], Arm]] = {
    "ToyArm": lambda get: ToyArm(),
    "WorldArm": lambda get: WorldArm(ToyWorld()),
    "ContainedArm": lambda get: contained(ToyArm(), Faults()),
    "StreamedArm SetPoints": lambda get: streamed(),
    "ContainedStreamedArm StreamedArm": lambda get: contained(streamed(), Faults()),
    "LerobotArm LerobotDevice ArmModel": real,
    "JointArm": lambda get: real(get, "joints"),
}
ROBOTS: dict[str, Callable[[Get], Robot]] = {
    "ToyRobot": lambda get: ToyRobot(),
    "RemoteRobot of an arm": lambda get: get("robot_of")(ToyArm()),
    "RemoteRobot of a world": lambda get: get("robot_of")(WorldArm(ToyWorld())),
}
OPTIONS: dict[str, dict[str, Any]] = {
    # Five joints follow no rotation exactly, and servos hang below their goals.
    "LerobotArm LerobotDevice ArmModel": {"inexact": [1e-3] * 3 + [0.02] * 3 + [0.0], "tolerance": 1e-3},
    "JointArm": {"inexact": 1e-6, "tolerance": 1e-3},
}


@pytest.fixture
def robot_of(bridge_of: Callable[[Arm], str]) -> Iterator[Callable[[Arm], RemoteRobot]]:
    with contextlib.ExitStack() as stack:
        yield lambda arm: stack.enter_context(contextlib.closing(RemoteRobot(bridge_of(arm))))


@pytest.mark.parametrize("kind", ARMS)
def test_every_arm_keeps_its_contract(kind: str, request: pytest.FixtureRequest) -> None:
    check_arm(lambda: as_named(kind, ARMS[kind](request.getfixturevalue)), **OPTIONS.get(kind, {}))


@pytest.mark.parametrize("kind", ROBOTS)
def test_every_robot_keeps_its_contract(kind: str, request: pytest.FixtureRequest) -> None:
    check_robot(lambda: as_named(kind, ROBOTS[kind](request.getfixturevalue)), patience=200, timeout_s=0.5)
