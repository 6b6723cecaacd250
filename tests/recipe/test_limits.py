"""Limits as data: what the page about safety shows is valid, and what makes no sense is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.limits import DimLimitsRecipe, LimitsRecipe
from vla_robot.recipe.load import parse
from vla_robot.recipe.robot import SetPointsRecipe

TASK = {"kind": "robosuite", "task": "Lift", "instruction": "lift the red cube"}


def test_the_example_in_the_documents_is_a_valid_recipe(repository: Path) -> None:
    page = (repository / "docs" / "safety.md").read_text(encoding="utf-8")
    example = tomllib.loads("\n".join(line[4:] for line in page.splitlines() if line.startswith("    ")))
    robot = example.pop("robot")  # the page's other example, of an arm of metal
    assert parse(SetPointsRecipe, robot["set_points"], "docs/safety.md").rate_hz == 100
    limits = parse(EnvRecipe, {**TASK, **example}, "docs/safety.md").limits
    assert limits.workspace_high == (0.7, 0.35, 0.5)
    assert limits.dims == {"dz": DimLimitsRecipe(max_speed=0.2)}


def test_a_recipe_without_limits_has_the_defaults() -> None:
    assert parse(EnvRecipe, TASK, "mine").limits == LimitsRecipe()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"on_violation": "ignore"}, "on_violation"),
        ({"max_speed_m_s": 0.0}, "max_speed_m_s 0 must be above 0"),
        ({"max_acceleration_rad_s2": -1.0}, "max_acceleration_rad_s2 -1 must be above 0"),
        (
            {"workspace_low": [0.0, 0.0, 0.5], "workspace_high": [1.0, 1.0, 0.5]},
            "workspace_low 0.5 must be below workspace_high 0.5",
        ),
        ({"dims": {"dx": {"low": 1.0, "high": 0.0}}}, "low 1 must be below high 0"),
        ({"dims": {"dx": {"max_sped": 1.0}}}, "did you mean 'max_speed'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(EnvRecipe, {**TASK, "limits": limits}, "mine")
