"""How long an arm had stood still at the end of an episode."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim
from vla_robot.core.messages import Vector
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.stillness import steps_at_rest
from vla_robot.safety.limits import RangeGuard
from vla_robot.testing import FunctionPolicy, ToyWorld

X, RZ = Dim("x", "m", -1, 1), Dim("rz", "rad", -7, 7)
SPEED, OPEN, ENDLESS = Dim("vx", "m/s", -1, 1), Dim("gripper", "1", 0, 1), Dim("counter", "1", -np.inf, np.inf)


def states(*columns: list[float]) -> list[Vector]:
    return list(np.array(columns, dtype=np.float64).T)


@pytest.mark.parametrize(
    ("dims", "columns", "rest"),
    [
        ([X], [[0.0, 0.1, 0.2, 0.2, 0.204]], 3),
        ([X], [[0.0, 0.002, 0.004, 0.006, 0.008]], 3),  # slow: the last three lie within 5 mm
        ([X], [[0.0, 0.0, 0.0]], 3),
        ([X], [[0.2, 0.0, 0.2]], 1),  # it was here before, and left
        ([X, RZ], [[0.0, 0.0, 0.0], [3.1, -3.1, 3.1]], 3),
        ([RZ], [[0.1, 0.2, 0.21]], 2),
        ([X, SPEED], [[0.0, 0.0], [0.0, 0.5]], 2),
        ([X, OPEN], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.01]], 2),
        ([X, ENDLESS], [[0.0, 0.0], [1.0, 2.0]], 2),
        ([SPEED], [[0.0, 0.0]], 0),
        ([X], [[]], 0),
    ],
)
def test_rest_is_told_by_position_and_gripper_or_by_joints(
    dims: list[Dim], columns: list[list[float]], rest: int
) -> None:
    assert steps_at_rest(states(*columns), dims) == rest


@pytest.mark.parametrize(("moves_until", "stalled"), [(5, True), (1000, False)])
def test_an_episode_whose_policy_stops_has_stalled_and_one_that_moves_on_has_not(
    moves_until: int, stalled: bool
) -> None:
    world = ToyWorld(horizon=80)
    space = world.embodiment.action
    policy = FunctionPolicy(lambda seen: np.r_[0.01 * (seen.step < moves_until), np.zeros(len(space) - 1)])
    result = run_episode(world, policy, 0, guard=RangeGuard(space))
    assert (result.outcome, result.stalled) == ("timeout", stalled)
    assert result.to_dict()["still_s"] == pytest.approx(75 / world.embodiment.rate_hz if stalled else 0, abs=0.1)


def test_a_success_at_rest_is_no_stall() -> None:
    world = ToyWorld(succeed_at=80)
    result = run_episode(
        world,
        FunctionPolicy(lambda _: np.zeros(len(world.embodiment.action))),
        0,
        guard=RangeGuard(world.embodiment.action),
    )
    assert result.still_s > 2 and not result.stalled
