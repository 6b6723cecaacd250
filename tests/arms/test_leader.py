"""A person leads with an SO-101 leader: lerobot's own driver on emulated servos, a simulated arm follows, a dataset.

No real leader arm was at hand for these tests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.main import main
from vla_robot.cli.record.teleop_devices import is_teleoperator, open_named_teleoperator
from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.errors import RecipeError, TeleopError
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import World
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe, RealArmRecipe
from vla_robot.recipe.teleoperator import AxesDeviceRecipe, LeaderArmRecipe
from vla_robot.record.controlled_robot import WaitingWorld
from vla_robot.record.teleop_session import Session
from vla_robot.teleop.kinds import open_teleoperator
from vla_robot.teleop.leader import LeaderMotion
from vla_robot.teleop.motion import TeleopDevice
from vla_robot.teleop.terminal import Terminal
from vla_robot.teleop.terminal_teleop import TerminalTeleop
from vla_robot.world.kinds import build_world
from vla_robot.world.real.kinematics.arm_model import ArmModel
from vla_robot.world.real.lerobot_arm import LerobotArm

pytest.importorskip("scservo_sdk")
pytestmark = pytest.mark.sim
conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("arms.conftest"))]

BEGIN, LEAD, END = 2, 30, 45
"""Ticks: Start is pressed, the leader moves until, the episode is ended."""
WAY_DEG = {1: 18.0, 2: 25.0, 3: -15.0, 4: -10.0, 5: 20.0, 6: -40.0}
"""How far each joint of the leader is led."""

MakeRecipe = Callable[..., LeaderArmRecipe]


@pytest.fixture
def leader(tmp_path: Path, repository: Path) -> MakeRecipe:
    """The shipped recipe with the emulated port."""

    def make(more: str = "", port: Path | None = None) -> LeaderArmRecipe:
        path = tmp_path / "hands" / "leader.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'base = "so101_leader"\nid = "desk"\ncalibration_dir = "{tmp_path}/calibration"\n{more}\n'
            f'[fields]\nport = "{port or tmp_path / "port"}"\n'
        )
        return read(LeaderArmRecipe, path)

    return make


@pytest.fixture
def world(small_tabletop: Callable[..., Path]) -> Iterator[World]:
    """The tabletop with one small camera, and time."""
    with contextlib.closing(build_world(read(EnvRecipe, small_tabletop(horizon=500)))) as world:
        yield world


class Person:
    """Leads the arm by hand, and types at a terminal."""

    def __init__(self, teleop: TerminalTeleop, bus: Any, keyboard: int) -> None:
        self._teleop, self._bus, self._keyboard = teleop, bus, keyboard
        self._tick = 0
        self.actions: list[Vector] = []

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        self._teleop.show(observation, counters)

    def command(self) -> TeleopCommand:
        self._tick += 1
        if self._tick == BEGIN:
            os.write(self._keyboard, b"\r")
        elif BEGIN + 2 < self._tick <= LEAD:
            self._lead(1 / (LEAD - BEGIN - 2))
        elif self._tick == END:
            os.write(self._keyboard, b"n")
        said = self._teleop.command()
        self.actions += [] if said.action is None else [said.action]
        return said

    def close(self) -> None:
        self._teleop.close()

    def _lead(self, share: float) -> None:
        with self._bus.settled():
            for number, degrees in WAY_DEG.items():
                self._bus.servos[number].position += share * degrees * conftest.TICKS_PER_DEG


def joints_of(bus: Any) -> Vector:
    return np.radians(list(conftest.angles_deg(bus).values())[:5])


def test_the_arms_tool_does_what_the_leaders_tool_does_and_the_dataset_holds_it(
    leader: MakeRecipe, bus: Any, world: World, tmp_path: Path, repository: Path
) -> None:
    recipe, clock = leader(), FakeClock(NS_PER_S)
    model = ArmModel(repository / "envs" / "so101.xml")
    before, _ = model.pose(joints_of(bus))
    keyboard, terminal = os.openpty()
    motion = open_teleoperator(recipe, world.embodiment, clock)
    teleop = TerminalTeleop(motion, world.instruction, Terminal(terminal), clock=clock)
    with LeRobotWriter(tmp_path / "demos") as writer, contextlib.closing(Person(teleop, bus, keyboard)) as person:
        session = Session(WaitingWorld(world, clock), person, writer, "a person, by leader", clock=clock)
        left = itertools.count(2 * END, -1)
        made = session.record(itertools.count(3), 1, lambda: next(left) <= 0)
    os.close(keyboard)
    os.close(terminal)

    assert [event.kept for event in made] == [True]
    led = model.pose(joints_of(bus))[0] - before
    assert np.linalg.norm(led) > 0.05  # the hand moved the leader by some centimetres
    np.testing.assert_allclose(person.actions[0][:6], 0, atol=1e-9)  # nothing leaps when driving starts
    demos = open_demos(tmp_path / "demos")
    went = demos.states[-1, :3] - demos.states[0, :3]
    np.testing.assert_allclose(went, led, atol=0.004)
    assert demos.actions[0, -1] == 1.0 and demos.actions[-1, -1] < 0.6  # and the trigger was pulled
    assert bus.settled and all(servo.memory[conftest.load_emulator().TORQUE] == 0 for servo in bus.servos.values())


def test_the_command_opens_a_leader_beside_the_terminals_keys(
    leader: MakeRecipe, bus: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader()
    keyboard, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    with os.fdopen(terminal, "rb", closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        by = str(tmp_path / "hands" / "leader.toml")
        with contextlib.closing(
            open_named_teleoperator(by, world.embodiment, world.instruction, draws=False)
        ) as teleop:
            assert teleop.command().action is None  # Enter was not pressed
            os.write(keyboard, b"\r")
            assert teleop.command().buttons == {"start"}
            action = teleop.command().action
            assert action is not None and np.abs(action[:6]).max() < 1e-9
        assert termios.tcgetattr(terminal) == before
    os.close(keyboard)
    os.close(terminal)


def test_a_leader_that_was_never_calibrated_says_how(
    leader: MakeRecipe, bus: Any, tmp_path: Path, world: World
) -> None:
    recipe = leader()
    recipe.calibration_dir.joinpath("desk.json").unlink()  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(
        TeleopError, match=r"no calibration.*lerobot-calibrate --teleop.type=so101_leader --teleop.port="
    ):
        open_teleoperator(recipe, world.embodiment)


def test_a_leader_that_is_not_plugged_in_says_what_is(leader: MakeRecipe, tmp_path: Path, world: World) -> None:
    with pytest.raises(TeleopError, match=r"no port .*nowhere.*lerobot-find-port"):
        open_teleoperator(leader(port=tmp_path / "nowhere"), world.embodiment)


def test_a_leader_whose_cable_comes_out_is_told(leader: MakeRecipe, bus: Any, world: World) -> None:
    motion = open_teleoperator(leader(), world.embodiment, FakeClock())
    motion.wake()
    assert motion.move().action is not None
    bus.unplug()
    with pytest.raises(TeleopError, match="does not answer"):
        read_until_it_raises(motion)
    motion.close()


def read_until_it_raises(motion: TeleopDevice) -> None:
    for _ in range(100):
        motion.move()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ('gripper = "claw.pos"', r"unknown value of the leader 'claw.pos'.*gripper.pos"),
        ('[joints.elbow]\nmotor = "elbow_flex"', r"unknown joint in \[joints\] 'elbow'; did you mean 'elbow_flex'"),
        ('[joints.elbow_flex]\nmotor = "elbow"', r"unknown value of the leader 'elbow.pos'"),
        ('type = "so101_lead"', r"unknown teleoperator 'so101_lead'; did you mean 'so101_leader'"),
    ],
)
def test_what_a_recipe_misspells_is_named(leader: MakeRecipe, world: World, more: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        open_teleoperator(leader(more), world.embodiment)


def test_a_recipe_by_path_or_name_is_a_persons_hands(leader: MakeRecipe, tmp_path: Path, repository: Path) -> None:
    leader()
    assert is_teleoperator("so101_leader") and is_teleoperator(str(tmp_path / "hands" / "leader.toml"))
    (tmp_path / "mine.toml").write_text('base = "so101_leader"\n')
    assert is_teleoperator(str(tmp_path / "mine.toml"))
    assert not is_teleoperator("expert") and not is_teleoperator(str(repository / "policies" / "expert.toml"))


def test_record_by_a_recipe_asks_for_a_terminal(
    leader: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    leader()
    monkeypatch.setattr(sys, "stdin", None)
    by = str(tmp_path / "hands" / "leader.toml")
    assert main(["record", "--env", "tabletop", "--source", by, "--out", str(tmp_path / "d")]) == 2
    assert "ssh -t" in capsys.readouterr().err


# --- a device that tells motions


class Nudger:
    """What the adapter asks of a teleoperator of lerobot's without motors, as its gamepad is one."""

    def __init__(self) -> None:
        self.says = dict.fromkeys(("delta_x", "delta_y", "delta_z"), 0.0) | {"gripper": 1.0}
        self.action_features = {"dtype": "float32", "shape": (4,), "names": {n: i for i, n in enumerate(self.says)}}
        self.is_connected = False

    def connect(self) -> None:
        self.is_connected = True

    def get_action(self) -> dict[str, float]:
        return dict(self.says)

    def disconnect(self) -> None:
        self.is_connected = False


