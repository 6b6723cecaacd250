"""Tests of windows and their padding, with numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.data.pipeline.windows import Window, pad_actions

LAST_IS_ABSOLUTE = np.array([False, True])


def window_of(window: Window, step: int, length: int = 4) -> list[list[float]]:
    """Return the padded window of a trajectory whose step t has the relative action t + 1 and the absolute one 10 t."""
    trajectory = np.array([[t + 1, 10 * t] for t in range(length)], dtype=np.float32)
    steps, after_end = window.actions(step, length)
    return pad_actions(trajectory[steps], after_end, LAST_IS_ABSOLUTE).tolist()


def test_openvla_sees_one_frame_and_answers_one_action() -> None:
    assert window_of(Window(), 2) == [[3, 20]]
    steps, is_real = Window().observations(2)
    assert (steps.tolist(), is_real.tolist()) == ([2], [True])


def test_after_the_end_relative_dimensions_are_zero_and_absolute_ones_stay() -> None:
    assert window_of(Window(future=3), 2) == [[3, 20], [4, 30], [0, 30], [0, 30]]


def test_before_the_beginning_the_first_step_is_repeated_and_marked() -> None:
    steps, is_real = Window(past=2).observations(1)
    assert (steps.tolist(), is_real.tolist()) == ([0, 0, 1], [False, True, True])
    assert window_of(Window(past=2), 1) == [[1, 0], [1, 0], [2, 10]]


@pytest.mark.parametrize(("future", "expected"), [(0, [4, 1, 0]), (3, [1, 0, 0]), (8, [0, 0, 0])])
def test_complete_windows_begin_only_where_enough_follows(future: int, expected: list[int]) -> None:
    assert Window(future=future, complete=True).steps_in(np.array([4, 1, 0])).tolist() == expected


def test_before_a_gap_only_steps_with_enough_following_steps_have_a_window() -> None:
    goes_on = np.array([True, False, True])
    assert Window(future=3).steps_in(np.array([5, 5, 2]), goes_on).tolist() == [2, 5, 0]


def test_other_windows_begin_everywhere() -> None:
    assert Window(future=3).steps_in(np.array([4, 1])).tolist() == [4, 1]
