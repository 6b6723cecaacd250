"""Tests of driving with a simulated leader arm: the arm's tool repeats the leader's motion and never jumps."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import ContractError, TeleopError
from vla_robot.core.geometry import IDENTITY_QUAT, quat_from_rotvec, rotate, rotvec_between
from vla_robot.core.messages import Observation, Vector
from vla_robot.teleop.leader import GAP_NS, LAG_S, LOST_READS, LeaderMotion

conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("teleop.conftest"))]
RATE_HZ = 10.0


class Held:
    """A leader whose joints are its tool's position and rotation vector."""

    def __init__(self) -> None:
        self.joints, self.opening, self.fails, self.closed = np.zeros(6), 1.0, 0, False

    def read(self) -> tuple[Vector, Vector]:
        if self.fails:
            self.fails -= 1
            raise TeleopError("the leader does not answer")
        return self.joints.copy(), np.array([self.opening])

    def close(self) -> None:
        self.closed = True


class Free:
    """The kinematics of `Held`."""

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        return joints[:3], quat_from_rotvec(joints[3:])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NS_PER_S)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def motion(held: Held, clock: FakeClock) -> LeaderMotion:
    motion = LeaderMotion(held, Free(), conftest.embodiment(RATE_HZ), clock=clock)
    motion.wake()
    return motion


def drive(motion: LeaderMotion, clock: FakeClock, ticks: int) -> tuple[Vector, Vector]:
    """Return the sum of the arm's actions: (3,) displacement and (4,) rotation of its tool."""
    position, quat = np.zeros(3), IDENTITY_QUAT
    for _ in range(ticks):
        clock.advance_ns(round(NS_PER_S / RATE_HZ))
        action = motion.move().action
        assert action is not None
        assert np.all(np.abs(action[:3]) <= conftest.STEP_M) and np.all(np.abs(action[3:6]) <= conftest.STEP_RAD)
        position, quat = position + action[:3], rotate(quat, action[3:6])
    return position, quat


def test_nothing_moves_when_driving_starts_wherever_the_leader_is(motion: LeaderMotion, held: Held) -> None:
    held.joints[:] = [0.3, -0.2, 0.5, 0.0, 1.0, 2.0]
    held.opening = 0.2
    action = motion.move().action
    assert action is not None
    np.testing.assert_allclose(action, [0, 0, 0, 0, 0, 0, 1])  # the arm keeps its own grip


def test_the_arm_does_what_the_leader_does(motion: LeaderMotion, held: Held, clock: FakeClock) -> None:
    held.joints[:] = [0.1, 0.1, 0.1, 0.0, 0.5, 0.0]
    drive(motion, clock, 1)
    held.joints[:3] += [0.12, -0.07, 0.2]
    held.joints[3:] = [0.0, 0.5, 0.0]
    position, quat = drive(motion, clock, 8)
    np.testing.assert_allclose(position, [0.12, -0.07, 0.2], atol=1e-9)
    np.testing.assert_allclose(rotvec_between(IDENTITY_QUAT, quat), 0, atol=1e-9)


@pytest.mark.parametrize("turn", [[0.7, 0.0, 0.0], [0.0, -1.2, 0.0], [0.4, 0.5, -0.6], [0.0, 0.0, 3.0]])
def test_turns_end_where_the_leader_turned_to(
    motion: LeaderMotion, held: Held, clock: FakeClock, turn: list[float]
) -> None:
    drive(motion, clock, 1)
    held.joints[3:] = turn
    _, quat = drive(motion, clock, 12)
    np.testing.assert_allclose(rotvec_between(quat, quat_from_rotvec(np.array(turn))), 0, atol=1e-9)


def test_a_leader_that_turned_round_and_round_is_followed(motion: LeaderMotion, held: Held, clock: FakeClock) -> None:
    drive(motion, clock, 1)
    total = 0.0
    for angle in np.linspace(0, 4 * np.pi, 80)[1:]:
        held.joints[5] = angle
        clock.advance_ns(round(NS_PER_S / RATE_HZ))
        action = motion.move().action
        assert action is not None
        total += action[5]
    assert total == pytest.approx(4 * np.pi)


def test_a_fast_leader_is_followed_by_no_more_than_lag_s(motion: LeaderMotion, held: Held, clock: FakeClock) -> None:
    drive(motion, clock, 1)
    held.joints[0] = 5.0
    position, _ = drive(motion, clock, 100)
    most = LAG_S * RATE_HZ * conftest.STEP_M
    assert position[0] == pytest.approx(most + conftest.STEP_M, abs=conftest.STEP_M)


def test_the_clutch_moves_the_leader_alone(motion: LeaderMotion, held: Held, clock: FakeClock) -> None:
    drive(motion, clock, 1)
    assert motion.press("c") and motion.move().action is None
    held.joints[:3] = [0.4, 0.4, 0.4]
    assert motion.move().action is None and "clutch" in motion.standing
    motion.press("c")
    position, _ = drive(motion, clock, 3)
    np.testing.assert_allclose(position, 0)
    held.joints[0] += 0.03
    np.testing.assert_allclose(drive(motion, clock, 1)[0], [0.03, 0, 0])


def test_after_a_pause_the_arm_does_not_jump(motion: LeaderMotion, held: Held, clock: FakeClock) -> None:
    drive(motion, clock, 1)
    held.joints[1] = 0.3
    clock.advance_ns(GAP_NS)  # the world was reset meanwhile
    np.testing.assert_allclose(drive(motion, clock, 3)[0], 0)


def test_rest_holds_until_wake(motion: LeaderMotion) -> None:
    assert motion.move().action is not None
    motion.rest()
    assert motion.move().action is None
    motion.wake()
    assert motion.move().action is not None


