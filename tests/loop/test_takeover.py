"""A person takes over and gives back: who drove each step, what the policy is asked, what is recorded and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.errors import NoActionYetError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Guard, Teleoperator
from vla_robot.core.teleop import Button, TeleopCommand
from vla_robot.data.formats.lerobot.demo_dataset import open_demos
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.data.formats.open import open_source
from vla_robot.data.summary import summarise
from vla_robot.evaluate.runner import run_episodes
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.failure_detector import CHUNK_GAP, ENTROPY, Threshold
from vla_robot.loop.results import EpisodeResult, RunInfo
from vla_robot.loop.takeover import Takeover
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.record.corrections import CORRECTED, LogStore
from vla_robot.record.episode import read_episode
from vla_robot.testing import FunctionPolicy, ScriptedTeleoperator, press, toy_embodiment, toy_observation

Make = Callable[..., Any]
TAKE, GIVE = 3, 7
HORIZON = 10
HAND = np.array([0.04, 1.0])
"""What the person says; no policy of these tests says it."""

EMBODIMENT = toy_embodiment(height=32, width=48)


class Script(ScriptedTeleoperator):
    """Hands that press buttons when they see a step, and otherwise say the same all the time."""

    def __init__(
        self, buttons: Mapping[int, Button], action: Vector | None = HAND, actions: Mapping[int, Vector | None] = {}
    ) -> None:
        pressed = {step: press(button).buttons for step, button in buttons.items()}
        steps = {*buttons, *actions}
        said = {step: TeleopCommand(actions.get(step, action), pressed.get(step, frozenset())) for step in steps}
        super().__init__(said, TeleopCommand(action))


def still(x: float = 0.0, gripper: float = 1.0) -> Vector:
    return np.array([x, gripper])


@pytest.fixture
def drive(clock: FakeClock, guard: Guard, make_world: Make) -> Make:
    """`drive(policy, hands)`: one episode in lock-step -> its result and its steps."""

    def go(
        policy: Any, hands: Teleoperator, unsure_above: Threshold | None = None, **options: Any
    ) -> tuple[EpisodeResult, list[StepDone]]:
        steps: list[StepDone] = []
        world = make_world(**{"succeed_at": HORIZON, "horizon": HORIZON + 1, **options})
        with Takeover(policy, hands, EMBODIMENT, row_by_row=True, clock=clock, unsure_above=unsure_above) as driver:
            result = run_episode(
                world, driver, 7, guard=guard, clock=clock, subscribers=[driver, lambda e: keep_step(steps, e)]
            )
        return result, steps

    return go


def corrects(kind: type[Script] = Script) -> Script:
    """Hands that take over at TAKE and give back at GIVE."""
    return kind({TAKE: "takeover", GIVE: "giveback"}, still(), dict.fromkeys(range(TAKE, GIVE), HAND))


def keep_step(steps: list[StepDone], event: Event) -> None:
    if isinstance(event, StepDone):
        steps.append(event)


def corrected(steps: Sequence[StepDone]) -> list[int]:
    return [step.observation.step for step in steps if step.intervention]


def test_the_steps_between_takeover_and_give_back_are_the_persons(make_policy: Make, drive: Make) -> None:
    result, steps = drive(make_policy(), corrects())
    assert corrected(steps) == list(range(TAKE, GIVE))
    assert all((step.commanded[0] == HAND[0]) == step.intervention for step in steps)
    assert (result.interventions, result.takeovers) == (GIVE - TAKE, 1)


def test_hands_that_begin_to_move_take_over_without_a_button(make_policy: Make, drive: Make) -> None:
    hands = Script({GIVE: "giveback"}, still(), dict.fromkeys(range(TAKE, HORIZON), HAND))
    _, steps = drive(make_policy(), hands)
    assert corrected(steps) == list(range(TAKE, GIVE))  # a key that is still held at give-back does not take over


def test_hands_that_move_already_when_an_episode_begins_must_rest_first(make_policy: Make, drive: Make) -> None:
    _, steps = drive(make_policy(), Script({}))
    assert corrected(steps) == []


class Unsure(FunctionPolicy):
    """A policy whose entropy is the number of the step, 0 to 10 nats."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [replace(chunk, entropy=float(chunk.step)) for chunk in super().act(observations)]


