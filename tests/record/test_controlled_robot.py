"""A robot with a clock of its own in a person's hands: what is sent, what is recorded, what is counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import TransportError, WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.robot import Mode, Tick
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.demonstration import Demonstration
from vla_robot.record.controlled_robot import SILENCE_S, LiveRobot
from vla_robot.record.teleop_session import Session

RATE_HZ = 10
EMBODIMENT = Embodiment(
    name="point",
    action=ActionSpace("eef_delta", "base", (Dim("dx", "m", -1, 1), Dim("gripper", "1", 0, 1))),
    state=(Dim("x", "m", -10, 10),),
    cameras=(CameraSpec("front", 16, 16),),
    rate_hz=RATE_HZ,
)
OPEN = 1.0


@dataclass
class Ticking:
    """Plays the newest action `delay` ticks after it came; ticks in `lost` never arrive.

    `slow_by` more ticks pass at each look.
    """

    clock: FakeClock
    delay: int = 0
    lost: tuple[int, ...] = ()
    silent: bool = False
    slow_by: int = 0
    trips_at: int | None = None
    horizon: int = 1000
    grip: float = OPEN
    log: list[str] = field(default_factory=list[str])
    embodiment: Embodiment = EMBODIMENT
    instruction: str = "go right"
    step: int = 0
    x: float = 0.0
    running: bool = False
    stopped: str = ""
    queue: list[tuple[int, ActionChunk]] = field(default_factory=list[tuple[int, ActionChunk]])
    settled: int = -1

    def begin(self, seed: int) -> Observation:
        assert not self.stopped
        self.log.append(f"begin {seed}")
        self.step, self.x, self.settled, self.queue, self.running = 0, 0.0, -1, [], True
        return self._look()

    def send(self, chunk: ActionChunk) -> None:
        assert self.running
        self.queue.append((self.step + self.delay, chunk))

    def ticks(self, timeout_s: float) -> list[Tick]:
        if self.silent:
            self.clock.advance_ns(round(timeout_s * NS_PER_S))
            return []
        ticks = [self._tick() for _ in range(self.slow_by + 1)]
        while ticks[-1].result.observation.step in self.lost:
            ticks.append(self._tick())
        return [tick for tick in ticks if tick.result.observation.step not in self.lost]

    def end(self) -> None:
        self.log.append("end")
        self.running = False

    def stop(self, reason: str) -> None:
        self.log.append("stop")
        self.stopped, self.running = reason, False

    def arm(self) -> None:
        self.log.append("arm")
        self.stopped = ""

    def _tick(self) -> Tick:
        self.clock.advance_ns(NS_PER_S // RATE_HZ)
        due = [chunk for at, chunk in self.queue if at <= self.step]
        self.queue = [(at, chunk) for at, chunk in self.queue if at > self.step]
        chunk = due[-1] if due else None
        action = np.array([0.0, self.grip]) if chunk is None else chunk.actions[0]
        self.grip = float(action[-1])
        self.x, self.step = self.x + float(action[0]), self.step + 1
        self.settled = self.settled if chunk is None else chunk.step
        mode: Mode = "hold" if chunk is None else "run"
        if self.step == self.trips_at:
            mode, self.running = "stopped", False
        result = StepResult(self._look(), action, False, False, self.step >= self.horizon)
        cause = -1 if chunk is None else chunk.step
        return Tick(result, mode, "a finger" if mode == "stopped" else "", self.settled, 0, 0, cause_step=cause)

    def _look(self) -> Observation:
        frames = {"front": np.full((16, 16, 3), self.step, np.uint8)}
        return Observation(frames, np.array([self.x]), self.instruction, self.clock.now_ns(), self.step)


class Script:
    """A person who says one thing at a time."""

    def __init__(self, said: Sequence[TeleopCommand]) -> None:
        self.said = list(said)

    def show(self, observation: Observation, counters: object) -> None: ...

    def command(self) -> TeleopCommand:
        return self.said.pop(0) if self.said else TeleopCommand(None)

    def close(self) -> None: ...


class Kept:
    def __init__(self) -> None:
        self.demos: list[Demonstration] = []

    def write(self, demonstration: Demonstration) -> None:
        self.demos.append(demonstration)


def move(dx: float, grip: float = OPEN) -> TeleopCommand:
    return TeleopCommand(np.array([dx, grip]))


NOTHING = TeleopCommand(None)
START, STOP = TeleopCommand(None, frozenset({"start"})), TeleopCommand(None, frozenset({"stop"}))
E_STOP = TeleopCommand(None, frozenset({"estop"}))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NS_PER_S)


def record(robot: Ticking, said: Sequence[TeleopCommand], episodes: int = 1) -> list[Demonstration]:
    writer = Kept()
    session = Session(LiveRobot(robot, robot.clock), Script(said), writer, "a person", clock=robot.clock)
    left = itertools.count(len(said) + 5, -1)
    stop: Callable[[], bool] = lambda: next(left) <= 0  # noqa: E731 - one expression, named for the reader
    session.record(itertools.count(7), episodes, stop)
    return writer.demos


def executed(demo: Demonstration) -> Vector:
    return demo.executed[:, 0]


def test_nothing_moves_before_start(clock: FakeClock) -> None:
    robot = Ticking(clock)
    assert record(robot, [move(0.5), move(0.5)]) == [] and robot.log == []


def test_what_was_asked_for_and_what_was_done_stand_side_by_side(clock: FakeClock) -> None:
    robot = Ticking(clock)
    (demo,) = record(robot, [START, move(0.5), move(0.25), STOP])
    np.testing.assert_allclose(demo.actions, [[0.5, OPEN], [0.25, OPEN]])
    np.testing.assert_allclose(executed(demo), [0.5, 0.25])
    np.testing.assert_allclose(demo.states[:, 0], [0.0, 0.5])
    assert robot.log == ["begin 7", "end"]  # and it holds


def test_over_a_slow_network_each_action_stays_with_what_came_of_it(clock: FakeClock) -> None:
    (demo,) = record(Ticking(clock, delay=2), [START, *(move(d) for d in (0.1, 0.2, 0.3, 0.4, 0.5)), STOP])
    np.testing.assert_allclose(demo.actions[:, 0], executed(demo))
    np.testing.assert_allclose(executed(demo), [0.1, 0.2, 0.3])
    assert demo.facts["held_ticks"] == 2


def test_while_nobody_is_at_the_controls_the_arm_is_told_to_stay_and_nothing_is_recorded(clock: FakeClock) -> None:
    (demo,) = record(Ticking(clock), [START, move(0.5, grip=0.0), NOTHING, NOTHING, move(0.25, grip=0.0), STOP])
    np.testing.assert_allclose(demo.actions, [[0.5, 0.0], [0.25, 0.0]])
    assert demo.facts["rested_ticks"] == 2 and demo.facts["held_ticks"] == 0


def test_an_arm_that_begins_closed_is_not_opened_by_a_person_who_waits(clock: FakeClock) -> None:
    robot = Ticking(clock, grip=0.0)
    record(robot, [START, NOTHING, NOTHING, STOP])
    assert robot.grip == 0.0


def test_a_lost_tick_ends_an_episode_and_another_begins_behind_it(clock: FakeClock) -> None:
    """Of ticks 2 and 3 that are lost, steps 1 to 3 are: what was seen before the last of them is not known."""
    before, after = record(Ticking(clock, lost=(2, 3)), [START, *[move(0.1)] * 5, STOP])
    assert (before.steps.tolist(), after.steps.tolist()) == ([0], [4, 5, 6])
    np.testing.assert_allclose(np.diff(after.states[:, 0]), executed(after)[:-1])
    for part, demo in enumerate((before, after), start=1):
        assert demo.facts["dropped_frames"] == 3
        assert (demo.facts["part"], demo.facts["parts"]) == (part, 2)
    assert after.facts["rate_hz"] == pytest.approx(RATE_HZ)


def test_a_controller_that_is_slow_for_a_moment_records_every_tick(clock: FakeClock) -> None:
    (demo,) = record(Ticking(clock, slow_by=2), [START, move(0.1), move(0.2), STOP])
    assert demo.steps.tolist() == [0, 3]  # between them the arm had nothing to play, and rested
    np.testing.assert_allclose(demo.states[:, 0], [0.0, 0.1])
    np.testing.assert_allclose(demo.actions[:, 0], executed(demo))
    assert demo.facts["held_ticks"] == 4


def test_the_persons_own_e_stop_is_released_by_start(clock: FakeClock) -> None:
    robot = Ticking(clock)
    demos = record(robot, [START, move(0.5), E_STOP, NOTHING, START, move(0.25), STOP])
    assert robot.log == ["begin 7", "stop", "arm", "begin 7", "end"]
    assert len(demos) == 1 and executed(demos[0]).tolist() == [0.25]


def test_a_stop_by_somebody_else_ends_the_session_and_names_the_way_on(clock: FakeClock) -> None:
    robot = Ticking(clock, trips_at=2)
    with pytest.raises(WorldError, match=r"stopped the arm: a finger.*--arm"):
        record(robot, [START, move(0.5), move(0.5), move(0.5)])


def test_a_finished_episode_stays_when_a_later_one_fails(clock: FakeClock) -> None:
    robot, writer = Ticking(clock), Kept()
    said = [START, move(0.5), STOP, START, move(0.5), move(0.5)]
    session = Session(LiveRobot(robot, clock), Script(said), writer, "a person", clock=clock)
    robot.trips_at = 2
    with pytest.raises(WorldError):
        session.record(itertools.count(7), 2, lambda: False)
    assert len(writer.demos) == 1


def test_a_silent_robot_is_told(clock: FakeClock) -> None:
    with pytest.raises(TransportError, match="silent for 5"):
        LiveRobotDrive(Ticking(clock, silent=True)).until_it_raises()


class LiveRobotDrive:
    """Drives on and on."""

    def __init__(self, robot: Ticking) -> None:
        self.live = LiveRobot(robot, robot.clock)
        self.observation = self.live.begin(0)

    def until_it_raises(self) -> None:
        for _ in range(round(SILENCE_S * 100)):
            self.observation = self.live.advance(self.observation, np.array([0.1, OPEN])).observation


def test_when_it_is_interrupted_the_arm_holds_and_the_running_episode_is_forgotten(clock: FakeClock) -> None:
    robot = Ticking(clock)
    assert record(robot, [START, move(0.5), move(0.5)]) == []
    assert robot.log[-1] == "end" and not robot.running


def test_the_robots_own_end_is_the_end(clock: FakeClock) -> None:
    robot = Ticking(clock, horizon=2)
    (demo,) = record(robot, [START, move(0.5), move(0.5), move(0.5)])
    assert len(demo) == 2 and robot.log == ["begin 7"]
