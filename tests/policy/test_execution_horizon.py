"""The execution horizon of a policy: how many actions of an answer are used."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.testing import FunctionPolicy, toy_embodiment, toy_observation

SEEN = toy_observation(toy_embodiment(), step=3)
EIGHT = FunctionPolicy(lambda o: np.zeros((8, 2)))


def test_a_chunk_keeps_all_its_actions_and_says_how_many_are_used() -> None:
    (chunk,) = ExecutionHorizon(EIGHT, 5).act([SEEN])
    assert (chunk.rows, chunk.actions.shape) == (5, (8, 2))
    assert [step for step in range(20) if chunk.lasts(step)] == [3, 4, 5, 6, 7]
    (whole,) = EIGHT.act([SEEN])
    assert [step for step in range(20) if whole.lasts(step)] == list(range(3, 11))


def test_more_rows_than_an_answer_has_are_an_error() -> None:
    with pytest.raises(PolicyError, match=r"rows is 9, but an answer of the policy has 8 action\(s\)"):
        ExecutionHorizon(EIGHT, 9).act([SEEN])


def test_less_than_one_row_is_refused() -> None:
    with pytest.raises(ContractError, match="rows must be at least 1, got 0"):
        ExecutionHorizon(EIGHT, 0)
