"""Tests of a leader arm whose joints are the arm's."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import ContractError, TeleopError
from vla_robot.core.messages import Observation, Vector
from vla_robot.teleop.joint_leader import APPROACH_RAD_S, JointLeaderMotion
from vla_robot.teleop.leader import LOST_READS
from vla_robot.testing import toy_embodiment

DIMS = (
    Dim("left_elbow", "rad", -2.0, 2.0),
    Dim("left_gripper", "1", 0.0, 1.0),
    Dim("right_elbow", "rad", -2.0, 2.0),
    Dim("right_gripper", "1", 0.0, 1.0),
)
PAIR = toy_embodiment(axes=DIMS, gripper=None, kind="joint_position", state=DIMS, cameras=(), rate_hz=10.0)
STEP_RAD = APPROACH_RAD_S / 10.0


class Held:
    """A pair of leaders in two hands."""

    def __init__(self) -> None:
        self.joints: Vector = np.array([0.1, -0.2])
        self.openings: Vector = np.ones(2)
        self.fails, self.closed = 0, False

    def read(self) -> tuple[Vector, Vector]:
        if self.fails:
            self.fails -= 1
            raise TeleopError("the leader does not answer")
        return self.joints.copy(), self.openings.copy()

    def close(self) -> None:
        self.closed = True


def seen(*state: float, step: int = 1) -> Observation:
    return Observation({}, np.array(state), "lift", stamp_ns=1, step=step)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def motion(held: Held) -> JointLeaderMotion:
    motion = JointLeaderMotion(held, PAIR)
    motion.see(seen(0.1, 1.0, -0.2, 1.0))
    motion.wake()
    return motion


def moved(motion: JointLeaderMotion) -> Vector:
    action = motion.move().action
    assert action is not None
    return action


def test_the_leaders_joints_are_the_action_as_they_are(motion: JointLeaderMotion, held: Held) -> None:
    assert moved(motion).tolist() == [0.1, 1.0, -0.2, 1.0]
    held.joints, held.openings = np.array([1.234, 0.5]), np.array([0.25, 0.7])
    assert moved(motion).tolist() == [1.234, 0.25, 0.5, 0.7]


def test_the_arm_comes_to_the_leader_slowly_and_then_follows(motion: JointLeaderMotion, held: Held) -> None:
    motion.rest()
    motion.see(seen(0.1, 1.0, 0.2, 1.0))
    held.joints = np.array([0.1 + 3.5 * STEP_RAD, 0.2])
    motion.wake()
    way = [moved(motion)[0] for _ in range(5)]
    np.testing.assert_allclose(np.diff([0.1, *way]), [STEP_RAD] * 3 + [STEP_RAD / 2, 0.0], atol=1e-12)
    assert "approaches" not in motion.standing
    held.joints = np.array([1.0, 0.2])
    assert moved(motion)[0] == 1.0


def test_before_the_arm_was_seen_and_with_the_clutch_out_nothing_is_commanded(held: Held) -> None:
    motion = JointLeaderMotion(held, PAIR)
    motion.wake()
    assert motion.move().action is None
    motion.see(seen(0.0, 1.0, 0.0, 1.0))
    assert motion.move().action is not None
    assert motion.press("c") and motion.move().action is None
    assert not motion.press("x")


def test_joints_beyond_the_arms_range_end_there(motion: JointLeaderMotion, held: Held) -> None:
    moved(motion)
    held.joints = np.array([2.5, -0.2])
    assert moved(motion)[0] == 2.0


def test_a_grip_is_kept_until_the_hand_moves_it(motion: JointLeaderMotion, held: Held) -> None:
    motion.rest()
    motion.grip(np.array([0.0, 0.0, 0.0, 1.0]))  # the policy holds an object with its left arm
    motion.wake()
    held.openings = np.array([0.9, 0.95])
    assert moved(motion)[[1, 3]].tolist() == [0.0, 0.95]
    held.openings = np.array([0.85, 0.9])
    assert moved(motion)[[1, 3]].tolist() == [0.0, 0.9]
    held.openings = np.array([0.5, 0.9])
    assert moved(motion)[[1, 3]].tolist() == [0.5, 0.9]


def test_one_lost_answer_rests_and_a_lost_leader_is_told(motion: JointLeaderMotion, held: Held) -> None:
    held.fails = 1
    assert motion.move().action is None
    assert motion.move().action is not None
    held.fails = LOST_READS
    with pytest.raises(TeleopError, match="does not answer"):
        [motion.move() for _ in range(LOST_READS)]
    motion.close()
    assert held.closed


def test_an_arm_of_tool_steps_or_without_its_joints_in_the_state_is_refused(held: Held) -> None:
    with pytest.raises(ContractError, match="'eef_delta', but the device gives joint positions"):
        JointLeaderMotion(held, toy_embodiment())
    blind = toy_embodiment(axes=DIMS, gripper=None, kind="joint_position", state=DIMS[:2])
    with pytest.raises(ContractError, match="state lacks right_elbow, right_gripper"):
        JointLeaderMotion(held, blind)
