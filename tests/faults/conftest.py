"""A bridge, its arm, its controller and the network between them, all on one fake clock: a second takes a millisecond.

The arm writes down every command that reaches it; the network delays, drops and freezes as the test tells it.
"""

from __future__ import annotations

import contextlib
import heapq
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import WorldError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.robot import Tick
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig
from vla_robot.serve.bridge.faults import Faults
from vla_robot.serve.bridge.log import BridgeLog, Recording
from vla_robot.serve.bridge.server import ENDED, BridgeServer
from vla_robot.testing import ToyArm, toy_embodiment
from vla_robot.testing.embodiments import WIDTH, X
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL, unpack_tick
from vla_robot.transport.codec import MessageReader, pack_action_chunk
from vla_robot.transport.wire import Buffer, Message, decode, encode

EMBODIMENT = toy_embodiment(state=(X, WIDTH))
RATE_HZ = 10.0
START_NS = 1000 * NS_PER_S

COMMANDER, STREAM, STRANGER = b"commander", b"stream", b"stranger"
BEAT_MS = 50


@dataclass
class RecordingArm(ToyArm):
    """One whose cameras may stop, whose way home may be interrupted, and whose looks take their time."""

    clock: FakeClock = field(default_factory=FakeClock)  # pyright: ignore[reportIncompatibleVariableOverride]
    embodiment: Embodiment = EMBODIMENT
    horizon: int | None = 10_000
    camera_stopped: bool = False
    look_ms: float = 5.0
    height: int = 6
    reset_ms: float = 0.0
    interrupted: Callable[[], bool] | None = None

    def reset(self, seed: int) -> Observation:
        self.resets.append(self.clock.now_ns())
        self._may_fail("reset")
        self._go_home()
        self.x, self.step = 0.0, 0
        return self._observe()

    def look(self) -> Observation:
        self.looks.append(self.clock.now_ns())
        self.clock.advance_ns(round(self.look_ms * NS_PER_MS))
        self._may_fail("look")
        return self._observe()

    def _go_home(self) -> None:
        """One that never asks, as a simulation, or one that asks on its way."""
        end_ns = self.clock.now_ns() + round(self.reset_ms * NS_PER_MS)
        while self.clock.now_ns() < end_ns:
            self.clock.advance_ns(20 * NS_PER_MS)
            if self.interrupted is not None and self.interrupted():
                self.stop()
                raise WorldError("the way home was interrupted; the arm holds where it is.")

    def _observe(self) -> Observation:
        before_ns, seen = self.stamp_ns, super()._observe()
        self.stamp_ns = before_ns if self.camera_stopped else seen.stamp_ns
        image = np.full((self.height, 8, 3), self.step % 256, np.uint8)
        return replace(seen, images={"front": image}, stamp_ns=self.stamp_ns)


@dataclass
class Network:
    """The bridge's socket. What is sent arrives `delay_ms` later, when it is due on the fake clock; or not at all."""

    clock: FakeClock
    delay_ms: float = 1.0
    drop: float = 0.0
    frozen_until_ns: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    on_message: Callable[[bytes, Message], None] = lambda peer, message: None
    _due: list[tuple[int, int, Callable[[], tuple[bytes, list[Buffer]] | None]]] = field(default_factory=list)
    _count: int = 0

    def post(self, peer: bytes, message: Message, after_ms: float = 0.0) -> None:
        """From a peer to the bridge."""
        frames = [bytes(frame) for frame in encode(message)]
        self._schedule(after_ms, lambda: (peer, list[Buffer](frames)))

    def call(self, function: Callable[[], object], after_ms: float) -> None:
        """Let something happen at a peer, later; the network has no part in it."""

        def happen() -> None:
            function()

        self._push(self.clock.now_ns() + round(after_ms * NS_PER_MS), happen)

    def receive(self, timeout_s: float) -> tuple[bytes, list[Buffer]] | None:
        end_ns = self.clock.now_ns() + max(round(timeout_s * NS_PER_S), 1)
        while self._due and self._due[0][0] <= end_ns:
            at_ns, _, arrive = heapq.heappop(self._due)
            self.clock.sleep_until_ns(at_ns)
            arrived = arrive()
            if arrived is not None:
                return arrived
        self.clock.sleep_until_ns(end_ns)
        return None

    def send(self, peer: bytes, frames: list[Buffer]) -> bool:
        message = decode([memoryview(bytes(frame)) for frame in frames])
        self._schedule(0.0, lambda: self.on_message(peer, message))
        return True

    def user_of(self, peer: bytes) -> str:
        return ""

    def jump(self, by_ns: int) -> None:
        """Let the bridge's clock jump; what is on its way in the network takes as long as before."""
        self.clock.advance_ns(by_ns)
        self._due = [(at_ns + by_ns, number, arrive) for at_ns, number, arrive in self._due]

    def _schedule(self, after_ms: float, arrive: Callable[[], Any]) -> None:
        if self.rng.random() < self.drop:
            return
        at_ns = self.clock.now_ns() + round((after_ms + self.delay_ms) * NS_PER_MS)
        self._push(max(at_ns, self.frozen_until_ns), arrive)

    def _push(self, at_ns: int, arrive: Callable[[], Any]) -> None:
        self._count += 1
        heapq.heappush(self._due, (at_ns, self._count, arrive))


