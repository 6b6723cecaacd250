"""What every teleoperator promises, with each device that a person may hold. A new one joins by one line in KINDS.

What keys, sticks and pages do is tested in tests/teleop and tests/web.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import Dim
from vla_robot.core.ports import Kinematics, LeaderArm, Teleoperator
from vla_robot.recipe import read
from vla_robot.recipe.teleoperator import AxesDeviceRecipe, LeaderArmRecipe, LerobotTeleoperatorRecipe
from vla_robot.teleop.gamepad import SOUTH, Gamepad, Layout
from vla_robot.teleop.joint_leader import JointLeaderMotion
from vla_robot.teleop.keys import KeyMotion
from vla_robot.teleop.leader import LeaderMotion
from vla_robot.teleop.motion import TeleopDevice
from vla_robot.teleop.spacemouse import SpaceMouse
from vla_robot.teleop.sticks import StickMotion
from vla_robot.teleop.teleoperator import ToldAxes
from vla_robot.teleop.terminal import Terminal
from vla_robot.teleop.terminal_teleop import TerminalTeleop
from vla_robot.testing import TOOL_AXES, ScriptedTeleoperator, check_teleoperator, move, press, toy_embodiment
from vla_robot.testing.embodiments import GRIPPER, toy_observation
from vla_robot.web.browser_teleop import BrowserTeleop
from vla_robot.world.real.lerobot_leader import Leader

from .kinds import as_named

ARM = toy_embodiment(axes=TOOL_AXES)
ELBOW = Dim("elbow", "rad", -2.0, 2.0)
JOINT_ARM = toy_embodiment(axes=[ELBOW], state=[ELBOW, GRIPPER], kind="joint_position")
PERSONS: list[int] = []
"""The other ends of the devices' files."""


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    yield
    while PERSONS:
        os.close(PERSONS.pop())


def terminal(device: TeleopDevice, typed: bytes = b"\ry") -> Teleoperator:
    """A person who types beside the device: to start, done."""
    person, fd = os.openpty()
    PERSONS.append(person)
    os.write(person, typed)
    return TerminalTeleop(device, "lift it", Terminal(fd))


def gamepad() -> Gamepad:
    """Its left stick pushed to the front, and a button pressed, as the kernel tells it."""
    ours, theirs = os.pipe()
    PERSONS.append(theirs)
    os.write(theirs, bytes.fromhex("11000000 0180 02 01  11000000 0100 01 00"))
    return Gamepad(ours, Layout([0, 1], [SOUTH]))


def spacemouse() -> SpaceMouse:
    """Its cap pushed to the front and up. Each read gives one whole report, as hidraw's do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(bytes.fromhex("01 0000 a2fe a2fe"))
    PERSONS.append(theirs.detach())
    return SpaceMouse(ours.detach())


class Told:
    """A teleoperator of lerobot's, without its driver."""

    def __init__(self, recipe: LerobotTeleoperatorRecipe, values: Mapping[str, float]) -> None:
        self.recipe, self.names, self._values = recipe, tuple(values), values

    def read(self) -> Mapping[str, float]:
        return self._values

    def scale(self, motor: str) -> None:
        """It does not tell its units."""

    def close(self) -> None: ...


def told_axes() -> ToldAxes:
    recipe = AxesDeviceRecipe(type="nudger", id="left", axes={"dx": "delta_x"})
    device: Any = Told(recipe, {"delta_x": 0.5, recipe.gripper: 1.0})
    return ToldAxes(device, recipe)


def told_leader() -> tuple[LeaderArm, Kinematics]:
    """The shipped leader arm, held still, and its model."""
    pytest.importorskip("mujoco")
    from vla_robot.world.real.kinematics.arm_model import ArmModel
    from vla_robot.world.real.lerobot_leader import Leader

    recipe = read(LeaderArmRecipe, "so101_leader")
    assert recipe.scene is not None
    model = ArmModel(recipe.scene)
    motors = {f"{name}.pos": 0.0 for name in model.names} | {recipe.gripper: 50.0}
    device: Any = Told(recipe, motors)
    return Leader(device, recipe.joints, model.names), model


def leader() -> LeaderMotion:
    motion = LeaderMotion(*told_leader(), ARM, clock=FakeClock(NS_PER_S))
    motion.wake()
    return motion


def joint_leader() -> JointLeaderMotion:
    """The shipped leader arm, held still, before an arm of the same joints."""
    device: Any = Told(read(LeaderArmRecipe, "so101_leader"), {f"{name}.pos": 50.0 for name in JOINT_ARM.action.names})
    motion = JointLeaderMotion(Leader(device, {}, JOINT_ARM.action.names[:-1]), JOINT_ARM)
    motion.see(toy_observation(JOINT_ARM))
    motion.wake()
    return motion


KINDS: dict[str, Callable[[], Teleoperator]] = {
    "BrowserTeleop": lambda: BrowserTeleop(ARM, "lift it"),
    "TerminalTeleop KeyMotion": lambda: terminal(KeyMotion(ARM), b"w\ry"),
    "TerminalTeleop StickMotion Gamepad": lambda: terminal(StickMotion(gamepad(), ARM)),
    "TerminalTeleop StickMotion SpaceMouse": lambda: terminal(StickMotion(spacemouse(), ARM)),
    "TerminalTeleop StickMotion ToldAxes": lambda: terminal(StickMotion(told_axes(), ARM)),
    "TerminalTeleop LeaderMotion Leader ArmModel": lambda: terminal(leader()),
    "TerminalTeleop JointLeaderMotion Leader": lambda: terminal(joint_leader()),
    "ScriptedTeleoperator": ScriptedTeleoperator,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_teleoperator_keeps_its_contract(kind: str) -> None:
    check_teleoperator(lambda: as_named(kind, KINDS[kind]()), JOINT_ARM if "JointLeader" in kind else ARM)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("Terminal")])
def test_the_devices_of_the_suite_move_the_arm(kind: str) -> None:
    """Lest only devices at rest were asked."""
    teleoperator = KINDS[kind]()
    said = [teleoperator.command().action for _ in range(4)]
    teleoperator.close()
    assert any(action is not None for action in said)


def test_a_script_for_another_arm_keeps_it() -> None:
    script = {0: press("start", "lift"), 1: move(0.02), 2: press("success")}
    check_teleoperator(lambda: ScriptedTeleoperator(script), toy_embodiment())
