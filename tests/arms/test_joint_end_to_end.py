"""`vla bridge` in joint positions: an arm, a pair, and a leader whose demonstration is recorded and replayed."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vla_robot.cli.build import build_guard
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import Robot
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.teleoperator import LeaderArmRecipe
from vla_robot.record.controlled_robot import LiveRobot
from vla_robot.record.teleop_session import Session
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.teleop.kinds import open_teleoperator
from vla_robot.teleop.terminal import Terminal
from vla_robot.teleop.terminal_teleop import TerminalTeleop
from vla_robot.testing import FunctionPolicy
from vla_robot.world.sim.sim_embodiment import embodiment_of

from . import conftest
from .test_end_to_end import BREAK, MEND, PATIENT, Stage, bridge, require_driven_again, write_desk
from .test_joint_arm import JOINTS, PAIR, POSES_DEG

pytest.importorskip("scservo_sdk")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("joints")
    conftest.write_calibration(folder / "calibration")
    bus = conftest.ServoProcess(folder / "port")
    with bridge(folder, write_desk(folder, JOINTS), *PATIENT, "--hold-after-s", "2") as stage:
        stage.bus = bus
        yield stage
    assert bus.tell()["torque"] == [1] * 6  # nothing falls when the bridge ends
    bus.close()


class Poses:
    """Goes to a pose and stays there until `next`; adds to the goal what the servos hang below it."""

    NEAR_RAD, PERIODS = np.radians(0.25), 10

    def __init__(self, poses: list[Vector], is_grip: NDArray[np.bool_]) -> None:
        self.poses, self._joints = poses, ~is_grip
        self._index = -1
        self.next()

    def next(self) -> None:
        self._index += 1
        self._near, self._added = 0, np.zeros(len(self._joints))

    @property
    def arrived(self) -> bool:
        return self._near >= self.PERIODS

    def act(self, seen: Observation) -> Vector:
        wanted = self.poses[min(self._index, len(self.poses) - 1)]
        missing = (wanted - seen.state) * self._joints
        if not self.arrived:
            self._near = self._near + 1 if np.abs(missing).max() < self.NEAR_RAD else 0
            self._added = self._added + 0.05 * missing * (np.abs(missing).max() < np.radians(3))
        return wanted + self._added


def driven(robot: Robot, poses: Poses, buses: list[Any]) -> tuple[list[Vector], float]:
    """Drive to all poses. Return where the servos really were at each [degrees], and the rate [Hz]."""
    seen: list[Vector] = []

    steps: list[int] = []

    def look(event: Event) -> None:
        steps.extend([1] * isinstance(event, StepDone))
        if isinstance(event, StepDone) and poses.arrived:
            seen.append(np.concatenate([list(conftest.angles_deg(bus).values())[:5] for bus in buses]))
            poses.next()

    begun_s = time.monotonic()
    result = run_live_episode(
        robot,
        FunctionPolicy(poses.act),
        0,
        guard=build_guard(robot.embodiment.action),
        subscribers=[look],
        should_stop=lambda: len(seen) == len(poses.poses),
    )
    assert result.error is None, result.error
    return seen, len(steps) / (result.duration_s or time.monotonic() - begun_s)


def test_ten_poses_of_the_joints_are_reached_at_thirty_hertz(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with RemoteRobot(stage.address) as robot:
        poses = Poses([np.append(np.radians(pose), 0.7) for pose in POSES_DEG], robot.embodiment.action.is_grip)
        seen, rate_hz = driven(robot, poses, [stage.bus])
        counts = robot.status()["counts"]
    worst = np.abs(np.array(seen) - POSES_DEG).max()
    with capsys.disabled():
        print(f"\nten poses of the joints: worst {worst:.2f} degrees; {rate_hz:.1f} Hz, {counts}")
    assert len(seen) == 10 and worst < 0.5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unplugged", "the arm 'desk' at .* does not"),
        ("silent", "There is no status packet"),
        ("hot", "motor 'shoulder_lift' has 65 °C, allowed are 60 °C"),
        ("damaged", "Incorrect status packet"),
    ],
)
def test_a_fault_stops_the_arm_supported_and_says_so_until_it_is_mended(stage: Stage, fault: str, words: str) -> None:
    still = FunctionPolicy(lambda seen: seen.state)
    with RemoteRobot(stage.address) as robot:

        def trip(event: Event) -> None:
            if isinstance(event, StepDone) and event.result.observation.step == 10:
                stage.bus.tell(BREAK[fault])

        guard = build_guard(robot.embodiment.action)
        result = run_live_episode(robot, still, 0, guard=guard, subscribers=[trip])
        assert re.search(f"the bridge stopped the arm: .* a failure of the arm: .*{words}", result.error or "")
        assert robot.status()["mode"] == "stopped" and stage.bus.tell()["torque"] == [1] * 6
        robot.arm()
        with pytest.raises(WorldError):
            robot.begin(0)  # nothing is mended yet
        stage.bus.tell(MEND[fault])
        require_driven_again(robot, still)


def test_a_policy_that_was_made_for_tool_steps_is_refused(stage: Stage) -> None:
    goals = stage.bus.tell()["goals"]
    wanted = embodiment_of(read(EnvRecipe, "desk_so101"), "so101")
    with pytest.raises(ContractError, match="the policy gives 'eef_delta', the world takes 'joint_position'"):
        RemoteRobot(stage.address, wanted=wanted)
    assert stage.bus.tell()["goals"] == goals


def test_a_pair_of_arms_runs_at_thirty_hertz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buses: list[Any] = []
    for side in ("left", "right"):
        conftest.write_calibration(tmp_path / "calibration", f"desk_{side}")
        buses.append(conftest.ServoProcess(tmp_path / side))
    recipe = tmp_path / "pair.toml"
    recipe.write_text(PAIR.format(folder=tmp_path, robot=""))
    both = [np.append(np.radians(pose), 0.7) for pose in POSES_DEG[:3]]
    with bridge(tmp_path, recipe, *PATIENT) as stage, RemoteRobot(stage.address) as robot:
        rows = [np.concatenate([row, row * [-1, 1, 1, 1, -1, 1]]) for row in both]
        seen, rate_hz = driven(robot, Poses(rows, robot.embodiment.action.is_grip), buses)
        counts = robot.status()["counts"]
    wanted = np.array([[*pose, *(np.array(pose) * [-1, 1, 1, 1, -1])] for pose in POSES_DEG[:3]])
    with capsys.disabled():
        print(f"\na pair: worst {np.abs(seen - wanted).max():.2f} degrees; {rate_hz:.1f} Hz, {counts}")
    assert np.abs(seen - wanted).max() < 0.5
    for bus in buses:
        assert bus.tell()["torque"] == [1] * 6
        bus.close()


# --- a leader arm


class Hand:
    """Leads the leader arm by hand, and types at a terminal."""

    BEGIN, LEAD, END = 2, 75, 110
    """Ticks: Start is pressed; the hand moves until; the episode is ended."""
    WAY_DEG: Mapping[int, float] = {1: 18.0, 2: 25.0, 3: -15.0, 4: -10.0, 5: 20.0, 6: -40.0}

    def __init__(self, teleop: TerminalTeleop, bus: Any, keyboard: int) -> None:
        self._teleop, self._bus, self._keyboard = teleop, bus, keyboard
        self._tick = 0

    def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
        self._teleop.show(observation, counters)

    def command(self) -> TeleopCommand:
        self._tick += 1
        if self._tick == self.BEGIN:
            os.write(self._keyboard, b"\r")
        elif self.BEGIN + 2 < self._tick <= self.LEAD:
            with self._bus.settled():
                for number, degrees in self.WAY_DEG.items():
                    share = degrees / (self.LEAD - self.BEGIN - 2)
                    self._bus.servos[number].position += share * conftest.TICKS_PER_DEG
        elif self._tick == self.END:
            os.write(self._keyboard, b"n")
        return self._teleop.command()

    def close(self) -> None:
        self._teleop.close()


def test_a_leaders_joints_are_recorded_as_they_are_and_replayed_to_the_same_joints(
    stage: Stage, bus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The arm is in the other process; the leader's emulated servos are here."""
    recipe = tmp_path / "leader.toml"
    recipe.write_text(
        f'base = "so101_leader"\nid = "desk"\ncalibration_dir = "{tmp_path}/calibration"\n'
        f'[fields]\nport = "{tmp_path / "port"}"\n'
    )
    keyboard, terminal = os.openpty()
    with RemoteRobot(stage.address) as robot:
        motion = open_teleoperator(read(LeaderArmRecipe, recipe), robot.embodiment)
        teleop = TerminalTeleop(motion, robot.instruction, Terminal(terminal))
        with LeRobotWriter(tmp_path / "demos") as writer, contextlib.closing(Hand(teleop, bus, keyboard)) as hand:
            left = itertools.count(2000, -1)
            made = Session(LiveRobot(robot), hand, writer, "a leader").record(
                itertools.count(3), 1, lambda: next(left) <= 0
            )
        assert [event.kept for event in made] == [True]
        led = np.append(np.radians(list(conftest.angles_deg(bus).values())[:5]), 0)
        demos = open_demos(tmp_path / "demos")
        assert demos.actions[-1, :5] == pytest.approx(led[:5], abs=1e-3)  # as they are
        followed = np.array(list(conftest.angles_deg(stage.bus).values())[:5])
        assert followed == pytest.approx(np.degrees(led[:5]), abs=1.0)

        actions = iter(demos.actions.astype(np.float64))
        last = demos.actions[-1].astype(np.float64)
        steps: list[int] = []
        result = run_live_episode(
            robot,
            FunctionPolicy(lambda seen: next(actions, last)),
            3,
            guard=build_guard(robot.embodiment.action),
            subscribers=[lambda event: steps.append(1) if isinstance(event, StepDone) else None],
            should_stop=lambda: len(steps) >= len(demos.actions) + 60,
        )
        assert result.error is None
        again = np.array(list(conftest.angles_deg(stage.bus).values())[:5])
    with capsys.disabled():
        print(f"\na demonstration replayed: the joints end within {np.abs(again - followed).max():.2f} degrees")
    assert again == pytest.approx(followed, abs=0.3)
    for descriptor in (keyboard, terminal):
        os.close(descriptor)
