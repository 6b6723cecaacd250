"""What an episode on a robot with a clock of its own records, compared number by number with what the arm received."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError, WorldError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.ports import Arm as BridgeArm
from vla_robot.core.ports import Policy
from vla_robot.core.robot import Tick
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone, StepsLost
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.loop.recorder import EpisodeRecorder, log_path
from vla_robot.loop.results import EpisodeResult
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.record import episode
from vla_robot.record.corrections import demonstrations_of
from vla_robot.record.episode import EpisodeLog, Gap, read_episode
from vla_robot.safety.chunk import ChunkMerge
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import RangeGuard, limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.arm import WorldArm
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig
from vla_robot.testing import FunctionPolicy, toy_embodiment

PERIOD_MS = 20
EMBODIMENT = toy_embodiment(reach_m=9.0, rate_hz=1000 / PERIOD_MS)
SPACE = EMBODIMENT.action
OPEN = 1.0
SEED = 3


@pytest.fixture(autouse=True)
def room_for_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here no time passes between two ticks: a log would drop the frames of most."""
    monkeypatch.setattr(episode, "FRAME_BACKLOG", 1000)


@dataclass
class Received:
    """What the arm was told in one step, and what was seen before it."""

    action: Vector
    is_hold: bool
    x: float
    stamp_ns: int


