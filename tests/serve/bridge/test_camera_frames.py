"""Cameras of different rates behind a bridge, on a clock of the test: what crosses the wire, and what is seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.errors import RecipeError
from vla_robot.core.messages import Observation
from vla_robot.recipe.env import CameraRecipe, RobosuiteRecipe
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.camera_frames import NewestFrames
from vla_robot.serve.bridge.server import CREDIT, BridgeServer
from vla_robot.testing import ToyWorld, toy_embodiment
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL, unpack_tick
from vla_robot.transport.codec import MessageReader
from vla_robot.transport.wire import Buffer, Message, decode, encode
from vla_robot.world.sim.paced_cameras import PacedCameras

EMBODIMENT = toy_embodiment(cameras=("wrist", "base"), height=2, width=2, rate_hz=30.0)
BEAT_MS = 50


@dataclass
class Stepping(ToyWorld):
    """A world whose pixels say at which step they were captured, and in which a step takes no time."""

    captured_ns: list[int] = field(default_factory=list[int])

    def reset(self, seed: int) -> Observation:
        self.captured_ns.clear()
        return super().reset(seed)

    def _observe(self) -> Observation:
        self.captured_ns.append(self.clock.now_ns())
        return super()._observe()


class Wire:
    """The server's socket and, at its other end, a controller that only watches; ticks take `delay_ms` each way."""

    def __init__(self, clock: FakeClock, delay_ms: float = 0.0, tells: bool = True) -> None:
        self.clock = clock
        self.frames: Counter[str] = Counter()
        self.seen: list[Observation] = []
        self.lose: Callable[[int], bool] = lambda number: False
        self._delay_ns = round(delay_ms * NS_PER_MS)
        self._tells = tells
        self._newest = NewestFrames()
        self._number = 0
        self._due: list[tuple[int, Callable[[], None]]] = []
        self._in: list[tuple[bytes, Message]] = []
        self._session = ""
        self._post(b"desk", Message("hello", 1, {"protocol": BRIDGE_PROTOCOL, "wanted": {}}))

    def receive(self, timeout_s: float) -> tuple[bytes, list[Buffer]] | None:
        end_ns = self.clock.now_ns() + round(timeout_s * NS_PER_S)
        while not self._in and self._due and min(self._due, key=lambda d: d[0])[0] <= end_ns:
            event = min(self._due, key=lambda d: d[0])
            self._due.remove(event)
            self.clock.sleep_until_ns(event[0])
            event[1]()
        if self._in:
            peer, message = self._in.pop(0)
            return peer, encode(message)
        self.clock.sleep_until_ns(max(end_ns, self.clock.now_ns() + 1))
        return None

    def send(self, peer: bytes, frames: list[Buffer]) -> bool:
        message = decode([bytes(frame) for frame in frames])
        if message.kind == "tick":
            self.frames.update(message.body["tick"]["result"]["observation"]["images"].keys())
            if not self.lose(message.body["number"]):
                self._later(lambda: self._take(message))
        elif "session" in message.body:
            self._session = message.body["session"]
            self._beat()
            body = {"session": self._session, "episode": 1, "seed": 0, "lockstep": False}
            self._post(b"desk", Message("reset", 2, body))
        return True

    def user_of(self, peer: bytes) -> str:
        return ""

    def _take(self, message: Message) -> None:
        tick = unpack_tick(MessageReader(message.body["tick"], "tick"))
        observation = self._newest.complete(message.body["episode"], tick.result.observation)
        if observation is not None and message.body["number"] > self._number:
            self._number = message.body["number"]
            self.seen.append(observation)
        self._watch()

    def _beat(self) -> None:
        self._watch()
        self._due.append((self.clock.now_ns() + BEAT_MS * NS_PER_MS, self._beat))

    def _watch(self) -> None:
        there = {"frames": self._newest.stamps_ns} if self._tells else {}
        self._post(b"stream", Message("watch", 1, {"session": self._session, "seen": self._number, **there}))

    def _post(self, peer: bytes, message: Message) -> None:
        self._later(lambda: self._in.append((peer, message)))

    def _later(self, what: Callable[[], None]) -> None:
        self._due.append((self.clock.now_ns() + self._delay_ns, what))


@dataclass
class Rig:
    """A bridge over two cameras, wrist at 30 Hz and base at 10 Hz."""

    delay_ms: float = 0.0
    tells: bool = True

    def __post_init__(self) -> None:
        self.clock = FakeClock(1000 * NS_PER_S)
        self.world = Stepping(
            self.clock, EMBODIMENT, shade=lambda world: world.at_step, send_ms=0, step_ms=0, render_ms=0
        )
        self.wire = Wire(self.clock, self.delay_ms, self.tells)
        self.arm = WorldArm(PacedCameras(self.world, {"base": 10.0}))
        limits = SafetyFilter(EMBODIMENT, limits_of(EMBODIMENT, LimitsRecipe()))
        watchdog = Watchdog(self.clock, stop_after_s=3600.0)
        self.server = BridgeServer(Bridge(self.arm, limits, watchdog, self.clock), self.wire, self.clock)

    def play(self, seconds: float) -> None:
        end_ns = self.clock.now_ns() + round(seconds * NS_PER_S)
        self.server.serve(lambda: self.clock.now_ns() >= end_ns)


