"""A bridge on a real socket and a real clock, with a controller in this process or in one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from waiting import eventually

from benchmarks.loop import EmulatedArm
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.errors import BusyError, ContractError, PolicyError, TransportError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.robot import Tick
from vla_robot.loop.events import Event, StepDone, StepsLost
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge import remote_robot
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.server import BridgeServer, Stream
from vla_robot.serve.bridge.synchronous_env import SynchronousEnv
from vla_robot.testing import FunctionPolicy, NoLimits
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL
from vla_robot.transport.clock_sync import ClockSample, ClockSync
from vla_robot.transport.sockets import ClientSocket, ServerSocket
from vla_robot.transport.wire import Message, decode, encode

RATE_HZ = 50.0
DEADLINE_S = 120.0

Served = tuple[str, EmulatedArm, BridgeServer]


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serves an emulated arm from a thread until the test ends: its address, the arm and the server."""
    with ExitStack() as stack:

        def start(can_wait: bool = False, patient: bool = True) -> Served:
            """Patient: a busy computer is no reason to hold the arm, or to refuse what was seen a while ago."""
            clock, arm, stop = MonotonicClock(), EmulatedArm(RATE_HZ, can_wait), threading.Event()
            limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
            socket = stack.enter_context(ServerSocket())
            watchdog = (
                Watchdog(clock, hold_after_s=30, stop_after_s=100, beat_after_s=30) if patient else Watchdog(clock)
            )
            execution = ExecutionConfig(max_age_s=10) if patient else ExecutionConfig()
            server = BridgeServer(Bridge(arm, limits, watchdog, clock, execution), socket, clock)
            thread = threading.Thread(target=server.serve, args=(stop.is_set,), daemon=True)
            thread.start()
            stack.callback(thread.join, timeout=60)
            stack.callback(stop.set)
            return socket.address, arm, server

        yield start


NUDGE = np.array([0.001, 0.0, 0.0, 1.0])


def still(observation: Observation, rows: int = 1) -> ActionChunk:
    return ActionChunk(np.tile(NUDGE, (rows, 1)), observation.stamp_ns, observation.step)


def test_frames_arrive_as_they_were_captured(serve: Callable[..., Served]) -> None:
    address, arm, _ = serve()
    with RemoteRobot(address) as robot:
        observation = robot.begin(seed=0)
        np.testing.assert_array_equal(observation.images["front"], arm.frame)
        assert robot.embodiment == arm.embodiment
        assert robot.offset.bound_ns > abs(robot.offset.offset_ns)


def test_the_clocks_are_learnt_from_ticks_too(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_robot, "SYNC_EVERY_S", 0.05)
    learnt: list[ClockSample] = []
    add = ClockSync.add
    monkeypatch.setattr(ClockSync, "add", lambda sync, sample: learnt.append(sample) or add(sync, sample))
    address, _, _ = serve()
    with RemoteRobot(address) as robot:
        after = robot.begin(seed=0).step
        before = len(learnt)
        while len(learnt) < before + 5:
            tick = robot.newest(after=after, timeout_s=DEADLINE_S)
            assert tick is not None
            after = tick.result.observation.step
        # One clock, in truth: no sample denies the others, and the bound holds what the guess is off by.
        assert robot.offset.bound_ns >= abs(robot.offset.offset_ns)
    for sample in learnt[before:]:
        assert sample.sent_ns <= sample.received_ns <= sample.answered_ns <= sample.returned_ns