@dataclass
class Arm:
    """Adds up its commands until the horizon, and writes down what it received."""

    clock: FakeClock
    horizon: int
    embodiment: Embodiment = EMBODIMENT
    instruction: str = "lift the cube"
    can_wait: bool = False
    x: float = 0.0
    stamp_ns: int = 0
    received: list[Received] = field(default_factory=list[Received])

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return {"front": self.stamp_ns}

    def reset(self, seed: int) -> Observation:
        return self._observe()

    def command(self, action: Vector) -> StepResult:
        return self._do(action, is_hold=False)

    def hold(self) -> StepResult:
        grip = self.received[-1].action[-1] if self.received else OPEN
        return self._do(np.array([0.0, grip]), is_hold=True)

    def step(self, action: Vector) -> StepResult:
        """As a world of the loop that waits."""
        return self.command(action)

    def look(self) -> Observation:
        return self._observe()

    def stop(self) -> None:
        """It stands."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _do(self, action: Vector, is_hold: bool) -> StepResult:
        self.received.append(Received(action.copy(), is_hold, self.x, self.stamp_ns))
        self.x += float(action[0])
        return StepResult(self._observe(), action, False, False, len(self.received) >= self.horizon)

    def _observe(self) -> Observation:
        self.stamp_ns = self.clock.now_ns()
        step = len(self.received)
        image = np.full((6, 8, 3), step, np.uint8)
        return Observation({"front": image}, np.array([self.x]), self.instruction, self.stamp_ns, step)


class Ticking:
    """The Robot port straight on a bridge. Its clock goes on while the policy thinks; ticks may be lost on the way."""

    def __init__(
        self, horizon: int, lost: Callable[[int], bool] = lambda step: False, splice: ChunkMerge = "drop"
    ) -> None:
        """
        Args:
            horizon: of the episode.
            lost: whether the tick with this number never arrives. The last one does: a bridge sends it again.
            splice: see `ExecutionConfig`.
        """
        self.clock = FakeClock(start_ns=10**12)
        self.arm = Arm(self.clock, horizon)
        self._serve(self.arm, splice)
        self._lost = lost
        self._arrived: list[Tick] = []
        self.newest_step = 0

    def _serve(self, arm: BridgeArm, splice: ChunkMerge) -> None:
        self.embodiment, self.instruction = arm.embodiment, arm.instruction
        limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
        self.bridge = Bridge(arm, limits, Watchdog(self.clock), self.clock, ExecutionConfig(max_age_s=5, splice=splice))
        self._period_ns = round(NS_PER_S / arm.embodiment.rate_hz)

    def begin(self, seed: int) -> Observation:
        return self.bridge.begin(1, seed)

    def send(self, chunk: ActionChunk) -> None:
        self.bridge.put(chunk)

    def ticks(self, timeout_s: float) -> list[Tick]:
        if timeout_s > 0 and not self._arrived:
            self.pass_time()
        arrived, self._arrived = self._arrived, []
        return arrived

    def end(self) -> None:
        self.bridge.end("asked to")

    def pass_time(self) -> None:
        """One period."""
        self.clock.advance_ns(self._period_ns)
        if not self.bridge.running:
            return
        self.bridge.watchdog.beat()
        tick = self.bridge.tick()
        if tick.over or not self._lost(tick.result.observation.step):
            self._arrived.append(tick)
            self.newest_step = tick.result.observation.step


class Slow(FunctionPolicy):
    """Thinks for some ticks; its actions tell which step it saw. `fails_at` raises instead."""

    def __init__(self, robot: Ticking, late: Callable[[], int], rows: int = 1, fails_at: int | None = None) -> None:
        super().__init__(self._think)
        self._robot, self._late, self._num_rows, self._fails_at = robot, late, rows, fails_at

    def _think(self, seen: Observation) -> Vector:
        assert seen.step == self._robot.newest_step, "the policy was shown a stale observation"
        for _ in range(self._late()):
            self._robot.pass_time()
        if self._fails_at is not None and seen.step >= self._fails_at:
            raise PolicyError("out of memory")
        grip = float(seen.step % 2)
        return np.array([[0.0001 * (seen.step + k), grip] for k in range(self._num_rows)])


def drive(robot: Ticking, policy: Policy, folder: Path | None = None) -> tuple[EpisodeResult, list[Event]]:
    """One episode, recorded below a folder."""
    events: list[Event] = []
    recorders = [] if folder is None else [EpisodeRecorder(folder, {})]
    guard = RangeGuard(SPACE)
    ended = run_live_episode(
        robot, policy, SEED, guard=guard, subscribers=[events.append, *recorders], clock=robot.clock
    )
    return ended, events


def steps_of(events: Sequence[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def require_true(step: StepDone, received: Sequence[Received]) -> None:
    """Everything in a step is what really happened in that very step."""
    number = step.observation.step
    truth = received[number]
    assert (step.observation.images["front"] == number).all()
    assert step.observation.state[0] == truth.x
    assert step.observation.stamp_ns == truth.stamp_ns
    assert step.result.executed is not None
    np.testing.assert_array_equal(step.result.executed, truth.action)
    assert step.result.command_ns == received[number].stamp_ns + PERIOD_MS * NS_PER_MS
    assert step.result.observation.step == number + 1


def test_while_the_policy_thinks_for_five_ticks_every_tick_is_recorded_with_its_own_action() -> None:
    robot = Ticking(horizon=60)
    policy = Slow(robot, lambda: 5)
    ended, events = drive(robot, policy)
    steps = steps_of(events)
    assert [s.observation.step for s in steps] == list(range(60)) and (ended.steps, ended.lost_steps) == (60, 0)
    for step in steps:
        require_true(step, robot.arm.received)
    played = [step for step in steps if not step.held]
    assert len(played) == len([seen for seen in policy.saw if seen.step + 5 < 60]) >= 9
    for step, saw in zip(played, (seen.step for seen in policy.saw), strict=False):
        assert step.wanted is not None and step.commanded is not None
        assert step.observation.step == saw + 5  # five ticks passed, and it was due in the next one
        assert step.wanted.tolist() == step.commanded.tolist() == [0.0001 * saw, float(saw % 2)]
    assert all(step.wanted is None and step.commanded is None for step in steps if step.held)


@pytest.mark.parametrize("late", [0, 1, 3, 7])
def test_each_row_of_a_chunk_stands_beside_the_tick_that_played_it(late: int) -> None:
    robot = Ticking(horizon=40)
    _, events = drive(robot, Slow(robot, lambda: late, rows=8))
    steps = steps_of(events)
    assert [s.observation.step for s in steps] == list(range(40))
    for step in steps:
        require_true(step, robot.arm.received)
        assert step.held == (step.wanted is None)
        assert step.wanted is None or step.wanted[0] == pytest.approx(0.0001 * step.observation.step)
    assert len([step for step in steps if not step.held]) >= (40 - late if late < 4 else 4)


@pytest.mark.parametrize(("rows", "late"), [(1, 0), (3, 0), (3, 2), (4, 4)])
def test_the_rest_of_a_chunk_is_played_while_the_answer_after_its_execution_horizon_is_computed(
    rows: int, late: int
) -> None:
    robot = Ticking(horizon=40)
    policy = Slow(robot, lambda: late, rows=8)
    _, events = drive(robot, ExecutionHorizon(policy, rows))
    asked = [seen.step for seen in policy.saw]
    assert {b - a for a, b in itertools.pairwise(asked)} == {max(rows, late)}
    steps = steps_of(events)
    assert [step.observation.step for step in steps if step.held] == list(range(late))  # until the first answer
    for step in steps[late:]:
        assert step.wanted is not None and step.wanted[0] == pytest.approx(0.0001 * step.observation.step)


@pytest.mark.parametrize("splice", ["drop", "ensemble"])
def test_ticks_have_the_gap_of_the_chunk_that_they_played(splice: ChunkMerge) -> None:
    """Asked at steps 0, 3, 6 ... and answered two ticks later. Each plan is 0.0003 m, 0.003 of a range, from the former
    one, and the gripper the same."""
    robot = Ticking(horizon=20, splice=splice)

    def plan(seen: Observation) -> Vector:
        robot.pass_time()
        robot.pass_time()
        return np.tile([0.0001 * seen.step, OPEN], (8, 1))

    ended, events = drive(robot, ExecutionHorizon(FunctionPolicy(plan), 3))
    assert list(ended.chunk_gap) == [None] * 5 + [pytest.approx(0.0015)] * 15
    assert [step.chunk_gap for step in steps_of(events)] == list(ended.chunk_gap)


@pytest.mark.parametrize("splice", ["blend", "ensemble"])
def test_where_chunks_are_spliced_the_mean_is_what_was_wanted(splice: ChunkMerge) -> None:
    robot = Ticking(horizon=30, splice=splice)
    _, events = drive(robot, Slow(robot, lambda: 2, rows=8))
    for step in steps_of(events):
        require_true(step, robot.arm.received)
        if not step.held:
            assert step.wanted is not None and step.result.executed is not None
            np.testing.assert_allclose(step.wanted, step.result.executed)  # nothing here is cut


class Continuing(Slow):
    """Begins with what the arm has committed to; its own actions tell which step it saw."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = super().act(observations)
        return [self._begun(o, chunk) for o, chunk in zip(observations, chunks, strict=True)]

    @staticmethod
    def _begun(seen: Observation, chunk: ActionChunk) -> ActionChunk:
        if seen.committed is None:
            return chunk
        own = np.tile([0.0001 * seen.step, OPEN], (len(chunk.actions), 1))
        own[: len(seen.committed)] = seen.committed
        return replace(chunk, actions=own, conditioned=True)


