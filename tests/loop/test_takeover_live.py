"""A person takes over from a policy whose arm has a clock of its own: a bridge without its sockets, on a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Guard, Policy
from vla_robot.core.robot import Tick
from vla_robot.core.teleop import Button, TeleopCommand
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.failure_detector import CHUNK_GAP, ENTROPY, Threshold
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.loop.results import EpisodeResult
from vla_robot.loop.takeover import Takeover
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.record.episode import read_episode
from vla_robot.safety.chunk import ChunkMerge
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig
from vla_robot.serve.bridge.log import BridgeLog
from vla_robot.testing import FunctionPolicy, ScriptedTeleoperator, ToyArm, toy_embodiment

TAKE, GIVE, HORIZON = 6, 14, 24
ROWS = 8
PERIOD_MS = 100
HAND = 0.04
EMBODIMENT = toy_embodiment(reach_m=9)


@dataclass
class Direct:
    """The Robot port straight on a bridge: a tick passes whenever one is waited for."""

    bridge: Bridge
    clock: FakeClock
    embodiment: Embodiment = EMBODIMENT
    instruction: str = "lift the cube"
    stops: list[str] = field(default_factory=list[str])

    def begin(self, seed: int) -> Observation:
        return self.bridge.begin(1, seed)

    def send(self, chunk: ActionChunk) -> None:
        self.bridge.put(chunk)

    def ticks(self, timeout_s: float) -> list[Tick]:
        if timeout_s == 0:
            return []
        self.clock.advance_ns(PERIOD_MS * NS_PER_MS)
        self.bridge.watchdog.beat()
        return [self.bridge.tick()]

    def end(self) -> None:
        self.bridge.end("asked to")


def plans(rows: int) -> FunctionPolicy:
    """Foresees rows that tell which step they were caused by."""
    return FunctionPolicy(lambda o: np.tile([-0.001 * o.step, 1.0], (rows, 1)))


class Script(ScriptedTeleoperator):
    """Takes over and gives back at steps; between them the hands move, or no person is there."""

    def __init__(self, absent: range = range(0), give: int = GIVE, ends: Button | None = None) -> None:
        pressed: dict[int, Button] = {TAKE: "takeover", give: ends or "giveback"}
        rest = TeleopCommand(np.array([0.0, 1.0]))
        said = {step: TeleopCommand(np.array([HAND, 1.0])) for step in range(TAKE, GIVE)}
        said |= dict.fromkeys(absent, TeleopCommand(None))
        said |= {at: replace(said.get(at, rest), buttons=frozenset({button})) for at, button in pressed.items()}
        super().__init__(said, rest)


Drive = Callable[..., tuple[EpisodeResult, list[StepDone]]]


@pytest.fixture
def drive(tmp_path: Path, guard: Guard) -> Drive:
    """One episode behind a bridge that keeps its log below tmp_path."""

    def go(
        policy: Policy,
        hands: ScriptedTeleoperator,
        splice: ChunkMerge = "drop",
        horizon: int = HORIZON,
        unsure_above: Threshold | None = None,
    ) -> tuple[EpisodeResult, list[StepDone]]:
        clock, steps = FakeClock(start_ns=10**12), list[StepDone]()
        arm = ToyArm(clock, EMBODIMENT, can_wait=False, horizon=horizon)
        bridge = Bridge(
            arm,
            SafetyFilter(EMBODIMENT, limits_of(EMBODIMENT, LimitsRecipe())),
            Watchdog(clock),
            clock,
            ExecutionConfig(splice=splice),
            BridgeLog(tmp_path / "log", {}),
        )

        def keep(event: Event) -> None:
            if isinstance(event, StepDone):
                steps.append(event)

        with Takeover(policy, hands, EMBODIMENT, row_by_row=False, clock=clock, unsure_above=unsure_above) as driver:
            result = run_live_episode(
                Direct(bridge, clock), driver, 0, guard=guard, subscribers=[driver, keep], clock=clock
            )
        return result, steps

    return go


def moved(step: StepDone) -> float:
    """What was executed of the first dimension."""
    assert step.result.executed is not None
    return float(step.result.executed[0])


@pytest.mark.parametrize("splice", ["drop", "blend", "ensemble", "rtc"])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_every_tick_between_takeover_and_give_back_is_the_persons_alone(
    drive: Drive, rows: int, splice: ChunkMerge
) -> None:
    result, steps = drive(plans(rows), Script(), splice)
    assert [s.observation.step for s in steps if s.intervention] == list(range(TAKE, GIVE))
    for step in steps:
        # Neither driver's actions are blended with what the other one had planned.
        assert (moved(step) == HAND) == step.intervention
        assert step.intervention or moved(step) <= 0
        assert not step.held
    assert (result.interventions, result.takeovers) == (GIVE - TAKE, 1)


def test_at_give_back_the_policy_is_asked_with_what_is_seen_then(drive: Drive) -> None:
    policy = plans(ROWS)
    _, steps = drive(policy, Script())
    assert moved(steps[GIVE]) == pytest.approx(-0.001 * GIVE)


def test_a_person_who_lets_go_leaves_the_arm_held_and_the_policy_waits(drive: Drive) -> None:
    gone = range(TAKE + 2, TAKE + 4)
    result, steps = drive(plans(ROWS), Script(gone))
    assert [s.observation.step for s in steps if s.held] == list(gone)
    assert [s.observation.step for s in steps if s.intervention] == list(range(TAKE, GIVE))
    for step in gone:  # neither the arm moves nor the gripper
        executed = steps[step].result.executed
        assert executed is not None and executed.tolist() == [0.0, 1.0]
    assert (result.interventions, result.takeovers) == (GIVE - TAKE - len(gone), 1)


def test_a_robot_that_a_person_lets_rest_for_long_is_not_taken_for_lost(drive: Drive) -> None:
    give = TAKE + 60  # six seconds: a bridge stops an arm whose controller says nothing for three
    result, steps = drive(plans(ROWS), Script(range(TAKE + 1, give), give), horizon=give + 5)
    assert result.outcome == "timeout" and result.error is None
    assert not any(moved(s) for s in steps[TAKE + 1 : give])
    assert all(moved(s) for s in steps[give:])


def test_a_person_who_ends_the_episode_leaves_the_arm_held(drive: Drive, tmp_path: Path) -> None:
    result, steps = drive(plans(ROWS), Script(ends="success"))
    assert (result.outcome, result.helped, len(steps)) == ("success", True, GIVE)
    (path,) = (tmp_path / "log").iterdir()
    summary = read_episode(path).summary
    assert summary is not None and summary["error"] == "asked to"  # the bridge was told to hold


def test_the_bridges_own_log_says_who_drove(drive: Drive, tmp_path: Path) -> None:
    drive(plans(ROWS), Script())
    (path,) = (tmp_path / "log").iterdir()
    assert [s.observation.step for s in read_episode(path).steps if s.intervention] == list(range(TAKE, GIVE))


def test_a_quick_policys_own_action_stands_beside_the_persons(drive: Drive) -> None:
    _, steps = drive(plans(ROWS), Script())
    for step in (s for s in steps if s.intervention):
        assert step.policy_action is not None
        assert step.policy_action[0] == pytest.approx(-0.001 * step.observation.step)


def test_a_takeover_does_not_wait_for_the_end_of_an_execution_horizon(drive: Drive) -> None:
    _, steps = drive(ExecutionHorizon(plans(ROWS), 4), Script())
    assert [s.observation.step for s in steps if s.intervention] == list(range(TAKE, GIVE))
    assert moved(steps[GIVE]) == pytest.approx(-0.001 * GIVE)


class Unsure(FunctionPolicy):
    """A policy whose entropy is the number of the step, in nats."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [replace(chunk, entropy=float(chunk.step)) for chunk in super().act(observations)]