def test_a_policys_grip_is_kept_until_the_hand_moves_the_trigger(
    motion: LeaderMotion, held: Held, clock: FakeClock
) -> None:
    motion.grip(np.zeros(7))
    held.opening = 0.9
    assert grip_of(motion) == 0.0
    held.opening = 0.8
    assert grip_of(motion) == 0.0
    held.opening = 0.4
    assert grip_of(motion) == 0.4
    held.opening = 0.85
    assert grip_of(motion) == 0.85


def grip_of(motion: LeaderMotion) -> float:
    action = motion.move().action
    assert action is not None
    return float(action[-1])


class Arm:
    """A simulated tool, in the arm's base frame.

    Attributes:
        does: share of each step that the tool executes; the rest is lost, since steps begin at the tool's pose. None:
            steps move a target, which the tool follows with a lag, and nothing is lost.
    """

    def __init__(self, does: float | None) -> None:
        self.does = does
        self.position, self.target = np.array([0.4, 0.0, 0.2]), np.array([0.4, 0.0, 0.2])
        self.quat = self.target_quat = quat_from_rotvec(np.array([0.0, 3.0, 0.0]))
        self.step = 0

    def act(self, action: Vector) -> Observation:
        self.step += 1
        if self.does is not None:
            self.position = self.position + self.does * action[:3]
            self.quat = rotate(self.quat, self.does * action[3:6])
        else:
            self.target, self.target_quat = self.target + action[:3], rotate(self.target_quat, action[3:6])
            self.position = self.position + 0.5 * (self.target - self.position)
            self.quat = rotate(self.quat, 0.5 * rotvec_between(self.quat, self.target_quat))
        return self.look()

    def look(self) -> Observation:
        state = np.concatenate([self.position, rotvec_between(IDENTITY_QUAT, self.quat)])
        return Observation({}, state, "", self.step, self.step)


@pytest.mark.parametrize("rate_hz", [10.0, 30.0])
@pytest.mark.parametrize("does", [0.45, 1.0, None])
def test_the_arm_ends_where_the_leader_leads_it_for_steps_from_the_pose_and_from_the_target(
    held: Held, clock: FakeClock, does: float | None, rate_hz: float
) -> None:
    state = tuple(Dim(name, "1", -10.0, 10.0) for name in ("x", "y", "z", "rx", "ry", "rz"))
    motion = LeaderMotion(held, Free(), replace(conftest.embodiment(rate_hz), state=state), clock=clock)
    motion.wake()
    arm = Arm(does)
    start, start_quat = arm.position.copy(), arm.quat
    led, turn = np.array([0.15, -0.1, 0.05]), np.array([0.3, 0.0, -0.8])
    leading = round(2 * rate_hz)
    furthest = 0.0
    for tick in range(5 * leading):
        share = min(max(tick - 2, 0) / leading, 1.0)
        held.joints[:] = np.concatenate([share * led, share * turn])
        clock.advance_ns(round(NS_PER_S / rate_hz))
        action = motion.move().action
        assert action is not None
        motion.see(arm.act(action))
        furthest = max(furthest, float((arm.position - start) @ led / (led @ led)))
    np.testing.assert_allclose(arm.position - start, led, atol=0.002)
    np.testing.assert_allclose(rotvec_between(start_quat, arm.quat), turn, atol=0.01)
    assert furthest < 1.1  # it overshoots by less than 10 %


def test_a_blocked_arm_turns_back_with_the_leader(held: Held, clock: FakeClock) -> None:
    state = tuple(Dim(name, "1", -10.0, 10.0) for name in ("x", "y", "z", "rx", "ry", "rz"))
    motion = LeaderMotion(held, Free(), replace(conftest.embodiment(RATE_HZ), state=state), clock=clock)
    motion.wake()
    arm = Arm(1.0)
    asked: list[float] = []
    for tick in range(230):
        # The leader moves two metres into a wall, then back by the largest lag.
        held.joints[0] = 0.02 * min(tick, 100) - (LAG_S * RATE_HZ * conftest.STEP_M + 0.1 if tick > 200 else 0.0)
        clock.advance_ns(round(NS_PER_S / RATE_HZ))
        action = motion.move().action
        assert action is not None
        asked.append(float(action[0]))
        motion.see(arm.look())
    assert asked[150] > 0 and asked[-1] < 1e-9


def test_a_small_leader_leads_a_large_arm_that_it_faces(held: Held, clock: FakeClock) -> None:
    motion = LeaderMotion(held, Free(), conftest.embodiment(RATE_HZ), scale=2.0, turn_deg=180.0, clock=clock)
    motion.wake()
    drive(motion, clock, 1)
    held.joints[:] = [0.05, 0.01, 0.02, 0.3, 0.0, 0.2]
    position, quat = drive(motion, clock, 5)
    np.testing.assert_allclose(position, [-0.1, -0.02, 0.04], atol=1e-9)
    np.testing.assert_allclose(rotvec_between(IDENTITY_QUAT, quat), [-0.3, 0.0, 0.2], atol=1e-9)


def test_after_one_lost_answer_the_arm_rests_and_after_many_an_error_is_raised(
    motion: LeaderMotion, held: Held, clock: FakeClock
) -> None:
    drive(motion, clock, 1)
    held.fails = 1
    assert motion.move().action is None
    assert motion.move().action is not None
    held.fails = LOST_READS
    with pytest.raises(TeleopError, match="does not answer"):
        for _ in range(LOST_READS):
            motion.move()


def test_an_arm_that_takes_joint_angles_is_refused(held: Held) -> None:
    with pytest.raises(ContractError, match="moves the tool"):
        LeaderMotion(held, Free(), conftest.embodiment(kind="joint_position"))
