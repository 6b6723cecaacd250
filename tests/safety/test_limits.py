"""Tests of the guard: its result is inside the limits, and each change is reported as a clamp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_robot.core.embodiment import ActionSpace, Dim
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import Clamp, Vector
from vla_robot.safety.limits import RangeGuard, require_action

SPACE = ActionSpace(
    "eef_delta", "base", (Dim("dx", "m", -0.05, 0.05), Dim("droll", "rad", -0.5, 0.5), Dim("gripper", "1", 0.0, 1.0))
)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(arrays(np.float64, 3, elements=finite))
def test_what_comes_out_is_inside_the_limits(action: Vector) -> None:
    allowed, _ = RangeGuard(SPACE).check(action)
    assert ((SPACE.low <= allowed) & (allowed <= SPACE.high)).all()


@given(arrays(np.float64, 3, elements=finite))
def test_clamps_are_exactly_the_dimensions_that_changed(action: Vector) -> None:
    allowed, clamps = RangeGuard(SPACE).check(action)
    changed = [name for name, before, after in zip(SPACE.names, action, allowed, strict=True) if before != after]
    assert [clamp.dim for clamp in clamps] == changed


@given(arrays(np.float64, 3, elements=finite))
def test_guarding_twice_changes_nothing_more(action: Vector) -> None:
    guard = RangeGuard(SPACE)
    once, _ = guard.check(action)
    twice, clamps = guard.check(once)
    assert np.array_equal(once, twice)
    assert clamps == ()


def test_a_clamp_tells_both_values_and_the_cause() -> None:
    _, clamps = RangeGuard(SPACE).check(np.array([0.2, 0.0, 1.0]))
    assert clamps == (Clamp("dx", "range", 0.2, 0.05),)


def test_the_action_of_the_policy_is_not_changed_in_place() -> None:
    action = np.array([9.0, 9.0, 9.0])
    RangeGuard(SPACE).check(action)
    assert action.tolist() == [9.0, 9.0, 9.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(PolicyError, match=r"not finite: droll = -?(nan|inf)\. Nothing was sent"):
        RangeGuard(SPACE).check(np.array([0.0, value, 0.0]))


@pytest.mark.parametrize("action", [np.zeros(2), np.zeros((1, 3)), np.float64(0.0)])
def test_a_wrong_shape_is_refused(action: Vector) -> None:
    with pytest.raises(PolicyError, match=r"the arm takes 3 numbers \(dx, droll, gripper\)"):
        RangeGuard(SPACE).check(action)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ContractError, match="3 numbers"):
        require_action(["a", "b", "c"], SPACE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (-np.inf, 0.0), (0.0, np.nan)])
def test_limits_that_are_reversed_or_not_finite_are_refused(low: float, high: float) -> None:
    with pytest.raises(ContractError, match="limits of 'dx' are"):
        RangeGuard(ActionSpace("eef_delta", "base", (Dim("dx", "m", low, high),)))