def test_an_unsure_policy_asks_the_person_who_gives_control_back(drive: Make) -> None:
    """The mean of steps 1 to 5 is 3, so that step 6 is the person's; the five steps after give-back count anew."""
    hands = Script({8: "giveback"}, still(), dict.fromkeys((6, 7), HAND))
    policy = Unsure(lambda seen: still(0.01))
    result, steps = drive(policy, hands, unsure_above=Threshold(ENTROPY, 2.9), succeed_at=99, horizon=15)
    assert corrected(steps) == [6, 7, 13, 14]
    assert (result.takeovers, result.interventions) == (2, 4)
    assert [None if step.intervention else step.observation.step for step in steps] == [s.entropy for s in steps]
    assert list(result.entropy) == [step.entropy for step in steps]


def test_the_person_is_told_that_the_policy_asks(drive: Make) -> None:
    hands = Script({}, still(), dict.fromkeys(range(6, HORIZON), HAND))
    drive(Unsure(lambda seen: still(0.01)), hands, unsure_above=Threshold(ENTROPY, 2.9))
    told = [counters["drives"] for _, counters in hands.shown]
    assert told[:6] == ["the policy"] * 6 and set(told[6:]) == {"you: the policy is unsure"}


def test_without_a_threshold_an_unsure_policy_goes_on(drive: Make) -> None:
    _, steps = drive(Unsure(lambda seen: still(0.01)), Script({}, still()))
    assert corrected(steps) == []


def wavering() -> ExecutionHorizon:
    """Plans eight steps, of which three are used; each plan goes the other way, across half of the ranges."""
    return ExecutionHorizon(FunctionPolicy(lambda seen: np.tile([(-1) ** seen.step * 0.05, 1.0], (8, 1))), 3)


def test_a_policy_that_changes_its_plans_asks_the_person(drive: Make) -> None:
    """The plans of steps 3 and 6 each have a gap of 0.5: steps 3 to 7 are the first five with one."""
    hands = Script({9: "giveback"}, still(), {8: HAND})
    result, steps = drive(wavering(), hands, unsure_above=Threshold(CHUNK_GAP, 0.49), succeed_at=12, horizon=13)
    assert corrected(steps) == [8]
    assert list(result.chunk_gap) == [None] * 3 + [0.5] * 5 + [None] + [None] * 3  # after give-back, a first plan
    assert result.entropy == ()


def test_plans_that_change_no_more_than_the_threshold_go_on(drive: Make) -> None:
    result, steps = drive(wavering(), Script({}, still()), unsure_above=Threshold(CHUNK_GAP, 0.5))
    assert corrected(steps) == [] and list(result.chunk_gap) == [None] * 3 + [0.5] * (HORIZON - 3)


def test_after_give_back_a_plan_is_measured_against_none_from_before_the_takeover(drive: Make) -> None:
    """Neither against one that the policy made while it was asked beside the person."""
    policy = FunctionPolicy(lambda seen: np.tile([0.001 * seen.step, 1.0], (8, 1)))
    result, steps = drive(ExecutionHorizon(policy, 3), corrects(), succeed_at=12, horizon=13)
    assert any(step.policy_action is not None for step in steps)
    assert list(result.chunk_gap) == [None] * 10 + [pytest.approx(0.015)] * 2  # 0.003 m of 0.1 m, and the gripper


def test_a_takeover_without_an_action_drops_the_plan_too(clock: FakeClock, drive: Make) -> None:
    class Hesitant(Script):
        """Takes over at TAKE, says nothing, and gives back at the same step."""

        said = 0

        def command(self) -> TeleopCommand:
            if not self.shown or self.shown[-1][0].step != TAKE or self.said > 2:
                return TeleopCommand(None)
            self.said += 1
            return (press("takeover"), TeleopCommand(None), press("giveback"))[self.said - 1]

    asked: list[int] = []

    def plan(seen: Observation) -> Vector:
        asked.append(seen.step)
        return np.tile([0.001 * seen.step, 1.0], (8, 1))

    result, _ = drive(FunctionPolicy(plan), Hesitant({}, None))
    assert asked == [0, TAKE] and result.chunk_gap == ()


def test_a_chunk_is_dropped_at_the_takeover_and_the_policy_is_asked_afresh(clock: FakeClock, drive: Make) -> None:
    asked: list[int] = []

    def count(seen: Observation) -> Vector:
        asked.append(seen.step)
        clock.advance_ns(80_000_000)  # too slow to be asked beside the person
        return np.full((8, 2), seen.step / 1000)

    _, steps = drive(FunctionPolicy(count), corrects())
    assert asked == [0, GIVE]
    assert [float(s.commanded[0]) for s in steps if not s.intervention] == [0] * TAKE + [GIVE / 1000] * (HORIZON - GIVE)
    assert all(step.policy_action is None for step in steps)


