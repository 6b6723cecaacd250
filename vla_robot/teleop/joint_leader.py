"""Drives an arm in joint positions with a leader arm: the leader's joints are the arm's, as they are.

    engaged      the arm's joints go to the leader's at APPROACH_RAD_S, from the arm's own pose
    caught up    each action is the leader's joints [rad] and openings, unchanged

The clutch (c) lets a person move the leader alone; engaging it again begins with the approach. The grippers keep the
arm's grip until the leader's are moved, or are where the arm's are, so that an object is not dropped at a takeover.
"""

from __future__ import annotations

import numpy as np

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import LeaderArm
from vla_robot.teleop.leader import GRIP_SLACK, PatientReads
from vla_robot.teleop.motion import MotionCommand

APPROACH_RAD_S = 0.5
"""Speed of the approach [rad/s]: the fastest joint turns 29 degrees a second, as on the way home."""


class JointLeaderMotion:
    """The port TeleopDevice for a leader arm of an arm in joint positions."""

    help = (("leader arm", "its joints are the arm's"), ("c", "clutch: move the leader alone"))

    def __init__(self, leader: LeaderArm, embodiment: Embodiment) -> None:
        """
        Args:
            leader: the leader arm, whose joints and grippers are those of the action, in order; `close` closes it.
            embodiment: the embodiment of the arm that is led.

        Raises:
            ContractError: the arm takes no joint positions, or its state lacks one of its joints.
        """
        space = embodiment.action
        if space.kind != "joint_position":
            raise ContractError(f"this arm takes actions of kind '{space.kind}', but the device gives joint positions.")
        names = [dim.name for dim in embodiment.state]
        if missing := [name for name in space.names if name not in names]:
            raise ContractError(f"the arm's state lacks {', '.join(missing)}, from which the leader would begin.")
        self._leader, self._space = leader, space
        self._reads = PatientReads(leader)
        self._measured_at = [names.index(name) for name in space.names]
        self._is_grip = space.is_grip
        self._step_rad = APPROACH_RAD_S / embodiment.rate_hz
        self._arm: Vector | None = None
        self._grips: Vector | None = None
        self._engaged = False
        self._begin()

    @property
    def standing(self) -> str:
        if not self._engaged:
            return "clutch is out: c engages it"
        return "engaged" if self._at is None and self._anchor is not None else "engaged: the arm approaches the leader"

    def press(self, key: str) -> bool:
        if key != "c":
            return False
        self._engaged = not self._engaged
        self._begin()
        return True

    def see(self, observation: Observation) -> None:
        self._arm = observation.state[self._measured_at]
        if observation.step == 0:
            self._grips = None
            self._begin()

    def move(self) -> MotionCommand:
        reading = self._reads.next()
        if not self._engaged or reading is None or self._arm is None:
            return MotionCommand(None)
        wanted = np.empty(len(self._space))
        wanted[~self._is_grip], wanted[self._is_grip] = reading
        action = np.clip(wanted, self._space.low, self._space.high)
        if self._anchor is None:
            self._at, self._anchor = self._arm[~self._is_grip], action[self._is_grip]
        action[~self._is_grip] = self._approached(action[~self._is_grip])
        action[self._is_grip] = self._gripped(action[self._is_grip])
        return MotionCommand(action)

    def rest(self) -> None:
        self._engaged = False
        self._begin()

    def wake(self) -> None:
        self._engaged = True
        self._begin()

    def grip(self, executed: Vector) -> None:
        self._grips = executed[self._is_grip]

    def close(self) -> None:
        self._leader.close()

    def _begin(self) -> None:
        """Begin with the approach at the next reading."""
        self._at: Vector | None = None
        """(J,) joints that the approach has reached [rad]; None before it and when the arm has caught up."""
        self._anchor: Vector | None = None
        """(G,) openings of the leader when it was engaged; None before its first reading."""
        self._follows = np.zeros(int(self._is_grip.sum()), dtype=np.bool_)

    def _approached(self, joints: Vector) -> Vector:
        """Return the joints of this period: the leader's, or nearer to them by at most a step of the approach."""
        if self._at is None:
            return joints
        way = joints - self._at
        furthest = float(np.abs(way).max())
        if furthest <= self._step_rad:
            self._at = None
            return joints
        self._at = self._at + way * (self._step_rad / furthest)
        return self._at

    def _gripped(self, openings: Vector) -> Vector:
        """Return the openings of this period: the arm's own, until the leader's gripper takes each over."""
        assert self._anchor is not None and self._arm is not None
        own = self._arm[self._is_grip] if self._grips is None else self._grips
        moved = np.abs(openings - self._anchor) > GRIP_SLACK
        self._follows |= moved | (np.abs(openings - own) < GRIP_SLACK)
        self._grips = np.where(self._follows, openings, own)
        return self._grips
