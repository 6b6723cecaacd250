"""Drives an arm with a leader arm: the arm's tool repeats the motion of the leader's tool, from its own pose.

    anchor     pose of the leader's tool when driving starts; the arm's tool does not move then
    wanted     motion of the leader's tool since the anchor, times scale, turned by turn_deg
    asked      sum of the steps that were sent
    slip       asked - measured motion of the arm's tool, where the arm's state holds its tool's pose
    action     wanted - asked, plus a share of the slip, clamped to the largest step of the arm

Some worlds add a step to the measured pose of the tool, and lose the distance by which it lags (robosuite executes 45 %
of each step); others add it to the last target, and lose nothing. The share of the slip that is added at each tick is
small enough not to disturb the latter.

An arm that is slower than its leader catches up, but by no more than LAG_S at full speed: motion beyond that is
dropped, so that the arm does not move on long after the leader is at rest. The clutch (c) lets a person move the leader
alone, back to a comfortable pose, as one lifts a mouse; engaging it sets a new anchor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vla_robot.core.clock import NS_PER_MS, Clock, MonotonicClock
from vla_robot.core.embodiment import GRIPPER_OPEN, ActionSpace, Embodiment
from vla_robot.core.errors import TeleopError
from vla_robot.core.geometry import IDENTITY_QUAT, matrix_from_rotvec, quat_from_rotvec, rotate, rotvec_between
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import Kinematics, LeaderArm
from vla_robot.core.teleop_device import AXES, require_drivable
from vla_robot.teleop.motion import MotionCommand

LAG_S = 1.0
"""The arm may lag behind the leader by the distance that it covers in this time at full speed."""

GAP_NS = 500 * NS_PER_MS
"""After a pause of this long, as for a reset, the arm may have another pose: a new anchor is set."""

GRIP_SLACK = 0.15
"""The arm keeps its own grip until the leader's gripper has moved by this share of its range."""

SLIP_PER_S = 2.0
"""Share of the slip that is corrected per second. The motion stays damped if the arm follows within 0.2 s, network
included."""

POSE = ("x", "y", "z", "rx", "ry", "rz")
"""Names in an arm's state of its tool's position [m] and axis times angle [rad], in its base frame."""

LOST_READS = 10
"""After one failed read the arm rests for a period; after this many in a row the device counts as disconnected."""


class PatientReads:
    """Reads a leader arm, and bears LOST_READS failures in a row."""

    def __init__(self, leader: LeaderArm) -> None:
        self._leader = leader
        self._lost = 0

    def next(self) -> tuple[Vector, Vector] | None:
        """Return the leader's joints (J,) [rad] and openings (G,); None where this read failed.

        Raises:
            TeleopError: the leader is disconnected.
        """
        try:
            reading = self._leader.read()
        except TeleopError:
            self._lost += 1
            if self._lost >= LOST_READS:
                raise
            return None
        self._lost = 0
        return reading


@dataclass
class Anchor:
    """The leader's pose when driving started, and the motion that was sent since.

    Attributes:
        position: (3,) position of the leader's tool in the leader's base frame [m].
        quat: (4,) orientation of the leader's tool.
        opening: opening of the leader's gripper, 0 closed to 1 open.
        done_m: (3,) part of the leader's translation that was sent or dropped, in the arm's base frame [m].
        done_quat: (4,) part of the leader's rotation that was sent or dropped.
        asked_m: (3,) sum of the translations that were sent [m].
        asked_quat: (4,) product of the rotations that were sent.
        arm_m: (3,) position of the arm's tool at its first observation [m]; None before it, or where the arm's state
            lacks its tool's pose.
        arm_quat: (4,) orientation of the arm's tool at that observation.
        has_grip: whether the leader's gripper was moved, so that the arm's gripper follows it.
    """

    position: Vector
    quat: Vector
    opening: float
    done_m: Vector = field(default_factory=lambda: np.zeros(3))
    done_quat: Vector = field(default_factory=lambda: IDENTITY_QUAT)
    asked_m: Vector = field(default_factory=lambda: np.zeros(3))
    asked_quat: Vector = field(default_factory=lambda: IDENTITY_QUAT)
    arm_m: Vector | None = None
    arm_quat: Vector = field(default_factory=lambda: IDENTITY_QUAT)
    has_grip: bool = False