@pytest.mark.parametrize(("rows", "first"), [(None, 6), (3, 7)])
def test_an_unsure_policy_leaves_a_robot_at_rest_until_the_person_acts(
    drive: Drive, rows: int | None, first: int
) -> None:
    policy = Unsure(lambda o: np.tile([-0.001 * o.step - 0.001, 1.0], (ROWS, 1)))
    absent = ScriptedTeleoperator({}, TeleopCommand(None))
    result, steps = drive(
        policy if rows is None else ExecutionHorizon(policy, rows), absent, unsure_above=Threshold(ENTROPY, 2.9)
    )
    assert [s.observation.step for s in steps if s.held] == list(range(first, HORIZON))
    assert (result.takeovers, result.interventions) == (1, 0)
    for step in steps[first:]:
        assert step.result.executed is not None and step.result.executed.tolist() == [0.0, 1.0]


def test_the_gaps_between_plans_end_at_a_takeover_and_stand_in_the_bridges_log(drive: Drive, tmp_path: Path) -> None:
    """Each plan is 0.001 m of 0.1 m from the one of the tick before, and the gripper the same."""
    result, steps = drive(plans(ROWS), Script())
    first = (0, GIVE)  # plans without a former one
    expected = [None if TAKE <= k < GIVE or k in first else pytest.approx(0.005) for k in range(HORIZON)]
    assert [step.chunk_gap for step in steps] == expected == list(result.chunk_gap)
    (path,) = (tmp_path / "log").iterdir()
    assert [step.chunk_gap for step in read_episode(path).steps] == expected


def test_a_policy_that_changes_its_plans_leaves_a_robot_at_rest(drive: Drive) -> None:
    """The plans of steps 3 and 6 each have a gap of 0.05: steps 3 to 7 are the first five with one."""
    policy = FunctionPolicy(lambda o: np.tile([-0.005 - (-1) ** o.step * 0.005, 1.0], (ROWS, 1)))
    absent = ScriptedTeleoperator({}, TeleopCommand(None))
    result, steps = drive(ExecutionHorizon(policy, 3), absent, unsure_above=Threshold(CHUNK_GAP, 0.049))
    assert [step.chunk_gap for step in steps[:8]] == [None] * 3 + [pytest.approx(0.05)] * 5
    assert steps[9].held and result.takeovers == 1


def test_an_e_stop_at_the_controls_does_not_wait_for_the_end_of_an_execution_horizon(drive: Drive) -> None:
    result, steps = drive(ExecutionHorizon(plans(ROWS), 4), Script(give=TAKE, ends="estop"))
    assert (result.outcome, len(steps)) == ("error", TAKE)
