"""An SO-101 that gets set points between the steps of control, from its recipe to its servos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.build import build_arm
from vla_robot.core.errors import RecipeError
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.set_points import StreamedArm

Desk = Callable[..., Path]

TABLE = "\n[robot.set_points]\nrate_hz = {rate_hz}\n\n[robot.fields]"


def recipe_with_set_points(desk: Desk, rate_hz: float) -> RealArmRecipe:
    path = desk()
    path.write_text(path.read_text().replace("[robot.fields]", TABLE.format(rate_hz=rate_hz), 1))
    return read(RealArmRecipe, path)


def test_the_servos_get_small_steps_that_lead_to_the_goal(bus: Any, desk: Desk) -> None:
    arm = build_arm(recipe_with_set_points(desk, 90))
    assert isinstance(arm, StreamedArm)
    arm.reset(0)
    bus.goals.clear()
    for _ in range(4):
        arm.command(np.array([0.005, 0, 0.005, 0, 0, 0, 1.0]))
        for _ in range(3):
            arm.send_set_point()
    arm.stop()
    goals = np.array([[goal & 0x7FFF for goal in goals.values()][:5] for goals in bus.goals])
    assert len(goals) > 12
    ticks_per_rad = 4096 / (2 * np.pi)
    assert np.abs(np.diff(goals, axis=0)).max() <= 1.5 / 90 * ticks_per_rad + 1
    assert np.abs(goals[-1] - goals[0]).max() > 5
    arm.close()


def test_fewer_set_points_than_steps_are_refused_by_the_recipe(desk: Desk) -> None:
    with pytest.raises(RecipeError, match=r"set_points.rate_hz 10 is below rate_hz 30"):
        recipe_with_set_points(desk, 10)