class LeaderMotion:
    """The port TeleopDevice for a leader arm."""

    help = (("leader arm", "leads the tool and the gripper"), ("c", "clutch: move the leader alone"))

    def __init__(
        self,
        leader: LeaderArm,
        model: Kinematics,
        embodiment: Embodiment,
        *,
        scale: float = 1.0,
        turn_deg: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            leader: the leader arm; `close` closes it.
            model: the leader's forward kinematics.
            embodiment: the embodiment of the arm that is led.
            scale: metres that the arm's tool moves per metre of the leader's.
            turn_deg: angle of the leader's base against the arm's, about the vertical [degrees].
            clock: measures pauses between commands; the monotonic clock when None.

        Raises:
            ContractError: the arm's actions are no motions of its tool.
        """
        require_drivable(embodiment.action)
        self._leader, self._model = leader, model
        self._reads = PatientReads(leader)
        self._space = embodiment.action
        self._low, self._high = _step_limits(embodiment.action)
        self._most_behind = LAG_S * embodiment.rate_hz * self._high
        self._share_of_slip = SLIP_PER_S / embodiment.rate_hz
        names = [dim.name for dim in embodiment.state]
        self._pose_at = [names.index(name) for name in POSE] if set(POSE) <= set(names) else None
        self._slip = np.zeros(6)
        self._scale = scale
        self._R_arm_leader = matrix_from_rotvec(np.array([0.0, 0.0, np.radians(turn_deg)]))
        self._clock = clock or MonotonicClock()
        self._engaged = False
        self._anchor: Anchor | None = None
        self._moved_ns = 0
        self._grip = GRIPPER_OPEN

    @property
    def standing(self) -> str:
        return f"{'engaged' if self._engaged else 'clutch is out: c engages it'}, gripper {self._grip:.0%} open"

    def press(self, key: str) -> bool:
        if key != "c":
            return False
        self._engaged, self._anchor = not self._engaged, None
        return True

    def see(self, observation: Observation) -> None:
        if observation.step == 0:
            self._grip = GRIPPER_OPEN
        self._slip = np.zeros(6)
        if self._anchor is not None and self._pose_at is not None:
            pose = observation.state[self._pose_at]
            self._slip = self._slipped(self._anchor, pose[:3], quat_from_rotvec(pose[3:]))

    def move(self) -> MotionCommand:
        now_ns, before_ns = self._clock.now_ns(), self._moved_ns
        self._moved_ns = now_ns
        reading = self._reads.next()
        if not self._engaged or reading is None:
            self._anchor = None
            return MotionCommand(None)
        joints, openings = reading
        opening = float(openings[-1])
        position, quat = self._model.pose(joints)
        if self._anchor is None or now_ns - before_ns >= GAP_NS:
            self._anchor, self._slip = Anchor(position, quat, opening), np.zeros(6)
        return MotionCommand(self._step(self._anchor, position, quat, opening))

    def rest(self) -> None:
        self._engaged, self._anchor = False, None

    def wake(self) -> None:
        self._engaged, self._anchor = True, None

    def grip(self, executed: Vector) -> None:
        self._grip = float(executed[-1])

    def close(self) -> None:
        self._leader.close()

    def _step(self, anchor: Anchor, position: Vector, quat: Vector, opening: float) -> Vector:
        """Return the next action towards the leader's pose, (D,), and add it to the anchor's sums."""
        wanted_m = self._scale * self._R_arm_leader @ (position - anchor.position)
        turn = self._R_arm_leader @ rotvec_between(anchor.quat, quat)
        wanted_quat = quat_from_rotvec(turn)
        behind = np.concatenate([wanted_m - anchor.done_m, rotvec_between(anchor.done_quat, wanted_quat)])
        follows = np.clip(behind, self._low, self._high)
        given_up = behind - np.clip(behind, -self._most_behind, self._most_behind)
        anchor.done_m = anchor.done_m + (follows + given_up)[:3]
        anchor.done_quat = rotate(anchor.done_quat, (follows + given_up)[3:])
        anchor.asked_m = anchor.asked_m + follows[:3]
        anchor.asked_quat = rotate(anchor.asked_quat, follows[3:])
        step = np.clip(follows + self._share_of_slip * self._slip, self._low, self._high)
        anchor.has_grip |= abs(opening - anchor.opening) > GRIP_SLACK
        self._grip = opening if anchor.has_grip else self._grip
        share = dict(zip(AXES, step.tolist(), strict=True))
        return np.array([*(share[dim.name] for dim in self._space.dims[:-1]), self._grip])

    def _slipped(self, anchor: Anchor, position: Vector, quat: Vector) -> Vector:
        """Return the motion that was sent since the anchor but not measured, (6,) [m, rad].

        The first call stores the arm's pose in the anchor.
        """
        if anchor.arm_m is None:
            anchor.arm_m, anchor.arm_quat = position, quat
        turn = rotvec_between(anchor.arm_quat, quat)
        missing = np.concatenate(
            [anchor.asked_m - (position - anchor.arm_m), rotvec_between(quat_from_rotvec(turn), anchor.asked_quat)]
        )
        kept = np.clip(missing, -self._most_behind, self._most_behind)
        anchor.asked_m = anchor.asked_m + (kept - missing)[:3]  # an obstacle may block the arm: drop what is beyond
        return kept


def _step_limits(space: ActionSpace) -> tuple[Vector, Vector]:
    """Return the smallest and largest step along AXES, each (6,) [m, rad]; 0 for an axis that the arm lacks."""
    dims = {dim.name: dim for dim in space.dims}
    low = np.array([dims[name].low if name in dims else 0.0 for name in AXES])
    high = np.array([dims[name].high if name in dims else 0.0 for name in AXES])
    return low, high
