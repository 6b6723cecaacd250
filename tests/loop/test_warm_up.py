"""A policy is warmed up before anything moves, and refused where its answers could never move the arm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S, FakeClock
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.robot import TimeLimits
from vla_robot.loop.warm_up import Warm, too_seldom, too_slow, warm_up
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.testing import FunctionPolicy

LIMITS = TimeLimits(max_age_s=0.5, hold_after_s=0.5, stop_after_s=3.0)
RATE_HZ = 10.0
NEVER = 1e9


class Slow(FunctionPolicy):
    """Takes so many seconds for each of its answers; the last time goes on. It gives up after its time-out."""

    def __init__(self, clock: FakeClock, *answer_s: float, rows: int = 1, timeout_s: float = NEVER) -> None:
        super().__init__(self._think)
        self.clock, self.answer_s, self.rows, self.timeout_s = clock, list(answer_s), rows, timeout_s

    def _think(self, observation: Observation) -> Vector:
        takes_s = self.answer_s.pop(0) if len(self.answer_s) > 1 else self.answer_s[0]
        self.clock.advance_ns(round(min(takes_s, self.timeout_s) * NS_PER_S))
        if takes_s > self.timeout_s:
            raise PolicyError("the policy server did not answer.")
        return np.zeros((self.rows, 2))


def warm(policy: Slow) -> Warm:
    def look() -> Observation:
        return Observation({}, np.zeros(1), "", policy.clock.now_ns(), 0)

    return warm_up(policy, look, 7, LIMITS, RATE_HZ, clock=policy.clock)


def test_a_first_answer_that_compiles_is_waited_for_and_thrown_away() -> None:
    policy = Slow(FakeClock(), 40.0, 0.2)
    assert warm(policy) == Warm(first_s=40.0, quick_s=0.2, rows=1)
    assert len(policy.saw) == 2 and policy.seeds == [7, 7]
    assert policy.saw[1].stamp_ns > policy.saw[0].stamp_ns, "it was asked with what was seen before"


def test_a_quick_policy_is_asked_once() -> None:
    policy = Slow(FakeClock(), 0.1)
    assert warm(policy).quick_s == 0.1 and len(policy.saw) == 1


def test_a_moment_in_which_the_computer_was_busy_is_forgiven() -> None:
    assert warm(Slow(FakeClock(), 40.0, 0.9, 0.7, 0.3)).quick_s == 0.3


@pytest.mark.parametrize(
    ("answer_s", "rows", "words"),
    [
        (0.8, 1, r"takes 0\.80 s for an answer.*older than 0\.5 s.*--max-age-s 1\.6"),
        (3.6, 1, r"takes 3\.60 s for an answer.*no action came for 3\.5 s"),
        (3.6, 100, r"takes 3\.60 s for an answer.*no action came for 3\.5 s"),
        (0.8, 8, r"takes 0\.80 s for an answer.*8 actions are for 0\.80 s at 10 Hz"),
    ],
)
def test_a_policy_that_could_never_move_the_arm_is_refused_with_both_numbers(
    answer_s: float, rows: int, words: str
) -> None:
    with pytest.raises(ContractError, match=words):
        warm(Slow(FakeClock(), answer_s, rows=rows))


@pytest.mark.parametrize(("answer_s", "rows"), [(0.5, 1), (0.7, 8), (3.4, 50)])
def test_a_policy_that_is_quick_enough_is_not(answer_s: float, rows: int) -> None:
    assert too_slow(answer_s, rows, LIMITS, RATE_HZ) == ""


@pytest.mark.parametrize(("rows", "answer_s", "refused"), [(4, 0.1, False), (5, 0.1, True), (2, 0.6, True)])
def test_an_execution_horizon_that_outlasts_the_bridges_patience_is_refused(
    rows: int, answer_s: float, refused: bool
) -> None:
    chunk = ActionChunk(np.zeros((50, 2)), 0, 0, rows=rows)
    told = too_seldom(answer_s, chunk, LIMITS, RATE_HZ)
    assert ("the bridge holds the arm when no action came for 0.5 s. Use fewer `rows`" in told) == refused
    assert too_seldom(answer_s, replace(chunk, rows=None), LIMITS, RATE_HZ) == ""


def test_a_policy_with_such_a_horizon_moves_nothing() -> None:
    clock = FakeClock()
    policy = ExecutionHorizon(Slow(clock, 0.1, rows=50), 20)
    with pytest.raises(ContractError, match=r"an answer comes every 2\.00 s.*--hold-after-s 4\.0.*Nothing was moved"):
        warm_up(policy, lambda: Observation({}, np.zeros(1), "", 0, 0), 7, LIMITS, RATE_HZ, clock=clock)


def test_a_policy_that_gives_up_while_its_server_compiles_is_asked_again() -> None:
    policy = Slow(FakeClock(), 60.0, 60.0, 0.1, timeout_s=10.0)
    assert warm(policy).first_s == pytest.approx(20.1)
    assert len(policy.saw) == 4


def test_a_policy_that_never_answers_is_given_up() -> None:
    policy = Slow(FakeClock(), 60.0, timeout_s=10.0)
    with pytest.raises(PolicyError, match="did not answer"):
        warm(policy)
    assert policy.clock.now_ns() == 300 * NS_PER_S


def test_a_policy_that_has_no_action_at_all_is_not_asked_again() -> None:
    policy = Slow(FakeClock(), 60.0, timeout_s=0.0)
    with pytest.raises(PolicyError, match="did not answer"):
        warm(policy)
    assert len(policy.saw) == 1


def test_a_person_who_ends_it_is_heard() -> None:
    policy = Slow(FakeClock(), 9.0)
    look = Observation({}, np.zeros(1), "", 0, 0)
    found = warm_up(policy, lambda: look, 0, LIMITS, RATE_HZ, clock=policy.clock, should_stop=lambda: True)
    assert found == Warm(9.0, 9.0, 1) and len(policy.saw) == 1
