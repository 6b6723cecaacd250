"""Tests of a person driving a robot that has its own clock: what is sent, recorded and counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.messages import Vector
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.demonstration import Demonstration
from vla_robot.record.controlled_robot import SILENCE_S, LiveRobot
from vla_robot.record.teleop_session import Session
from vla_robot.testing import ScriptedTeleoperator, ToyRobot, move, toy_embodiment

RATE_HZ = 10
POINT = toy_embodiment(step_m=1, reach_m=10, height=16, width=16, rate_hz=RATE_HZ)


class Kept:
    def __init__(self) -> None:
        self.demos: list[Demonstration] = []

    def write(self, demonstration: Demonstration) -> None:
        self.demos.append(demonstration)


NOTHING = TeleopCommand(None)
START, STOP = TeleopCommand(None, frozenset({"start"})), TeleopCommand(None, frozenset({"stop"}))
E_STOP = TeleopCommand(None, frozenset({"estop"}))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NS_PER_S)


def record(robot: ToyRobot, said: Sequence[TeleopCommand], episodes: int = 1) -> list[Demonstration]:
    writer = Kept()
    session = Session(LiveRobot(robot, robot.clock), ScriptedTeleoperator(said), writer, "a person", clock=robot.clock)
    left = itertools.count(len(said) + 5, -1)
    stop: Callable[[], bool] = lambda: next(left) <= 0  # noqa: E731 - one expression, named for the reader
    session.record(itertools.count(7), episodes, stop)
    return writer.demos


def executed(demo: Demonstration) -> Vector:
    return demo.executed[:, 0]


def test_nothing_moves_before_start(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT)
    assert record(robot, [move(0.5), move(0.5)]) == [] and robot.log == []


def test_commanded_and_executed_actions_are_both_recorded(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT)
    (demo,) = record(robot, [START, move(0.5), move(0.25), STOP])
    np.testing.assert_allclose(demo.actions, [[0.5, 1.0], [0.25, 1.0]])
    np.testing.assert_allclose(executed(demo), [0.5, 0.25])
    np.testing.assert_allclose(demo.states[:, 0], [0.0, 0.5])
    assert robot.log == ["begin 7", "end"]


def test_over_a_slow_network_each_action_is_recorded_with_its_own_result(clock: FakeClock) -> None:
    (demo,) = record(ToyRobot(clock, POINT, delay=2), [START, *(move(d) for d in (0.1, 0.2, 0.3, 0.4, 0.5)), STOP])
    np.testing.assert_allclose(demo.actions[:, 0], executed(demo))
    np.testing.assert_allclose(executed(demo), [0.1, 0.2, 0.3])
    assert demo.facts["held_ticks"] == 2


def test_without_a_command_the_arm_is_told_to_stay_and_nothing_is_recorded(clock: FakeClock) -> None:
    (demo,) = record(ToyRobot(clock, POINT), [START, move(0.5, grip=0.0), NOTHING, NOTHING, move(0.25, grip=0.0), STOP])
    np.testing.assert_allclose(demo.actions, [[0.5, 0.0], [0.25, 0.0]])
    assert demo.facts["rested_ticks"] == 2 and demo.facts["held_ticks"] == 0


def test_a_gripper_that_begins_closed_stays_closed_while_the_person_waits(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT, grip=0.0)
    record(robot, [START, NOTHING, NOTHING, STOP])
    assert robot.grip == 0.0


def test_a_lost_tick_ends_an_episode_and_another_begins_behind_it(clock: FakeClock) -> None:
    """When ticks 2 and 3 are lost, steps 1 to 3 are missing, since the observation before step 3 is lost, too."""
    before, after = record(ToyRobot(clock, POINT, lost=(2, 3)), [START, *[move(0.1)] * 5, STOP])
    assert (before.steps.tolist(), after.steps.tolist()) == ([0], [4, 5, 6])
    np.testing.assert_allclose(np.diff(after.states[:, 0]), executed(after)[:-1])
    for part, demo in enumerate((before, after), start=1):
        assert demo.facts["dropped_frames"] == 3
        assert (demo.facts["part"], demo.facts["parts"]) == (part, 2)
    assert after.facts["rate_hz"] == pytest.approx(RATE_HZ)


def test_a_controller_that_is_slow_for_a_moment_records_every_tick(clock: FakeClock) -> None:
    (demo,) = record(ToyRobot(clock, POINT, slow_by=2), [START, move(0.1), move(0.2), STOP])
    assert demo.steps.tolist() == [0, 3]  # between them the arm had no action, and rested
    np.testing.assert_allclose(demo.states[:, 0], [0.0, 0.1])
    np.testing.assert_allclose(demo.actions[:, 0], executed(demo))
    assert demo.facts["held_ticks"] == 4


def test_the_persons_own_e_stop_is_released_by_start(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT)
    demos = record(robot, [START, move(0.5), E_STOP, NOTHING, START, move(0.25), STOP])
    assert robot.log == ["begin 7", "stop", "arm", "begin 7", "end"]
    assert len(demos) == 1 and executed(demos[0]).tolist() == [0.25]


def test_a_stop_by_another_client_ends_the_session_and_the_message_names_arm(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT, trips_at=2)
    with pytest.raises(WorldError, match=r"stopped the arm: a finger.*--arm"):
        record(robot, [START, move(0.5), move(0.5), move(0.5)])


def test_a_finished_episode_stays_when_a_later_one_fails(clock: FakeClock) -> None:
    robot, writer = ToyRobot(clock, POINT), Kept()
    said = [START, move(0.5), STOP, START, move(0.5), move(0.5)]
    session = Session(LiveRobot(robot, clock), ScriptedTeleoperator(said), writer, "a person", clock=clock)
    robot.trips_at = 2
    with pytest.raises(WorldError):
        session.record(itertools.count(7), 2, lambda: False)
    assert len(writer.demos) == 1


def test_a_silent_robot_raises_an_error(clock: FakeClock) -> None:
    with pytest.raises(TransportError, match="silent for 5"):
        LiveRobotDrive(ToyRobot(clock, POINT, silent=True)).until_it_raises()


class LiveRobotDrive:
    """A driver that sends the same action until an error is raised."""

    def __init__(self, robot: ToyRobot) -> None:
        self.live = LiveRobot(robot, robot.clock)
        self.observation = self.live.begin(0)

    def until_it_raises(self) -> None:
        for _ in range(round(SILENCE_S * 100)):
            self.observation = self.live.advance(self.observation, np.array([0.1, 1.0])).observation


def test_on_an_interrupt_the_arm_holds_and_the_running_episode_is_discarded(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT)
    assert record(robot, [START, move(0.5), move(0.5)]) == []
    assert robot.log[-1] == "end" and not robot.running


def test_an_episode_that_the_robot_ends_is_kept(clock: FakeClock) -> None:
    robot = ToyRobot(clock, POINT, horizon=2)
    (demo,) = record(robot, [START, move(0.5), move(0.5), move(0.5)])
    assert len(demo) == 2 and robot.log == ["begin 7"]