@pytest.mark.parametrize("late", [0, 1, 2, 5])
def test_a_policy_continues_what_the_arm_does_and_no_plan_that_its_last_answer_replaced(late: int) -> None:
    robot = Ticking(horizon=60, splice="rtc")
    policy = Continuing(robot, lambda: late, rows=12)
    _, events = drive(robot, policy)
    steps = steps_of(events)
    promises = [(seen.step, seen.committed) for seen in policy.saw if seen.committed is not None]
    assert len(promises) >= 50 // (late + 2) and {len(rows) for _, rows in promises[1:]} == {late}
    for first, rows in promises:
        for step, row in zip(steps[first:], rows, strict=False):  # the last one is longer than the episode
            assert step.wanted is not None
            np.testing.assert_array_equal(step.wanted, row)


def test_a_lost_tick_is_a_gap_and_no_neighbour() -> None:
    """What was seen before the step after it is lost with it."""
    robot = Ticking(horizon=20, lost=lambda step: step in (4, 9, 10))
    ended, events = drive(robot, Slow(robot, lambda: 2, rows=8))
    gaps = [event for event in events if isinstance(event, StepsLost)]
    assert gaps == [StepsLost(3, 2), StepsLost(8, 3)]
    missing = {3, 4, 8, 9, 10}
    assert [s.observation.step for s in steps_of(events)] == [k for k in range(20) if k not in missing]
    assert (ended.steps, ended.lost_steps) == (15, 5)
    for step in steps_of(events):
        require_true(step, robot.arm.received)


