"""Tests of cutting the way to a configuration where a bound ends it."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.messages import Vector
from vla_robot.world.real.kinematics.bounds import SLACK_M, WAY_RAD, last_allowed


class Wall:
    """Forbids first joints above an angle, up to another one; a metre for each radian."""

    def __init__(self, begins: float, ends: float = np.inf) -> None:
        self._begins, self._ends = begins, ends

    def depths_m(self, joints: Vector) -> Vector:
        return np.minimum(joints[:1] - self._begins, self._ends - joints[:1])

    def cause(self, which: int) -> str:
        return "wall"


def test_a_way_inside_is_not_changed() -> None:
    wanted = np.array([0.4, 1.0])
    allowed, cause = last_allowed(np.zeros(2), wanted, [Wall(0.5)])
    assert allowed is wanted and cause == ""


@pytest.mark.parametrize("wanted", [np.array([0.51, 0.0]), np.array([2.0, -1.0])])
def test_a_way_ends_at_the_bound_on_its_line(wanted: Vector) -> None:
    allowed, cause = last_allowed(np.zeros(2), wanted, [Wall(0.5)])
    assert cause == "wall" and 0.5 - WAY_RAD / 30 < allowed[0] <= 0.5 + SLACK_M
    np.testing.assert_allclose(allowed, wanted * allowed[0] / wanted[0], rtol=1e-12)


def test_a_wall_that_is_thinner_than_the_way_is_seen() -> None:
    allowed, cause = last_allowed(np.zeros(2), np.array([1.0, 0.0]), [Wall(0.5, 0.55)])
    assert cause == "wall" and allowed[0] <= 0.5 + SLACK_M


def test_from_outside_the_way_leads_back_or_stays() -> None:
    start = np.array([0.7, 0.0])
    back, cause = last_allowed(start, np.array([0.6, 0.3]), [Wall(0.5)])
    assert back.tolist() == [0.6, 0.3] and cause == ""
    stays, cause = last_allowed(start, start, [Wall(0.5)])
    assert stays.tolist() == start.tolist() and cause == ""
    further, cause = last_allowed(start, np.array([0.8, 0.0]), [Wall(0.5)])
    assert further.tolist() == start.tolist() and cause == "wall"


def test_the_strictest_of_two_bounds_ends_the_way() -> None:
    allowed, cause = last_allowed(np.zeros(1), np.ones(1), [Wall(0.6), Wall(0.2)])
    assert cause == "wall" and allowed[0] <= 0.2 + SLACK_M
