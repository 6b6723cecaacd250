"""The arm led by another arm: what the leader's tool does since driving started, the arm's tool does from where it is.

    anchor     the leader's tool, the moment that driving starts        nothing moves: the arm's tool is taken as it is
    wanted     how far the leader's tool has moved and turned since     times scale, turned by turn_deg
    asked      the sum of the steps that were asked for
    slip       asked - what the arm's tool has really done, where the arm tells where its tool is
    action     wanted - asked, and a little of the slip; no more than a step of the arm allows

Some worlds take a step from where the tool is, and lose what it lags behind (robosuite does 45 % of what is asked for);
others take it from the last target, and lose nothing. The share of the slip that is made good at each tick is small
enough not to disturb those.

The arm catches up with a leader that is faster than it, but never by more than LAG_S at full speed: what is beyond is
given up, so that an arm does not travel on long after the hand has come to rest. The clutch (c) lets the hand move the
leader back to where it is comfortable, as one lifts a mouse; engaging it sets the anchor anew.
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
"""How far the arm may be behind: what it makes good in so long."""

GAP_NS = 500 * NS_PER_MS
"""After a pause of this long, as for a reset, the arm may be elsewhere: the anchor is set anew."""

GRIP_SLACK = 0.15
"""The leader's gripper takes over when it was moved by so much of its way: until then the arm keeps its own grip."""

SLIP_PER_S = 2.0
"""Share of the slip that is made good in a second. An arm that follows within 0.2 s, network included, stays damped."""

POSE = ("x", "y", "z", "rx", "ry", "rz")
"""What an arm's state calls its tool's position [m] and axis times angle [rad], in its base's frame."""

LOST_READS = 10
"""One answer that is lost on the bus lets the arm rest for a period; so many in a row are a cable that is out."""


@dataclass
class Anchor:
    """Where driving started, and what was asked for since.

    Attributes:
        position: (3,) of the leader's tool [m].
        quat: (4,) of the leader's tool.
        opening: of the leader's gripper, 0 to 1.
        done_m: (3,) what of the leader's way was asked for, or given up [m].
        done_quat: (4,) the same of its turns, as one.
        asked_m: (3,) sum of the steps that were asked for [m].
        asked_quat: (4,) the same of the turns.
        arm_m: (3,) where the arm's tool was; None before it was seen, or where the arm does not tell [m].
        arm_quat: (4,) its orientation then.
        has_grip: the leader's gripper was moved, and is followed.
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
    """The TeleopDevice port over a leader arm."""

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
            leader: closed with this.
            model: its joints and lengths.
            embodiment: of the arm that is led.
            scale: metres of the arm for one of the leader.
            turn_deg: of the leader's base against the arm's, about the vertical [degrees].
            clock: tells of pauses.

        Raises:
            ContractError: a hand cannot drive this arm.
        """
        require_drivable(embodiment.action)
        self._leader, self._model = leader, model
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
        self._lost = 0

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
        reading = self._read()
        if not self._engaged or reading is None:
            self._anchor = None
            return MotionCommand(None)
        joints, opening = reading
        position, quat = self._model.pose(joints)
        if self._anchor is None or now_ns - before_ns >= GAP_NS:
            self._anchor, self._slip = Anchor(position, quat, opening), np.zeros(6)
        return MotionCommand(self._step(self._anchor, position, quat, opening))

    def rest(self) -> None:
        self._engaged, self._anchor = False, None

    def wake(self) -> None:
        self._engaged, self._anchor = True, None

    def grip(self, opening: float) -> None:
        self._grip = opening

    def close(self) -> None:
        self._leader.close()

    def _read(self) -> tuple[Vector, float] | None:
        try:
            reading = self._leader.read()
        except TeleopError:
            self._lost += 1
            if self._lost >= LOST_READS:
                raise
            return None
        self._lost = 0
        return reading

    def _step(self, anchor: Anchor, position: Vector, quat: Vector, opening: float) -> Vector:
        """(D,) the next action towards where the leader is; what it asks for is noted as done."""
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
        """(6,) what was asked for since the anchor, and not done; the first look is where the arm began."""
        if anchor.arm_m is None:
            anchor.arm_m, anchor.arm_quat = position, quat
        turn = rotvec_between(anchor.arm_quat, quat)
        missing = np.concatenate(
            [anchor.asked_m - (position - anchor.arm_m), rotvec_between(quat_from_rotvec(turn), anchor.asked_quat)]
        )
        kept = np.clip(missing, -self._most_behind, self._most_behind)
        anchor.asked_m = anchor.asked_m + (kept - missing)[:3]  # something is in the way: it is not asked for for ever
        return kept


def _step_limits(space: ActionSpace) -> tuple[Vector, Vector]:
    """(6,) smallest and largest step of each axis; nothing for an axis that the arm lacks."""
    dims = {dim.name: dim for dim in space.dims}
    low = np.array([dims[name].low if name in dims else 0.0 for name in AXES])
    high = np.array([dims[name].high if name in dims else 0.0 for name in AXES])
    return low, high