def require_truth(observation: Observation, world: Stepping) -> None:
    """Every frame is of the step that its stamp says, and the observation is as old as the oldest one."""
    assert set(observation.images) == {"wrist", "base"}
    for name, image in observation.images.items():
        captured_ns = world.captured_ns[int(image[0, 0, 0])]
        assert observation.stamps_ns[name] == captured_ns
    assert observation.stamp_ns == min(observation.stamps_ns.values())


@pytest.mark.parametrize("delay_ms", [0.0, 20.0])
def test_each_camera_crosses_the_wire_at_its_own_rate(delay_ms: float) -> None:
    rig = Rig(delay_ms)
    rig.play(4.0)
    steps = rig.world.at_step
    assert steps > 100
    assert rig.wire.frames["wrist"] == pytest.approx(steps + 1, abs=3)
    assert rig.wire.frames["base"] == pytest.approx(steps // 3 + 1, abs=2)


def test_between_steps_all_cameras_are_looked_through_at_once() -> None:
    rig = Rig()
    rig.arm.reset(0)
    rig.arm.hold()
    rig.clock.advance_ns(NS_PER_S)
    observation = rig.arm.look()
    assert observation.stamp_ns == rig.clock.now_ns()
    assert rig.arm.camera_stamps_ns == dict.fromkeys(("wrist", "base"), observation.stamp_ns)


def test_the_newest_frame_of_each_camera_is_seen_with_its_own_stamp() -> None:
    rig = Rig()
    rig.play(1.0)
    assert len(rig.wire.seen) > 25
    for observation in rig.wire.seen:
        require_truth(observation, rig.world)
        assert observation.images["wrist"][0, 0, 0] == observation.step
        assert observation.images["base"][0, 0, 0] == observation.step // 3 * 3


def test_a_lost_frame_comes_again_and_meanwhile_the_one_before_it_stands_in() -> None:
    rig = Rig()
    rig.wire.lose = lambda number: number == 4  # of step 3, the base camera's second frame
    rig.play(1.0)
    at = {observation.step: int(observation.images["base"][0, 0, 0]) for observation in rig.wire.seen}
    assert 3 not in at and at[4] == 0 and at[5] == 3 and at[6] == 6
    for observation in rig.wire.seen:
        require_truth(observation, rig.world)


def test_what_arrives_is_true_whatever_is_lost() -> None:
    rig, rng = Rig(delay_ms=20.0), np.random.default_rng(0)
    rig.wire.lose = lambda number: bool(rng.random() < 0.3)
    rig.play(8.0)
    assert len(rig.wire.seen) > 60
    for observation in rig.wire.seen:
        require_truth(observation, rig.world)
        assert observation.step - int(observation.images["base"][0, 0, 0]) < 30  # it never stays away
    assert [o.step for o in rig.wire.seen] == sorted(o.step for o in rig.wire.seen)


def test_a_first_frame_that_was_lost_is_waited_for() -> None:
    rig = Rig()
    rig.wire.lose = lambda number: number <= CREDIT
    rig.play(2.0)
    first = rig.wire.seen[0]
    assert first.step >= CREDIT
    require_truth(first, rig.world)
    assert len(rig.wire.seen) > 30


def test_a_controller_that_does_not_tell_what_it_has_gets_every_frame() -> None:
    rig = Rig(tells=False)
    rig.play(1.0)
    assert rig.wire.frames["wrist"] == rig.wire.frames["base"] > 25


def test_the_bridge_knows_how_old_each_camera_is() -> None:
    rig = Rig()
    rig.play(0.35)
    steps, captured_ns = rig.world.at_step, rig.world.captured_ns
    assert steps % 3
    assert rig.arm.camera_stamps_ns == {"wrist": captured_ns[steps], "base": captured_ns[steps // 3 * 3]}


def test_frames_of_another_episode_never_stand_in() -> None:
    frames, image = NewestFrames(), np.zeros((2, 2, 3), np.uint8)
    whole = Observation({"base": image}, np.zeros(1), "look", 5, 0, stamps_ns={"base": 5})
    lean = Observation({}, np.zeros(1), "look", 9, 1, stamps_ns={"base": 5})
    assert frames.complete(1, whole) is not None
    assert frames.complete(1, lean) is not None
    assert frames.complete(2, lean) is None


def test_a_camera_faster_than_its_world_is_refused() -> None:
    camera = CameraRecipe("wrist", source="eye", rate_hz=30.0)
    with pytest.raises(RecipeError, match=r"rate_hz 30, allowed are 0.1 to 10, the world's own"):
        RobosuiteRecipe(instruction="lift", task="Lift", cameras=(camera,))