def test_the_robot_goes_on_without_its_controller(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    with RemoteRobot(address) as robot:
        robot.begin(seed=0)
        tick = robot.newest(after=10, timeout_s=DEADLINE_S)
        assert tick is not None and tick.mode == "hold" and tick.result.observation.step > 10


def test_the_live_loop_drives_it(serve: Callable[..., Served]) -> None:
    address, _, server = serve()
    policy = FunctionPolicy(lambda seen: NUDGE)
    with RemoteRobot(address) as robot:
        episode = run_live_episode(robot, policy, 0, guard=NoLimits(), should_stop=lambda: len(policy.saw) >= 20)
    assert episode.outcome == "stopped" and episode.latency is not None
    assert episode.steps >= 20
    assert not server.status()["running"]


def test_how_unsure_a_policy_was_goes_with_its_actions(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    steps: list[StepDone] = []

    class Unsure(FunctionPolicy):
        def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            return [replace(chunk, entropy=0.5 + chunk.step) for chunk in super().act(observations)]

    with RemoteRobot(address) as robot:
        run_live_episode(
            robot,
            Unsure(lambda seen: NUDGE),
            0,
            guard=NoLimits(),
            should_stop=lambda: len(steps) >= 20,
            subscribers=[lambda event: steps.append(event) if isinstance(event, StepDone) else None],
        )
    told = [step.entropy for step in steps if not step.held]
    assert len(told) > 5 and all(nats is not None and nats % 1 == 0.5 for nats in told)
    assert all(step.entropy is None for step in steps if step.held)


def test_the_gap_between_two_plans_goes_with_the_actions_of_the_second(serve: Callable[..., Served]) -> None:
    """Plans of ten seconds whose grippers are 0.4 apart, one of four dimensions: a gap of 0.1."""
    address, _, _ = serve()
    steps, ticks = list[StepDone](), list[Tick]()

    class Heard(RemoteRobot):
        def ticks(self, timeout_s: float) -> list[Tick]:
            ticks.extend(heard := super().ticks(timeout_s))
            return heard

    def plan(seen: Observation) -> Vector:
        return np.tile([0.001, 0.0, 0.0, 1.0 if len(policy.saw) % 2 else 0.6], (500, 1))

    policy = FunctionPolicy(plan)
    with Heard(address) as robot:
        run_live_episode(
            robot,
            policy,
            0,
            guard=NoLimits(),
            should_stop=lambda: len(policy.saw) >= 5 and len(steps) >= 20 and steps[-1].chunk_gap is not None,
            subscribers=[lambda event: steps.append(event) if isinstance(event, StepDone) else None],
        )
    told = [step.chunk_gap for step in steps if not step.held]
    assert told == sorted(told, key=lambda gap: gap is not None), "only the first plan has none"
    assert [gap for gap in told if gap is not None] == [pytest.approx(0.1)] * (len(told) - told.count(None))
    assert None in told and told[-1] is not None
    by_number = {tick.result.observation.step: tick.chunk_gap for tick in ticks}
    assert all(by_number[step.result.observation.step] == step.chunk_gap for step in steps)


def test_ticks_that_pass_while_the_policy_thinks_are_recorded(serve: Callable[..., Served]) -> None:
    address, _, server = serve()

    def ponder(seen: Observation) -> Vector:
        """Think until the arm has ticked five times more."""
        start = server.status()["step"]
        assert eventually(lambda: server.status()["step"] >= start + 5)
        return NUDGE

    policy, events = FunctionPolicy(ponder), list[Event]()
    with RemoteRobot(address) as robot:
        episode = run_live_episode(
            robot, policy, 0, guard=NoLimits(), subscribers=[events.append], should_stop=lambda: len(policy.saw) > 8
        )
    steps = [event for event in events if isinstance(event, StepDone)]
    numbers = [step.observation.step for step in steps]
    assert numbers == sorted(set(numbers)) and set(numbers) - {seen.step for seen in policy.saw}
    assert all(step.result.observation.step == step.observation.step + 1 for step in steps)
    # A busy computer may lose some; then it says so.
    assert len(steps) + episode.lost_steps == max(numbers[-1], *_ends(events)) + 1
    played = [step for step in steps if not step.held]
    assert played and all(step.wanted is not None and step.wanted[0] == 0.001 for step in played)


def _ends(events: Sequence[Event]) -> list[int]:
    """The last step of each gap."""
    return [0, *(event.first + event.count - 1 for event in events if isinstance(event, StepsLost))]


def test_what_nobody_takes_is_bounded_and_the_oldest_goes_first(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, arm, server = serve()
    monkeypatch.setattr(remote_robot, "BACKLOG_BYTES", 3 * arm.frame.nbytes)
    with RemoteRobot(address) as robot:
        robot.begin(seed=0)
        assert eventually(lambda: server.status()["step"] > 40)
        ticks = robot.ticks(timeout_s=DEADLINE_S)
    numbers = [tick.result.observation.step for tick in ticks]
    assert 1 <= len(numbers) <= 3 and numbers[0] > 1
    assert numbers == sorted(set(numbers))


def numbered(step: int) -> Tick:
    observation = Observation({}, np.zeros(1), "", 0, step)
    return Tick(StepResult(observation, np.zeros(1), False, False, False), "run", "", -1, 0, 0)


def sent_now(stream: Stream, now_ns: int = 0) -> list[int]:
    """Numbers of the ticks that go out now."""
    numbers: list[int] = []
    while (due := stream.due(now_ns)) is not None:
        numbers.append(due[0])
    return numbers


def test_where_the_network_is_slow_the_newest_tick_takes_the_place_of_those_that_wait() -> None:
    stream = Stream(peer=b"desk")
    sent: list[int] = []
    for step in range(8):
        stream.push(numbered(step))
        sent += sent_now(stream)
    assert sent == [1, 2, 3, 4]  # as many as may be on their way
    stream.seen = 2
    assert sent_now(stream) == [8] and stream.replaced == 3


def test_the_ticks_of_a_ramp_to_rest_wait_for_each_other() -> None:
    stream = Stream(peer=b"desk")
    stream.push(numbered(0))
    assert sent_now(stream) == [1]
    stream.push(numbered(7), ramp=[numbered(step) for step in range(1, 8)])
    assert sent_now(stream) == [2, 3, 4]
    stream.seen = 4
    assert sent_now(stream) == [5, 6, 7, 8]
    stream.seen = 8
    assert sent_now(stream) == [9]
    assert stream.replaced == 0


def test_a_policy_for_another_arm_is_refused_with_the_differences(serve: Callable[..., Served]) -> None:
    address, arm, _ = serve()
    wanted = replace(arm.embodiment, rate_hz=10.0)
    with pytest.raises(ContractError, match="trained at 10 Hz, the world runs at 50 Hz"):
        RemoteRobot(address, wanted=wanted)


def test_nan_is_refused_by_the_bridge_and_told_at_the_next_send(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    with RemoteRobot(address) as robot:
        observation = robot.begin(seed=0)
        bad = replace(still(observation), actions=np.full((1, 4), np.nan))
        robot.send(bad)
        refusals: list[str] = []

        def told() -> bool:
            try:
                tick = robot.newest(after=-1, timeout_s=DEADLINE_S)
                assert tick is not None
                robot.send(still(tick.result.observation))
            except PolicyError as error:
                refusals.append(str(error))
            return bool(refusals)

        assert eventually(told)
        assert "not finite" in refusals[0]


def test_lockstep_is_refused_by_an_arm_whose_time_cannot_stand_still(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    with RemoteRobot(address) as robot, pytest.raises(ContractError, match="lockstep is for simulations"):
        robot.begin(seed=0, lockstep=True)


def test_in_lockstep_nothing_moves_but_by_a_step(serve: Callable[..., Served]) -> None:
    address, arm, _ = serve(can_wait=True)
    with RemoteRobot(address) as robot:
        world = SynchronousEnv(robot)
        assert world.reset(0).step == 0
        for k in range(5):
            result = world.step(np.array([0.01, 0.0, 0.0, 1.0]))
            assert result.observation.step == k + 1
        assert len(arm.told_ns) == 5


def test_an_e_stop_from_the_network_latches(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    with RemoteRobot(address) as robot, RemoteStopper(address) as other:
        robot.begin(seed=0)
        other.stop("somebody stands too near")
        assert robot.status()["mode"] == "stopped"
        with pytest.raises(ContractError, match="somebody stands too near"):
            robot.begin(seed=0)
        robot.arm()
        assert robot.begin(seed=0).step == 0


class RemoteStopper:
    """A client that never said hello: it may ask how things stand, and stop."""

    def __init__(self, address: str) -> None:
        from vla_robot.transport.sockets import ClientSocket

        self._socket = ClientSocket(address)

    def __enter__(self) -> RemoteStopper:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def stop(self, reason: str) -> None:
        from vla_robot.transport.wire import Message, encode

        self._socket.send(encode(Message("stop", 1, {"reason": reason})))
        assert eventually(lambda: self._socket.receive(0.1) is not None)


def test_a_hello_that_was_sent_twice_opens_one_session(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    with ClientSocket(address) as socket:
        for seq in (1, 2):
            socket.send(encode(Message("hello", seq, {"protocol": BRIDGE_PROTOCOL, "wanted": {}})))
        answers: list[Message] = []

        def both() -> bool:
            frames = socket.receive(0.1)
            answers.extend([] if frames is None else [decode(frames)])
            return len(answers) == 2

        assert eventually(both)
        assert answers[0].body["session"] == answers[1].body["session"]


def test_a_second_controller_is_told_that_there_is_one(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_robot, "PATIENCE_S", 0.5)
    address, _, _ = serve()
    with RemoteRobot(address), pytest.raises(BusyError, match="has a controller already"):
        RemoteRobot(address, connect_timeout_s=DEADLINE_S)


def test_the_arm_of_a_controller_that_died_goes_to_the_next_one_without_a_word(serve: Callable[..., Served]) -> None:
    address, _, _ = serve()
    died = RemoteRobot(address)
    died._disconnect()  # as a killed process: nothing is said
    with RemoteRobot(address) as robot:
        assert robot.begin(0).step == 0


def test_nobody_there_is_told_in_words() -> None:
    with pytest.raises(TransportError, match="`vla bridge` running there"):
        RemoteRobot("tcp://127.0.0.1:9", connect_timeout_s=0.2)


CONTROLLER = """
import sys
import numpy as np
from vla_robot.core.messages import ActionChunk
from vla_robot.serve.bridge.remote_robot import RemoteRobot

with RemoteRobot(sys.argv[1]) as robot:
    observation = robot.begin(seed=0)
    while True:
        robot.send(ActionChunk(np.array([[0.001, 0, 0, 1.0]]), observation.stamp_ns, observation.step))
        tick = None
        while tick is None:
            tick = robot.newest(after=observation.step, timeout_s=1.0)
        observation = tick.result.observation
"""


def test_kill_9_of_the_controller_leaves_the_arm_held(serve: Callable[..., Served]) -> None:
    address, _, server = serve(patient=False)
    process = subprocess.Popen([sys.executable, "-c", CONTROLLER, address], stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: server.status()["mode"] == "run")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert eventually(lambda: server.status()["mode"] == "hold")
        assert eventually(lambda: server.status()["mode"] == "stopped")
    finally:
        process.kill()
        process.wait()
    with RemoteRobot(address) as robot:
        robot.arm()
        assert robot.begin(seed=1).step == 0


def test_between_episodes_a_controller_sees_what_the_cameras_see(serve: Callable[..., Served]) -> None:
    address, arm, server = serve()
    with RemoteRobot(address) as robot:
        np.testing.assert_array_equal(robot.look_idle().images["front"], arm.frame)
        assert arm.told_ns == [] and not server.status()["running"]
        robot.begin(0)
        with pytest.raises(ContractError, match="an episode is running"):
            robot.look_idle()


def test_the_time_limits_of_a_bridge_are_known_to_its_controller(serve: Callable[..., Served]) -> None:
    address, _, _ = serve(patient=False)
    with RemoteRobot(address) as robot:
        limits = robot.time_limits
    assert (limits.max_age_s, limits.hold_after_s, limits.stop_after_s, limits.stop_s) == (0.5, 0.5, 3.0, 3.5)


def test_a_reset_that_takes_longer_than_its_time_out_is_waited_for_while_the_bridge_says_so(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_robot, "RESET_TIMEOUT_S", 2.5)
    address, arm, server = serve()
    reset = arm.reset

    def go_home(seed: int) -> Observation:
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            assert not server.interrupted()
            time.sleep(0.02)
        return reset(seed)

    monkeypatch.setattr(arm, "reset", go_home)
    with RemoteRobot(address) as robot:
        assert robot.begin(0).step == 0