def test_ticks_that_pass_while_a_policy_fails_are_told_and_so_is_their_end() -> None:
    robot = Ticking(horizon=8)
    ended, events = drive(robot, Slow(robot, lambda: 5, fails_at=4))
    assert len(steps_of(events)) == 8
    assert (ended.outcome, ended.error) == ("timeout", None)  # it was over before the policy failed


def test_a_policy_that_failed_is_the_reason_even_if_the_arm_was_stopped_meanwhile() -> None:
    robot = Ticking(horizon=1000)
    ended, events = drive(robot, Slow(robot, lambda: 1000 // PERIOD_MS * 4, fails_at=0))
    assert ended.outcome == "error" and ended.error is not None
    assert ended.error.startswith("out of memory Meanwhile the bridge stopped the arm: silence")
    assert [s.observation.step for s in steps_of(events)] == list(range(ended.steps))


def pushy() -> FunctionPolicy:
    """Wants more than the space allows."""
    return FunctionPolicy(lambda o: [0.06, OPEN])


def test_the_same_policy_is_clamped_as_often_live_as_in_a_world_that_waits(tmp_path: Path) -> None:
    clock, events = FakeClock(start_ns=10**12), list[Event]()
    waiting = run_episode(Arm(clock, 5), pushy(), 0, guard=RangeGuard(SPACE), subscribers=[events.append], clock=clock)
    robot, live_events = Ticking(horizon=5), list[Event]()
    recorder = EpisodeRecorder(tmp_path, {})
    live = run_live_episode(
        robot,
        pushy(),
        0,
        guard=RangeGuard(SPACE),
        subscribers=[live_events.append, recorder],
        clock=robot.clock,
    )
    for ended, told in ((waiting, events), (live, live_events)):
        assert ended.clamps >= 5
        for step in steps_of(told):
            assert step.wanted is not None and step.commanded is not None
            assert (step.wanted[0], step.commanded[0]) == (0.06, 0.05)
            assert (step.clamps[0].cause, step.clamps[0].wanted, step.clamps[0].allowed) == ("range", 0.06, 0.05)
    # At 50 Hz the bridge also cuts the first steps, for their acceleration; it is told beside the guard's.
    assert [c.cause for s in steps_of(live_events) for c in s.clamps].count("range") == waiting.clamps == 5
    for step in read_episode(log_path(tmp_path, 0)).steps:
        assert step.wanted is not None and step.commanded is not None
        assert (step.wanted[0], step.commanded[0]) == (0.06, 0.05)


def lateness(kind: str) -> Callable[[], int]:
    """How many ticks a policy takes: always as many, or at random."""
    if kind != "jittered":
        return lambda: int(kind)
    rng = np.random.default_rng(0)
    return lambda: int(rng.integers(0, 8))


def tenth(seed: int) -> Callable[[int], bool]:
    """One tick in ten is lost."""
    lost = np.random.default_rng(seed).random(1000) < 0.1
    return lambda step: bool(lost[step])


@pytest.mark.parametrize("loses", [False, True], ids=["all ticks arrive", "10 % lost"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("late", ["1", "3", "7", "jittered"])
def test_the_dataset_is_the_arms_own_list(tmp_path: Path, late: str, rows: int, loses: bool) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    from vla_robot.data.formats.lerobot.writer import LeRobotWriter
    from vla_robot.record.corrections import LogStore

    lost = tenth(int(rows) + len(late)) if loses else (lambda step: False)
    robot = Ticking(120, lost)
    ended, _ = drive(robot, Slow(robot, lateness(late), rows), tmp_path)
    log = read_episode(log_path(tmp_path, SEED))
    with LeRobotWriter(tmp_path / "data") as writer:
        store = LogStore(writer, EMBODIMENT, "slow")
        store.add(log)
    table = pq.read_table(tmp_path / "data" / "data").to_pylist()
    received, by_number = robot.arm.received, {step.observation.step: step for step in log.steps}
    for row in table:
        truth = received[row["control_step"]]
        assert row["action.executed"] == truth.action.astype(np.float32).tolist()
        assert row["observation.state"] == [float(np.float32(truth.x))]
        assert row["stamp_ns"] == row["stamp_ns.front"] == truth.stamp_ns
        cuts = {c.dim: c for c in by_number[row["control_step"]].clamps}
        for name, commanded, executed in zip(SPACE.names, row["action"], row["action.executed"], strict=True):
            if name in cuts:  # by the limit of acceleration
                told = np.array([cuts[name].wanted, cuts[name].allowed], np.float32)
                assert [commanded, executed] == told.tolist()
            else:
                assert commanded == executed
    require_gaps_split(table, received, {step for step in range(1, 120) if lost(step)})
    assert store.stored == len({row["episode_index"] for row in table})
    assert ended.lost_steps == sum(gap.count for gap in log.gaps) == store.missing
    assert len(log.steps) + ended.lost_steps == len(received) or not ended.finished
    if not loses:
        assert store.stored == 1 and len(log.steps) == 120
        require_replay(table)


def require_gaps_split(table: Sequence[Mapping[str, Any]], received: Sequence[Received], lost: set[int]) -> None:
    """Within an episode of the dataset nothing is missing but steps in which the pose was held."""
    missing = {
        step for tick in lost for step in (tick - 1, tick)
    }  # a tick shows the end of one step, and begins the next
    here = {row["control_step"] for row in table}
    assert not here & missing
    assert [s for s in set(range(len(received))) - here - missing if received[s].action[0]] == []
    for before, after in itertools.pairwise(table):
        between = range(before["control_step"] + 1, after["control_step"])
        is_same = before["episode_index"] == after["episode_index"]
        assert is_same == (not missing & set(between))


def require_replay(table: Sequence[Mapping[str, Any]]) -> None:
    """The executed actions of the dataset, with a hold wherever no row is, lead to the same states."""
    again = Arm(FakeClock(), horizon=10_000)
    again.reset(SEED)
    for row in table:
        while len(again.received) < row["control_step"]:
            again.hold()
        assert row["observation.state"] == [pytest.approx(again.x, abs=1e-6)]
        again.command(np.array(row["action.executed"], dtype=np.float64))


class Restamped:
    """A world whose stamps are those of the test's clock."""

    def __init__(self, world: Any, clock: FakeClock) -> None:
        self._world, self._clock = world, clock
        self.embodiment, self.instruction = world.embodiment, world.instruction

    def reset(self, seed: int) -> Observation:
        return self._stamped(self._world.reset(seed))

    def step(self, action: Vector) -> StepResult:
        result = self._world.step(action)
        return replace(result, observation=self._stamped(result.observation), command_ns=self._clock.now_ns())

    def look(self) -> Observation:
        return self._stamped(self._world.look())

    def close(self) -> None:
        self._world.close()

    def _stamped(self, observation: Observation) -> Observation:
        return replace(observation, stamp_ns=self._clock.now_ns(), stamps_ns={})


class Simulated(Ticking):
    """The same over a simulated Panda."""

    def __init__(self, world: Any) -> None:
        super().__init__(horizon=1)
        self._serve(WorldArm(Restamped(world, self.clock)), "drop")


def reaches(robot: Ticking, late: int) -> FunctionPolicy:
    """Moves the tool down and to one side, and thinks for some ticks first."""

    def decide(seen: Observation) -> Vector:
        for _ in range(late):
            robot.pass_time()
        row = [0.01, 0.02, -0.015, 0.0, 0.0, 0.03, float(seen.step % 8 < 4)]
        return np.tile(row, (2 if seen.step % 3 else 1, 1))

    return FunctionPolicy(decide)


@pytest.mark.sim
def test_a_recorded_episode_with_a_late_first_row_replays_in_simulation_to_the_same_states(tmp_path: Path) -> None:
    from vla_robot.recipe import read
    from vla_robot.recipe.env import EnvRecipe
    from vla_robot.world.kinds import build_world

    try:
        world = build_world(replace(read(EnvRecipe, "tabletop"), horizon=24))
    except WorldError as error:
        pytest.skip(str(error))
    robot = Simulated(world)
    guard = RangeGuard(world.embodiment.action)
    recorder = EpisodeRecorder(tmp_path, {})
    policy = reaches(robot, late=3)
    run_live_episode(robot, policy, SEED, guard=guard, subscribers=[recorder], clock=robot.clock)
    (made,) = demonstrations_of(read_episode(log_path(tmp_path, SEED)), world.embodiment, "reaches")
    assert made.steps[0] == 3 and len(made) < 24, "the first row did not come late, or nothing was held"
    again = WorldArm(world)
    seen, step = again.reset(SEED), 0
    for number, executed, state in zip(made.steps.tolist(), made.executed, made.states, strict=True):
        while step < number:
            seen, step = again.hold().observation, step + 1
        np.testing.assert_array_equal(state, seen.state)
        seen, step = again.command(executed).observation, step + 1
    again.close()


def test_the_folder_of_the_logs_is_on_the_disk_before_an_episode_begins(tmp_path: Path, power_cut: Any) -> None:
    robot, recorder = Ticking(horizon=5), EpisodeRecorder(tmp_path / "run", {})
    assert power_cut.calls == [f"fsync {tmp_path.name}/", "fsync run/"]
    run_live_episode(robot, pushy(), SEED, guard=RangeGuard(SPACE), subscribers=[recorder], clock=robot.clock)
    assert not {f"fsync {tmp_path.name}/", "fsync run/"} & set(power_cut.calls[2:])


def crashed_log(folder: Path) -> tuple[EpisodeLog, Ticking]:
    """A log whose process died in the midst of the episode, which began with ticks in which nothing was due."""
    robot = Ticking(60)
    recorder, told = EpisodeRecorder(folder, {}), 0

    def record(event: Event) -> None:
        nonlocal told
        told += isinstance(event, StepDone)
        if told <= 40:
            recorder(event)

    run_live_episode(
        robot, Slow(robot, lambda: 7, rows=20), SEED, guard=RangeGuard(SPACE), subscribers=[record], clock=robot.clock
    )
    assert recorder._writer is not None
    recorder._writer.abandon()
    return read_episode(log_path(folder, SEED).with_suffix(".vlalog.part")), robot


def test_of_a_run_that_crashed_what_was_recorded_is_what_the_arm_received(tmp_path: Path) -> None:
    log, robot = crashed_log(tmp_path)
    assert log.damage is not None and len(log.steps) == 40
    (made,) = demonstrations_of(log, EMBODIMENT, "slow")
    assert made.steps.tolist() == list(range(7, 40))  # the first seven ticks had nothing to play
    truth = [robot.arm.received[step] for step in made.steps.tolist()]
    np.testing.assert_array_equal(made.executed, [r.action for r in truth])
    np.testing.assert_array_equal(made.states[:, 0], [r.x for r in truth])
    np.testing.assert_array_equal(made.stamps_ns, [r.stamp_ns for r in truth])


def test_frames_that_the_log_dropped_end_a_demonstration_too(tmp_path: Path) -> None:
    robot = Ticking(20)
    drive(robot, Slow(robot, lambda: 0), tmp_path)
    log = read_episode(log_path(tmp_path, SEED))
    blind = tuple(
        replace(s, observation=replace(s.observation, images={})) if k == 9 else s for k, s in enumerate(log.steps)
    )
    before, after = demonstrations_of(replace(log, steps=blind), EMBODIMENT, "quick")
    assert (before.steps[-1], after.steps[0]) == (8, 10)
    assert after.facts == {"part": 2, "parts": 2}


def test_the_log_marks_each_gap(tmp_path: Path) -> None:
    robot = Ticking(20, lost=lambda step: step in (4, 9, 10))
    drive(robot, Slow(robot, lambda: 2, rows=8), tmp_path)
    log = read_episode(log_path(tmp_path, SEED))
    assert log.gaps == (Gap(3, 2), Gap(8, 3))
    assert log.summary is not None and log.summary["lost_steps"] == 5
