"""Tests of the set points that motors get between two ticks of the control clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import ActionChunk, Clamp, Observation, StepResult, Vector
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, EpisodeBegan, EpisodeOver, Ticked
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.testing import ToyArm, toy_embodiment
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL
from vla_robot.transport.wire import Buffer, Message, decode, encode
from vla_robot.world.real.set_points import SetPoints, StreamBounds, StreamedArm
from vla_robot.world.real.smooth import MotionBounds

DIMS = tuple(Dim(f"joint_{i}", "rad", -2.0, 2.0) for i in range(3))
EMBODIMENT = toy_embodiment(axes=DIMS, state=DIMS, kind="joint_position", cameras=())
NAMES = (*(dim.name for dim in DIMS), "gripper")
BOUNDS = StreamBounds(MotionBounds(1.5, 30.0, 2000.0), np.full(3, -2.0), np.full(3, 2.0), 3.0, NAMES)


@dataclass
class RecordingMotors:
    """Motors that follow at once, and record what they are sent and when."""

    clock: FakeClock
    at: Vector = field(default_factory=lambda: np.zeros(4))
    sent: list[Vector] = field(default_factory=list[Vector])
    sent_ns: list[int] = field(default_factory=list[int])
    raises: Exception | None = None

    def read(self) -> tuple[Vector, Vector]:
        return self.at[:-1], self.at[-1:]

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        if self.raises is not None:
            raise self.raises
        self.at = np.append(joints, openings)
        self.sent.append(self.at)
        self.sent_ns.append(self.clock.now_ns())
        return joints, openings


class JointArm(ToyArm):
    """An arm that takes joint angles and has no camera."""

    def __init__(self, motors: SetPoints, clock: FakeClock) -> None:
        super().__init__(clock, EMBODIMENT, can_wait=False)
        self.motors = motors

    def command(self, action: Vector) -> StepResult:
        self.motors.send(action[:-1], action[-1:])
        return super().command(action)

    def _observe(self) -> Observation:
        return replace(super()._observe(), state=self.motors.read()[0])


@dataclass
class Silence:
    """A socket of one controller that begins an episode and is then silent; time passes while the server waits."""

    clock: FakeClock
    said: list[Message] = field(
        default_factory=lambda: [Message("hello", 1, {"protocol": BRIDGE_PROTOCOL, "wanted": {}})]
    )

    def receive(self, timeout_s: float) -> tuple[bytes, list[Buffer]] | None:
        if self.said:
            return b"desk", encode(self.said.pop(0))
        self.clock.advance_ns(max(round(timeout_s * NS_PER_S), 1))
        return None

    def send(self, peer: bytes, frames: list[Buffer]) -> bool:
        session = decode(frames).body.get("session")
        if session:
            self.said.append(Message("reset", 2, {"session": session, "episode": 1, "seed": 0, "lockstep": False}))
        return True

    def user_of(self, peer: bytes) -> str:
        return ""


class Rig:
    """A bridge over a `JointArm`, driven by random goals within its range."""

    def __init__(self, command_rate_hz: float) -> None:
        self.clock = FakeClock(1000 * NS_PER_S)
        self.motors = RecordingMotors(self.clock)
        self.stream = SetPoints(self.motors, EMBODIMENT.rate_hz, command_rate_hz, BOUNDS, self.clock)
        self.arm = JointArm(self.stream, self.clock)
        limits = SafetyFilter(EMBODIMENT, limits_of(EMBODIMENT, LimitsRecipe()))
        streamed = StreamedArm(self.arm, self.stream)
        self.bridge = Bridge(streamed, limits, Watchdog(self.clock), self.clock, listener=self._drive)
        self.server = BridgeServer(self.bridge, Silence(self.clock), self.clock)
        self.rng = np.random.default_rng(0)

    def play(self, seconds: float) -> None:
        end_ns = self.clock.now_ns() + round(seconds * NS_PER_S)
        self.server.serve(lambda: self.clock.now_ns() >= end_ns)

    def _drive(self, event: EpisodeBegan | Ticked | EpisodeOver) -> None:
        """Answer every observation at once, with a heartbeat."""
        if isinstance(event, EpisodeOver):
            return
        observation = event.observation if isinstance(event, EpisodeBegan) else event.tick.result.observation
        self.bridge.watchdog.beat()
        goal = np.append(self.rng.uniform(-2, 2, 3), self.rng.uniform(0, 1))
        if self.bridge.running:
            self.bridge.put(ActionChunk(goal[None], observation.stamp_ns, observation.step))


def require_bounds(sent: list[Vector], rate_hz: float) -> None:
    """Assert the bounds of speed, acceleration and jerk of what the motors got, by differences."""
    path = np.array(sent)
    assert (path >= [-2, -2, -2, 0]).all() and (path <= [2, 2, 2, 1]).all()
    for order, bound in ((1, BOUNDS.joints.speed), (2, BOUNDS.joints.acceleration), (3, BOUNDS.joints.jerk)):
        derivative = np.diff(path[:, :3], order, axis=0) * rate_hz**order
        assert np.abs(derivative).max() <= bound * (1 + 1e-6), f"derivative {order}"


@pytest.mark.parametrize("rate_hz", [100.0, 250.0, 500.0])
def test_ten_goals_a_second_become_set_points_within_speed_acceleration_and_jerk(rate_hz: float) -> None:
    rig = Rig(rate_hz)
    rig.play(4.0)
    assert len(rig.motors.sent) >= 4.0 * rate_hz * 0.98
    gaps_s = np.diff(rig.motors.sent_ns) / NS_PER_S
    assert gaps_s.max() <= 1.5 / rate_hz
    assert np.abs(np.diff(np.array(rig.motors.sent)[:, :3], axis=0)).max() > 0.5 * BOUNDS.joints.speed / rate_hz
    require_bounds(rig.motors.sent, rate_hz)


def test_a_stop_ramps_down_within_the_bounds_and_ends_at_rest() -> None:
    rig = Rig(250.0)
    rig.play(2.05)
    assert not rig.bridge.running
    require_bounds(rig.motors.sent, 250.0)
    assert np.abs(rig.motors.sent[-1] - rig.motors.sent[-2]).max() < 1e-5


def test_a_goal_that_stays_is_reached_exactly() -> None:
    clock = FakeClock()
    motors = RecordingMotors(clock)
    stream = SetPoints(motors, 10.0, 100.0, BOUNDS, clock)
    stream.start(np.zeros(3), np.zeros(1))
    stream.send(np.array([0.1, -0.1, 5.0]), np.ones(1))
    for _ in range(300):
        stream.send_next()
    assert motors.sent[-1] == pytest.approx([0.1, -0.1, 2.0, 1.0], abs=1e-12)


def test_a_set_point_that_its_check_cuts_is_a_clamp_of_the_next_tick() -> None:
    rig = Rig(100.0)
    streamed, outside = StreamedArm(rig.arm, rig.stream), np.array([2.5, 0.0, 0.0])
    rig.arm.reset(0)
    rig.stream.start(outside, np.zeros(1))  # the arm was pushed out of its range
    streamed.send_set_point()
    assert streamed.command(np.zeros(4)).clamps == (Clamp("joint_0", "set_point", 2.5, 2.0),)
    assert streamed.command(np.zeros(4)).clamps == ()


def test_before_start_goals_pass_through_unchanged() -> None:
    clock = FakeClock()
    motors = RecordingMotors(clock)
    stream = SetPoints(motors, 10.0, 100.0, BOUNDS, clock)
    stream.send(np.array([1.0, 1.0, 1.0]), np.full(1, 0.5))
    assert motors.sent[0].tolist() == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "raised", [WorldError("the cable is out."), OSError(5, "the cable is out"), ValueError("the cable is out")]
)
def test_motors_that_fail_between_ticks_stop_the_arm_and_say_why(raised: Exception) -> None:
    rig = Rig(100.0)
    rig.motors.raises = raised
    rig.play(0.5)
    assert "the cable is out" in rig.server.status()["reason"]
    assert rig.server.status()["mode"] == "stopped" and rig.arm.stops, "the arm's own stop was not called"


def test_fewer_set_points_than_goals_are_refused() -> None:
    clock = FakeClock()
    with pytest.raises(ContractError, match="5 set points a second are too few for 10 goals a second"):
        SetPoints(RecordingMotors(clock), 10.0, 5.0, BOUNDS, clock)


def test_an_arm_that_is_blocked_is_stopped_in_its_own_way() -> None:
    rig = Rig(100.0)
    rig.motors.read = lambda: (np.full(3, -1.9), np.zeros(1))  # type: ignore[method-assign]
    rig.play(0.5)
    assert rig.arm.stops