type Think = Callable[[Observation], ActionChunk | None]


@dataclass
class Controller:
    """Answers each tick that it sees with a chunk, `think_ms` later, one at a time; beats while it lives."""

    network: Network
    think: Think
    think_ms: float = 20.0
    alive: bool = True
    policy_alive: bool = True
    session: str = ""
    ticks: list[Tick] = field(default_factory=list[Tick])
    errors: list[str] = field(default_factory=list[str])
    answers: list[Message] = field(default_factory=list[Message])
    seen: int = 0
    _seq: int = 0
    _thinking: bool = False

    def say(self, kind: str, **body: Any) -> int:
        """One command; its number."""
        self._seq += 1
        self.network.post(COMMANDER, Message(kind, self._seq, {"session": self.session, **body}))
        return self._seq

    def hear(self, peer: bytes, message: Message) -> None:
        """Whatever the bridge sends; a stranger's answers are kept too."""
        if not self.alive:
            return
        if message.kind == "tick":
            self._see(MessageReader(message.body, "tick"))
        elif message.kind == "error":
            self.errors.append(message.body["message"])
        else:
            self.answers.append(message)
            self.session = message.body.get("session", self.session)

    def beat(self) -> None:
        if self.alive:
            self.network.post(STREAM, Message("watch", 1, {"session": self.session, "seen": self.seen}))
            self.network.call(self.beat, BEAT_MS)

    def _see(self, reader: MessageReader) -> None:
        number = reader.integer("number")
        if number <= self.seen:
            return
        self.seen = number
        tick = unpack_tick(reader.table("tick"))
        self.ticks.append(tick)
        if self.policy_alive and not self._thinking and not tick.over:
            self._thinking = True
            self.network.call(lambda: self._answer(tick.result.observation), self.think_ms)

    def _answer(self, observation: Observation) -> None:
        self._thinking = False
        if self.alive and self.policy_alive and (chunk := self.think(observation)) is not None:
            self.say("chunk", chunk=pack_action_chunk(chunk))


def chunk_of(observation: Observation, *rows: tuple[float, float]) -> ActionChunk:
    return ActionChunk(np.array(rows, dtype=np.float64), observation.stamp_ns, observation.step)