def test_beside_a_person_a_policy_keeps_its_execution_horizon(drive: Make) -> None:
    policy = FunctionPolicy(lambda seen: np.full((8, 2), seen.step / 1000))
    _, steps = drive(ExecutionHorizon(policy, 3), Script({}, None))
    assert [round(1000 * float(s.commanded[0])) for s in steps] == [k - k % 3 for k in range(HORIZON)]


def test_a_quick_policy_is_asked_beside_the_person(make_policy: Make, drive: Make) -> None:
    _, steps = drive(make_policy(think_ms=5), corrects())
    for step in steps:
        assert (step.policy_action is not None) == step.intervention
        if step.policy_action is not None:
            assert step.policy_action[0] != HAND[0]


def test_without_a_takeover_everything_is_as_without_hands(
    clock: FakeClock, guard: Guard, make_world: Make, make_policy: Make, drive: Make
) -> None:
    plain: list[StepDone] = []
    world = make_world(succeed_at=HORIZON, horizon=HORIZON + 1)
    run_episode(
        world, make_policy(rows=4), 7, guard=guard, clock=clock, subscribers=[lambda event: keep_step(plain, event)]
    )
    _, shared = drive(make_policy(rows=4), Script({}, still()))
    np.testing.assert_array_equal([s.commanded for s in shared], [s.commanded for s in plain])


def test_the_world_waits_for_a_person_who_lets_go_of_the_controls(clock: FakeClock, make_policy: Make) -> None:
    hands = Script({TAKE: "takeover"}, None)
    with Takeover(make_policy(), hands, EMBODIMENT, row_by_row=True, clock=clock) as driver:
        driver.reset(0)
        hands.show(observation(TAKE), {})
        for _ in range(3):
            with pytest.raises(NoActionYetError, match="gives no action"):
                driver.act([observation(TAKE)])
        assert driver.driver == "person"


def test_the_grip_stays_as_the_policy_had_it_until_the_hands_change_theirs(drive: Make) -> None:
    later = {6: still(0.04, 0.0), 7: still(0.04, 1.0), 8: still(0.04, 1.0), 9: still(0.04, 1.0)}
    _, steps = drive(FunctionPolicy(lambda o: still(0.0, 0.0)), Script({TAKE: "takeover"}, HAND, later))
    grips = {s.observation.step: s.commanded[1] for s in steps}
    assert [grips[step] for step in range(HORIZON)] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_e_stop_ends_the_episode(clock: FakeClock, make_policy: Make) -> None:
    stops: list[str] = []
    hands = Script({2: "estop"})
    with Takeover(
        make_policy(), hands, EMBODIMENT, row_by_row=True, clock=clock, on_estop=lambda: stops.append("stop")
    ) as driver:
        driver.reset(0)
        hands.show(observation(2), {})
        with pytest.raises(PolicyError, match="pressed e-stop"):
            driver.act([observation(2)])
    assert stops == ["stop"]


@pytest.mark.parametrize(("button", "outcome"), [("success", "success"), ("stop", "failure")])
def test_a_person_may_end_the_episode_and_say_what_it_was(
    button: Button, outcome: str, make_policy: Make, drive: Make
) -> None:
    result, steps = drive(make_policy(), Script({5: button}, still()))
    assert (result.outcome, result.success, result.error) == (outcome, outcome == "success", None)
    assert len(steps) == 5


def test_what_a_person_calls_a_success_is_stored_as_one(run: Make, tmp_path: Path) -> None:
    run(Script({5: "success"}, still()), succeed_at=None)
    first, second = open_demos(tmp_path / "data").episodes
    assert (first.success, len(first)) == (True, 5) and not second.success


def test_a_takeover_does_not_wait_for_a_policy_that_thinks(clock: FakeClock) -> None:
    thinks, may_answer = threading.Event(), threading.Event()

    def think(seen: Observation) -> Vector:
        thinks.set()
        assert may_answer.wait(60)
        return still()

    class Impatient(Script):
        def command(self) -> TeleopCommand:
            if thinks.is_set() and not may_answer.is_set() and not self.shown:
                self.show(observation(TAKE), {})  # the button is pressed while the policy thinks
            return super().command()

    policy, hands = FunctionPolicy(think), Impatient({TAKE: "takeover", GIVE: "giveback"})
    with Takeover(policy, hands, EMBODIMENT, row_by_row=False, clock=clock) as driver:
        driver.reset(0)
        with pytest.raises(NoActionYetError, match="took over while the policy thought"):
            driver.act([observation(0)])
        (chunk,) = driver.act([observation(1)])
        assert chunk.intervention and (chunk.actions == HAND).all()
        hands.show(observation(GIVE), {})
        with pytest.raises(NoActionYetError, match="still computing"):
            driver.act([observation(GIVE)])
        may_answer.set()
        while True:
            try:
                (chunk,) = driver.act([observation(GIVE + 1)])
                break
            except NoActionYetError:
                continue
        assert not chunk.intervention and chunk.step == GIVE + 1 and [seen.step for seen in policy.saw] == [0, GIVE + 1]


