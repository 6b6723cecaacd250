"""One episode: the order of things, every way in which it ends, and where its time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.errors import PolicyError, SessionError, WorldError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Guard
from vla_robot.core.ports.wrapped_policy import WrappedPolicy
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.events import EpisodeEnded, EpisodeStarted, Event, StepDone, StepsLost, Subscriber
from vla_robot.loop.timing import TOTAL, WORLD_STEP
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.testing import FunctionPolicy

Make = Callable[..., Any]


@pytest.fixture
def run(clock: FakeClock, guard: Guard) -> Make:
    """`run(world, policy, seed, ...)` on the fake clock."""
    return lambda world, policy, seed=7, **more: run_episode(world, policy, seed, guard=guard, clock=clock, **more)


def steps_into(events: list[StepDone]) -> Subscriber:
    """A subscriber that keeps the steps."""
    return lambda event: events.append(event) if isinstance(event, StepDone) else None


def chunks_of(rows: int) -> FunctionPolicy:
    """A policy that gives several actions an answer."""
    return FunctionPolicy(lambda observation: np.tile([0.01, 1.0], (rows, 1)))


class Remembering(WrappedPolicy):
    """A policy that also reads the two observations before the present one."""

    @property
    def history_steps(self) -> int:
        return 2

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return self._policy.act(observations)


def test_it_resets_both_then_asks_guards_and_acts(make_world: Make, make_policy: Make, run: Make) -> None:
    calls: list[str] = []
    world, policy = make_world(succeed_at=2, calls=calls), make_policy(calls=calls)
    run(world, policy)
    assert calls == ["policy.reset(7)", "world.reset(7)", *["policy.act", "world.step"] * 2]


@pytest.mark.parametrize(("rows", "left_out"), [(1, []), (3, [1, 2, 4, 5, 7, 8]), (20, [*range(1, 10)])])
def test_only_what_the_policy_is_shown_is_rendered(rows: int, left_out: list[int], make_world: Make, run: Make) -> None:
    world, policy = make_world(succeed_at=None, horizon=10), chunks_of(rows)
    assert run(world, policy, frames_every=None).steps == 10
    assert world.without_frames == left_out
    assert all(observation.images for observation in policy.saw)


def test_an_execution_horizon_is_shown_a_frame_when_it_ends(make_world: Make, run: Make) -> None:
    world, policy = make_world(succeed_at=None, horizon=6), chunks_of(8)
    run(world, ExecutionHorizon(policy, 2), frames_every=None)
    assert world.without_frames == [1, 3, 5]
    assert all(observation.images for observation in policy.saw)


def test_subscribers_are_shown_their_frames_besides(make_world: Make, run: Make) -> None:
    world, steps = make_world(succeed_at=None, horizon=9), list[StepDone]()
    run(world, chunks_of(3), frames_every=4, subscribers=[steps_into(steps)])
    assert [done.observation.step for done in steps if done.observation.images] == [0, 3, 4, 6, 8]
    assert steps[-1].result.observation.images, "the last one is shown"


def test_every_frame_is_rendered_for_subscribers_and_for_a_policy_with_a_memory(make_world: Make, run: Make) -> None:
    shown, remembering = make_world(succeed_at=None, horizon=6), make_world(succeed_at=None, horizon=6)
    run(shown, chunks_of(3))
    run(remembering, Remembering(chunks_of(3)), frames_every=None)
    assert shown.without_frames == remembering.without_frames == []


def test_it_ends_as_success_when_the_world_says_so(make_world: Make, make_policy: Make, run: Make) -> None:
    result = run(make_world(succeed_at=3), make_policy())
    assert (result.outcome, result.success, result.steps) == ("success", True, 3)


def test_it_ends_as_timeout_at_the_horizon(make_world: Make, make_policy: Make, run: Make) -> None:
    result = run(make_world(succeed_at=None, horizon=4), make_policy())
    assert (result.outcome, result.success, result.steps) == ("timeout", False, 4)


def test_it_ends_as_failure_when_the_world_gives_up(make_world: Make, make_policy: Make, run: Make) -> None:
    assert run(make_world(succeed_at=None, fail_at=2), make_policy()).outcome == "failure"


def test_a_stop_flag_breaks_it_off_before_the_next_step(make_world: Make, make_policy: Make, run: Make) -> None:
    world = make_world(succeed_at=None)
    result = run(world, make_policy(), should_stop=lambda: world.at_step == 2)
    assert (result.outcome, result.finished, result.steps) == ("stopped", False, 2)


def test_a_policy_without_an_action_ends_it_and_nothing_is_sent(make_world: Make, make_policy: Make, run: Make) -> None:
    world = make_world()
    result = run(world, make_policy(error=PolicyError("logits are not finite."), fails_at=2))
    assert (result.outcome, result.error, result.steps) == ("error", "logits are not finite.", 2)
    assert len(world.actions) == 2


def test_a_policy_server_that_was_started_anew_ends_the_episode_and_not_the_run(
    make_world: Make, make_policy: Make, run: Make
) -> None:
    result = run(make_world(), make_policy(error=SessionError("the policy server was started anew."), fails_at=2))
    assert (result.outcome, result.error, result.steps) == ("error", "the policy server was started anew.", 2)


def test_a_guard_that_refuses_ends_it_and_nothing_is_sent(
    make_world: Make, make_policy: Make, clock: FakeClock
) -> None:
    class Refusing:
        def check(self, action: np.ndarray) -> Any:
            raise PolicyError("dx is nan.")

    world = make_world()
    result = run_episode(world, make_policy(), 0, guard=Refusing(), clock=clock)
    assert (result.outcome, result.error, world.actions) == ("error", "dx is nan.", [])


def test_a_chunk_is_played_before_the_policy_is_asked_again(make_world: Make, make_policy: Make, run: Make) -> None:
    events: list[StepDone] = []
    policy = make_policy(rows=3)
    run(make_world(succeed_at=5, horizon=9), policy, subscribers=[steps_into(events)])
    assert policy.calls.count("policy.act") == 2
    assert len({np.asarray(event.wanted).tobytes() for event in events}) == 5, "an action was played twice"


def test_the_policy_is_asked_again_after_the_rows_of_its_execution_horizon(
    make_world: Make, make_policy: Make, run: Make
) -> None:
    events: list[StepDone] = []
    policy = make_policy(rows=8)
    chunks: list[np.ndarray] = []

    class Kept:
        reset = policy.reset

        def act(self, observations: Any) -> Any:
            answer = policy.act(observations)
            chunks.append(answer[0].actions)
            return answer

    run(make_world(succeed_at=7, horizon=9), ExecutionHorizon(Kept(), 3), subscribers=[steps_into(events)])
    assert len(chunks) == 3  # at steps 0, 3 and 6
    np.testing.assert_array_equal(
        [e.wanted for e in events], np.concatenate([chunks[0][:3], chunks[1][:3], chunks[2][:1]])
    )


def test_a_horizon_longer_than_the_chunk_is_an_error_and_nothing_moves(
    make_world: Make, make_policy: Make, run: Make
) -> None:
    world = make_world()
    result = run(world, ExecutionHorizon(make_policy(rows=2), 3))
    assert result.outcome == "error" and "rows is 3, but an answer of the policy has 2 action(s)" in result.error
    assert world.actions == []


def test_rows_for_steps_that_are_over_are_skipped(make_world: Make, make_policy: Make, run: Make) -> None:
    policy = make_policy(rows=3, late_by=2)
    run(make_world(succeed_at=4), policy)
    assert policy.calls.count("policy.act") == 4


def test_a_chunk_that_is_wholly_late_is_an_error(make_world: Make, make_policy: Make, run: Make) -> None:
    world = make_world()
    result = run(world, make_policy(rows=2, late_by=2))
    assert result.error == "the policy has no action for step 0: its chunk holds steps -2 to -1."
    assert world.actions == []


def test_only_guarded_actions_reach_the_world_and_clamps_are_counted(
    make_world: Make, make_policy: Make, run: Make
) -> None:
    world = make_world(succeed_at=None, horizon=20)
    events: list[StepDone] = []
    result = run(world, make_policy(), subscribers=[steps_into(events)])
    assert all(np.abs(action[0]) <= 0.05 for action in world.actions)
    assert result.clamps == sum(int((e.wanted != e.commanded).sum()) for e in events) > 0


def test_subscribers_see_start_steps_and_end(make_world: Make, make_policy: Make, run: Make) -> None:
    events: list[Event] = []
    result = run(make_world(succeed_at=2), make_policy(), subscribers=[events.append])
    assert [type(e) for e in events] == [EpisodeStarted, StepDone, StepDone, EpisodeEnded]
    assert [e.observation.step for e in events if not isinstance(e, StepsLost)] == [0, 0, 1, 2]
    last = events[-1]
    assert isinstance(last, EpisodeEnded) and last.result is result


@pytest.mark.parametrize("error", [WorldError("the simulator diverged."), KeyboardInterrupt(), ZeroDivisionError()])
def test_any_other_exception_gets_through_after_the_subscribers_know(
    make_world: Make, make_policy: Make, run: Make, error: BaseException
) -> None:
    def fail(step: int) -> None:
        if step == 1:
            raise error

    events: list[Event] = []
    with pytest.raises(type(error)):
        run(make_world(on_step=fail), make_policy(), subscribers=[events.append])
    last = events[-1]
    assert isinstance(last, EpisodeEnded) and last.result.outcome == "stopped"


def test_the_stages_add_up_to_capture_to_command(make_world: Make, make_policy: Make, run: Make) -> None:
    policy = make_policy(think_ms=20, stages_ms={"preprocess": 4.0, "decode": 15.0})
    result = run(make_world(reporting=True), policy)
    stages_ms = {name: values[0] for name, values in result.stages_ms.items()}
    assert stages_ms == {
        "render": 16,
        "receive_rest": 2,
        "record": 0,
        "preprocess": 4,
        "decode": 15,
        "policy_rest": 1,
        "guard": 0,
        "send": 1,
        TOTAL: 39,
        WORLD_STEP: 30,
    }
    assert sum(ms for name, ms in stages_ms.items() if name not in (TOTAL, WORLD_STEP)) == stages_ms[TOTAL]


def test_time_that_subscribers_take_is_booked_as_theirs(
    make_world: Make, make_policy: Make, run: Make, clock: FakeClock
) -> None:
    slow = [lambda event: clock.advance_ns(5 * NS_PER_MS)]
    result = run(make_world(), make_policy(), subscribers=slow)
    assert result.stages_ms["record"].tolist() == [5, 5, 5]
    assert result.stages_ms[TOTAL].tolist() == [16 + 2 + 5 + 20 + 1] * 3


def test_a_paced_loop_keeps_its_rate(make_world: Make, make_policy: Make, run: Make) -> None:
    paced = run(make_world(succeed_at=None, horizon=50), make_policy(), rate_hz=10)
    assert paced.missed_ticks == 0
    # The last step does not wait for a tick, so 50 steps take 49 periods and the work of one step.
    assert paced.duration_s == pytest.approx(4.9 + 0.069)
    assert "wait" in paced.stages_ms


def test_a_loop_that_cannot_keep_its_rate_counts_the_ticks(make_world: Make, make_policy: Make, run: Make) -> None:
    result = run(make_world(succeed_at=None, horizon=5), make_policy(think_ms=120), rate_hz=10)
    assert result.missed_ticks == 4


def test_without_a_rate_it_runs_as_fast_as_it_goes(make_world: Make, make_policy: Make, run: Make) -> None:
    result = run(make_world(), make_policy())
    assert result.rate_hz == pytest.approx(1000 / (20 + 1 + 30 + 18))
    assert "wait" not in result.stages_ms


def test_the_same_seed_gives_the_same_actions(make_world: Make, make_policy: Make, run: Make) -> None:
    worlds = [make_world(), make_world(), make_world()]
    for world, seed in zip(worlds, (4, 4, 5), strict=True):
        run(world, make_policy(), seed)
    first, again, other = (np.array(world.actions) for world in worlds)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