@dataclass
class Stage:
    """Everything on one clock. `play` lets time pass; `at` schedules a fault."""

    clock: FakeClock
    arm: RecordingArm
    network: Network
    controller: Controller
    bridge: Bridge
    server: BridgeServer

    def begin(self) -> None:
        """Say hello, watch, and begin an episode."""
        self.hello()
        self.controller.say("reset", episode=1, seed=0, lockstep=False)

    def hello(self) -> None:
        self.controller.say("hello", protocol=BRIDGE_PROTOCOL, wanted={})
        self.play(0.1)
        self.controller.beat()

    def play(self, seconds: float) -> None:
        end_ns = self.clock.now_ns() + round(seconds * NS_PER_S)
        # `serve` holds the arm when it ends; here it only pauses.
        end = self.bridge.end
        self.bridge.end = lambda reason: None if reason == ENDED else end(reason)  # type: ignore[method-assign]
        try:
            self.server.serve(lambda: self.clock.now_ns() >= end_ns)
        finally:
            self.bridge.end = end  # type: ignore[method-assign]

    def at(self, seconds: float, happen: Callable[[], object]) -> None:
        self.network.call(happen, seconds * 1000)

    @property
    def status(self) -> Mapping[str, Any]:
        return self.server.status()

    def modes(self) -> Counter[str]:
        return Counter(tick.mode for tick in self.controller.ticks[1:])

    def since(self, moment_ns: int) -> list[Vector]:
        """Commands of motion that reached the arm from then on; braking ends with one of no motion."""
        return [action for at_ns, action in self.arm.commands if at_ns >= moment_ns and action[:-1].any()]

    def check_commands(self) -> None:
        """No command outside of the limits ever reached the arm."""
        for _, action in self.arm.commands:
            assert action.shape == (2,) and np.isfinite(action).all()
            assert (action >= EMBODIMENT.action.low).all() and (action <= EMBODIMENT.action.high).all()


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable[..., Stage]:
    """A stage; `think` is the policy, and `max_age_s` how late an action may be."""

    def make(
        think: Think | None = None,
        *,
        max_age_s: float = 0.5,
        limits: LimitsRecipe | None = None,
        recording: Recording | None = None,
        **controller: Any,
    ) -> Stage:
        clock = FakeClock(START_NS)
        arm, network = RecordingArm(clock), Network(clock)
        safety = SafetyFilter(EMBODIMENT, limits_of(EMBODIMENT, limits or LimitsRecipe()))
        faults = Faults()
        log = BridgeLog(tmp_path / "logs", {"env": "toy"}, recording, faults)
        bridge = Bridge(arm, safety, Watchdog(clock), clock, ExecutionConfig(max_age_s), log, faults)
        server = BridgeServer(bridge, network, clock)
        driver = Controller(network, think or (lambda o: chunk_of(o, (0.01, 1.0))), **controller)
        network.on_message = driver.hear
        return Stage(clock, arm, network, driver, bridge, server)

    return make


@pytest.fixture
def shifted() -> Callable[[Observation, int], Observation]:
    """The same observation, captured earlier or later."""
    return lambda observation, by_ns: replace(observation, stamp_ns=observation.stamp_ns + by_ns)


BRIDGE = """
import dataclasses, sys
from pathlib import Path
from vla_robot.safety.limits import limits_of
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.watchdog import Watchdog
from benchmarks.loop import EmulatedArm
from vla_robot.core.clock import MonotonicClock
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.log import BridgeLog, recording_process
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.serve.bridge.faults import Faults
from vla_robot.transport.sockets import ServerSocket

class Arm(EmulatedArm):
    def command(self, action):
        result = super().command(action)
        return dataclasses.replace(result, truncated=result.observation.step >= 60)

arm = Arm(float(sys.argv[2]), can_wait=True)
clock = MonotonicClock()
limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
with recording_process() as recording, ServerSocket(sys.argv[1]) as socket:
    print(socket.address, flush=True)
    faults = Faults()
    log = BridgeLog(Path(sys.argv[3]), {}, recording, faults) if sys.argv[3] else lambda event: None
    bridge = Bridge(arm, limits, Watchdog(clock), clock, None, log, faults)
    BridgeServer(bridge, socket, clock).serve(lambda: False)
"""


@dataclass
class Bridges:
    """One bridge after the other, at one address."""

    processes: contextlib.ExitStack
    address: str = "tcp://127.0.0.1:0"
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self, rate_hz: float = 30.0, record: Path | None = None) -> None:
        command = [sys.executable, "-c", BRIDGE, self.address, str(rate_hz), str(record or "")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.callback(self.kill, self.process)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def restart(self, rate_hz: float = 30.0) -> None:
        self.kill(self.process)
        self.start(rate_hz)


@pytest.fixture
def bridges() -> Iterator[Bridges]:
    with contextlib.ExitStack() as processes:
        yield Bridges(processes)