def test_the_person_sees_what_happens_while_the_policy_thinks(clock: FakeClock) -> None:
    may_answer = threading.Event()

    def think(seen: Observation) -> Vector:
        assert may_answer.wait(60)
        return still()

    class Watching(Script):
        def show(self, observation: Observation, counters: Mapping[str, str]) -> None:
            super().show(observation, counters)
            if observation.step == TAKE:
                may_answer.set()

    hands, passing = Watching({}, still()), range(1, TAKE + 1)
    look = partial(next, (observation(step) for step in passing), observation(TAKE))
    with Takeover(FunctionPolicy(think), hands, EMBODIMENT, row_by_row=False, clock=clock, look=look) as driver:
        driver.reset(0)
        (chunk,) = driver.act([observation(0)])
    assert chunk.step == 0 and hands.shown[-1][0].step == TAKE


def test_the_person_is_told_who_drives_and_how_the_arm_grips(make_policy: Make, drive: Make) -> None:
    hands = corrects()
    drive(make_policy(), hands)
    drivers = [driver for driver, _ in hands.drivers]
    assert drivers[0] == "policy" and "person" in drivers and drivers[-1] == "policy"
    assert hands.shown[-1][1] == {"drives": "the policy", "episode": "1", "steps": str(HORIZON), "corrected": "4"}


@pytest.fixture
def run(clock: FakeClock, guard: Guard, make_world: Make, make_policy: Make, tmp_path: Path) -> Make:
    """`run(hands)`: two episodes with a folder and a dataset -> their summary."""

    def go(hands: Teleoperator, **options: Any) -> Any:
        with (
            LeRobotWriter(tmp_path / "data") as writer,
            Takeover(make_policy(think_ms=5), hands, EMBODIMENT, row_by_row=True, clock=clock) as driver,
        ):
            store = LogStore(writer, EMBODIMENT, "fake")
            world = make_world(**{"succeed_at": HORIZON, "horizon": HORIZON + 1, **options})
            return run_episodes(
                partial(run_episode, world, driver, guard=guard, clock=clock),
                EMBODIMENT,
                [3, 4],
                info=RunInfo("toy", "fake", "lift the <red> cube"),
                folder=tmp_path / "run",
                subscribers=[driver],
                video=False,
                on_episode=lambda result, log: store.add(log),
            )

    return go


class Once(Script):
    """Hands that rest in the second episode."""

    def command(self) -> TeleopCommand:
        said = super().command()
        is_first = all(seen.step < HORIZON for seen, _ in self.shown)
        return said if is_first else TeleopCommand(still())


def test_the_log_and_the_dataset_mark_exactly_the_corrected_steps(run: Make, tmp_path: Path) -> None:
    run(corrects(Once))
    marks = [[s.intervention for s in read_episode(tmp_path / f"run/episodes/seed_{n}.vlalog").steps] for n in (3, 4)]
    assert marks == [[TAKE <= step < GIVE for step in range(HORIZON)], [False] * HORIZON]

    pq = pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(tmp_path / "data" / "data").to_pylist()
    assert [row["intervention"] for row in rows] == marks[0] + marks[1]
    for row in rows:
        same = row["action"] == row["action.policy"]
        assert row["policy_asked"] and same != row["intervention"]

    summary = summarise(open_source(tmp_path / "data"), most=10)
    assert (summary.corrected, summary.corrected_episodes) == (GIVE - TAKE, 1)

    demos = open_demos(tmp_path / "data")
    assert [episode.driver for episode in demos.episodes] == ["fake" + CORRECTED, "fake"]
    np.testing.assert_allclose(demos.actions[TAKE:GIVE, 0], HAND[0], rtol=1e-6)


def test_a_success_with_help_is_none_of_the_policys_own(run: Make) -> None:
    summary = run(corrects(Once))
    assert [episode.outcome for episode in summary.episodes] == ["success", "success"]
    assert [episode.success for episode in summary.episodes] == [False, True]
    told = summary.to_dict()
    assert (told["successes"], told["success_rate"], told["successes_with_help"]) == (1, 0.5, 1)
    assert told["interventions"] == GIVE - TAKE
    assert [(e["helped"], e["interventions"], e["takeovers"]) for e in told["episodes"]] == [
        (True, 4, 1),
        (False, 0, 0),
    ]


def observation(step: int) -> Observation:
    return toy_observation(EMBODIMENT, step, stamp_ns=step)
