"""Tests of the success tests of MuJoCo scenes."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import SuccessRecipe
from vla_robot.world.sim.success import TESTS, Placed, inside, lifted, near, on_top

SIDE = 0.04
length = st.floats(-1, 1, width=32)
point = st.tuples(length, length, length)


def cube(x: float = 0.0, y: float = 0.0, z: float = 0.0, side: float = SIDE, start_z: float | None = None) -> Placed:
    start = np.array([x, y, z if start_z is None else start_z])
    return Placed(np.array([x, y, z]), np.full(3, side / 2), start)


TRAY = Placed(np.array([0.0, 0.0, 0.05]), np.array([0.15, 0.10, 0.05]), np.zeros(3))


def test_a_recipe_may_name_every_test_and_no_other() -> None:
    assert set(get_args(get_type_hints(SuccessRecipe)["test"])) == set(TESTS)


@pytest.mark.parametrize(("z", "done"), [(0.02, False), (0.055, False), (0.0701, True), (0.5, True)])
def test_lifted_is_measured_from_the_bodys_start(z: float, done: bool) -> None:
    body = cube(z=z, start_z=0.02)
    assert lifted(body, body, 0.05) is done


@given(point, point, st.floats(0, 2))
def test_near_is_symmetric_and_grows_with_its_threshold(a: tuple, b: tuple, threshold: float) -> None:
    one, other = cube(*a), cube(*b)
    assert near(one, other, threshold) == near(other, one, threshold)
    assert near(one, other, threshold) <= near(one, other, threshold + 0.1)
    assert near(one, one, threshold)


@pytest.mark.parametrize(
    ("body", "done"),
    [
        (cube(z=SIDE), True),
        (cube(z=SIDE + 0.005), True),
        (cube(x=0.015, z=SIDE), True),
        (cube(z=SIDE + 0.03), False),
        (cube(x=0.05, z=SIDE), False),
        (cube(x=0.03, z=0.0), False),
    ],
    ids=["on it", "on it, soft contact", "on it, off centre", "held above", "beside, at its height", "beside, below"],
)
def test_on_top_means_resting_there(body: Placed, done: bool) -> None:
    assert on_top(body, cube(), 0.03) is done


@pytest.mark.parametrize(
    ("body", "done"),
    [
        (cube(z=0.02), True),
        (cube(x=0.12, y=-0.07, z=0.02), True),
        (cube(z=0.09), False),
        (cube(z=0.15), False),
        (cube(x=0.2, z=0.02), False),
    ],
    ids=["on its floor", "in its corner", "at its rim", "held above", "beside"],
)
def test_inside_means_below_the_rim(body: Placed, done: bool) -> None:
    assert inside(body, TRAY, 0.02) is done


@given(point)
def test_no_place_is_both_inside_and_on_top(where: tuple) -> None:
    body = cube(*where)
    assert not (inside(body, TRAY, 0.0) and on_top(body, TRAY, 1.0))


@pytest.mark.parametrize(
    ("test", "other", "message"),
    [("near", None, "'near' needs an object 'other'"), ("lifted", "tray", "'lifted' takes no object 'other'")],
)
def test_a_recipe_names_the_second_object_when_there_is_one(test: str, other: str | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SuccessRecipe(test, "cube", other)  # pyright: ignore[reportArgumentType]