def test_a_teleoperator_that_tells_motions_drives_by_its_axes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.teleoperators import config, utils

    class NudgerConfig(config.TeleoperatorConfig):
        """A configuration without fields of its own."""

    nudger = Nudger()
    known = config.TeleoperatorConfig.get_known_choices()
    monkeypatch.setattr(config.TeleoperatorConfig, "get_known_choices", lambda: known | {"nudger": NudgerConfig})
    monkeypatch.setattr(utils, "make_teleoperator_from_config", lambda _: nudger)
    grip = {"gripper": "gripper", "gripper_closed": 0.0, "gripper_open": 2.0, "gripper_keeps": 1.0}
    recipe = AxesDeviceRecipe(type="nudger", id="left", axes={"dx": "delta_x", "dz": "delta_z"}, **grip)  # pyright: ignore
    motion = open_teleoperator(recipe, world.embodiment)
    assert nudger.is_connected and motion.move().action is None
    nudger.says |= {"delta_x": 1.0, "delta_y": 1.0, "delta_z": -1.0}
    action = motion.move().action
    assert action is not None and action[0] > 0 and action[1] == 0 and action[2] < 0 and action[-1] == 1.0
    nudger.says["gripper"] = 0.0
    action = motion.move().action
    assert action is not None and action[-1] == 0.0
    motion.close()
    assert not nudger.is_connected


