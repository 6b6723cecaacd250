"""The gap between chunks: values worked out by hand, and which steps of an episode have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.embodiment import ActionSpace, Dim
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Guard, Policy
from vla_robot.loop.chunk_gap import ChunkGapMeter, chunk_gap
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import Event, StepDone
from vla_robot.loop.recorder import EpisodeRecorder, log_path
from vla_robot.loop.results import EpisodeResult
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.record.episode import read_episode
from vla_robot.testing import FunctionPolicy, toy_embodiment, toy_observation

Make = Callable[..., Any]

EMBODIMENT = toy_embodiment(step_m=0.05)
SPACE = EMBODIMENT.action
"""A motion of -0.05 to 0.05 m, a range of 0.1; a gripper of 0 to 1."""


def chunk(step: int, *rows: Sequence[float]) -> ActionChunk:
    return ActionChunk(np.array(rows, np.float64), step, step)


FORMER = chunk(10, (0.0, 1), (0.0, 1), (0.0, 1), (0.01, 1), (0.02, 1), (0.03, 1))
NEW = chunk(13, (0.02, 1), (0.02, 0), (0.01, 0.5), (0.05, 0), (0.05, 0))


def test_the_gap_is_the_mean_share_of_the_ranges_over_the_common_steps() -> None:
    """Steps 13 to 15: the motion differs by 0.1, 0 and 0.2 of its range, the gripper by 0, 1 and 0.5 of its own."""
    assert chunk_gap(FORMER, NEW, SPACE) == pytest.approx((0.1 + 0 + 0.2 + 0 + 1 + 0.5) / 6)


def test_the_same_plan_has_no_gap_and_opposite_ends_of_all_ranges_a_whole_one() -> None:
    assert chunk_gap(FORMER, replace(FORMER, step=12, actions=FORMER.actions[2:]), SPACE) == 0
    assert chunk_gap(chunk(0, (0.05, 0), (-0.05, 0)), chunk(1, (0.05, 1)), SPACE) == 1


def test_actions_count_as_the_guard_limits_them() -> None:
    assert chunk_gap(chunk(0, (0, 0), (-9.0, 0.5)), chunk(1, (9.0, 0.5)), SPACE) == pytest.approx(0.5)


def test_a_chunk_that_was_used_up_has_no_gap_to_the_next() -> None:
    assert chunk_gap(FORMER, replace(NEW, step=16), SPACE) is None
    assert chunk_gap(FORMER, replace(NEW, step=15), SPACE) == pytest.approx((0.1 + 0) / 2)


def test_rows_that_a_conditioned_chunk_repeats_do_not_count() -> None:
    seen = replace(toy_observation(EMBODIMENT, 13), committed=FORMER.actions[3:5])
    meter = ChunkGapMeter(FunctionPolicy(), SPACE)
    meter.measured(FORMER, toy_observation(EMBODIMENT, 10))
    assert meter.measured(replace(NEW, conditioned=True), seen).chunk_gap == pytest.approx((0.2 + 0.5) / 2)
    assert chunk_gap(FORMER, NEW, SPACE, repeated=3) is None


def test_a_dimension_of_one_value_does_not_count() -> None:
    space = ActionSpace("joint_position", "joint", (*SPACE.dims, Dim("locked", "rad", 0.2, 0.2)))
    former, new = chunk(0, (0, 1, 0.2), (0.0, 1, 0.2)), chunk(1, (0.05, 1, 0.3))
    assert chunk_gap(former, new, space) == pytest.approx((0.5 + 0) / 2)
    assert chunk_gap(former, new, ActionSpace("joint_position", "joint", space.dims[2:])) is None


@pytest.mark.parametrize("rows", [[(np.nan, 1)], [(0.0, 1, 2)], [("far", "open")]])
def test_what_the_guard_refuses_has_no_gap(rows: Any) -> None:
    assert chunk_gap(FORMER, ActionChunk(np.array(rows), 13, 13), SPACE) is None


def test_a_persons_chunk_has_none_and_neither_has_the_one_after_it() -> None:
    meter = ChunkGapMeter(FunctionPolicy(), SPACE)
    plans = [FORMER, NEW, replace(NEW, step=14, intervention=True), replace(NEW, step=15), replace(NEW, step=16)]
    seen = toy_observation(EMBODIMENT)
    told = [meter.measured(plan, seen).chunk_gap for plan in plans]
    assert [gap is None for gap in told] == [True, False, True, True, False]


@pytest.fixture
def run(make_world: Make, guard: Guard, clock: FakeClock) -> Callable[..., tuple[EpisodeResult, list[StepDone]]]:
    """`run(policy)`: one episode of 7 steps in a world that waits -> its result and steps."""
    world = make_world(succeed_at=None, horizon=7)

    def go(policy: Policy, *subscribers: Callable[[Event], None]) -> tuple[EpisodeResult, list[StepDone]]:
        steps: list[StepDone] = []
        keep = [lambda event: steps.append(event) if isinstance(event, StepDone) else None]
        result = run_episode(world, policy, 0, guard=guard, clock=clock, subscribers=[*keep, *subscribers])
        return result, steps

    return go


def drifting() -> FunctionPolicy:
    """Plans four steps, 0.001 m farther for each step that it saw."""
    return FunctionPolicy(lambda seen: np.tile([0.001 * seen.step, 1.0], (4, 1)))


def test_steps_have_the_gap_of_their_chunk_in_events_result_and_log(run: Make, tmp_path: Path) -> None:
    """Asked at steps 0, 2, 4 and 6: each plan is 0.002 m or 0.02 of a range from the former, the gripper the same."""
    result, steps = run(ExecutionHorizon(drifting(), 2), EpisodeRecorder(tmp_path, {}))
    expected = [None, None, *[pytest.approx(0.01)] * 5]
    assert [step.chunk_gap for step in steps] == expected == list(result.chunk_gap)
    assert result.to_dict()["chunk_gap"] == [None, None, *[0.01] * 5]
    log = read_episode(log_path(tmp_path, 0))
    assert [step.chunk_gap for step in log.steps] == expected
    assert log.summary is not None and log.summary["chunk_gap"] == [None, None, *[0.01] * 5]


def test_every_episode_begins_without_a_former_plan(run: Make) -> None:
    policy = ExecutionHorizon(drifting(), 2)
    assert run(policy)[0].chunk_gap == run(policy)[0].chunk_gap == (None, None, *[pytest.approx(0.01)] * 5)


@pytest.mark.parametrize("policy", [drifting(), FunctionPolicy(lambda seen: 0.01)], ids=["chunks", "single actions"])
def test_a_policy_that_uses_up_its_chunks_has_none(run: Make, policy: Policy) -> None:
    assert run(policy)[0].chunk_gap == ()


def test_what_a_policy_says_of_its_own_gap_does_not_count(run: Make) -> None:
    class Sure(FunctionPolicy):
        def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
            return [replace(chunk, chunk_gap=0.9) for chunk in super().act(observations)]

    assert run(Sure(lambda seen: np.tile([0.01, 1.0], (4, 1))))[0].chunk_gap == ()


def test_an_answer_of_the_wrong_shape_is_still_the_guards_to_refuse(run: Make) -> None:
    policy = FunctionPolicy(lambda seen: np.zeros((4, 2 + (seen.step > 0))))
    result, _ = run(ExecutionHorizon(policy, 2))
    assert (result.outcome, result.steps) == ("error", 2)
    assert result.error is not None and "shape (3,)" in result.error