def test_axes_that_a_device_does_not_tell_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_robot.teleop.teleoperator import ToldAxes

    device: Any = type("Device", (), {"names": ("delta_x",)})
    recipe = AxesDeviceRecipe(type="n", id="n", axes={"dx": "delta_z"})
    with pytest.raises(RecipeError, match="did you mean 'delta_x'"):
        ToldAxes(device, recipe)


# --- a real arm that is led


class Led:
    """A leader whose joints are its tool's position."""

    def __init__(self) -> None:
        self.joints = np.zeros(3)

    def read(self) -> tuple[Vector, Vector]:
        return self.joints.copy(), np.ones(1)

    def close(self) -> None: ...

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        return joints, np.array([1.0, 0.0, 0.0, 0.0])


def test_a_real_arm_goes_where_it_is_led_and_not_beyond(bus: Any, desk: Callable[..., Path]) -> None:
    """On the servos' own time; they lag, and hang below their goals."""
    recipe, clock, hand = read(RealArmRecipe, desk()), FakeClock(NS_PER_S), Led()
    with contextlib.closing(LerobotArm(recipe)) as arm:
        start = arm.reset(0).state[:3]
        motion = LeaderMotion(hand, hand, arm.embodiment, clock=clock)
        motion.wake()
        now_s = bus.now_s()
        bus.now_s = lambda: now_s
        led = np.array([0.05, 0.04, 0.05])
        gone: list[Vector] = [np.zeros(3)]
        for tick in range(150):
            hand.joints[:] = min(max(tick - 2, 0) / 45, 1.0) * led
            clock.advance_ns(round(NS_PER_S / recipe.rate_hz))
            now_s += 1 / recipe.rate_hz
            action = motion.move().action
            assert action is not None
            result = arm.command(action)
            motion.see(result.observation)
            gone.append(result.observation.state[:3] - start)
        np.testing.assert_allclose(gone[-1], led, atol=0.003)
        assert max(way @ led / (led @ led) for way in gone) < 1.1
