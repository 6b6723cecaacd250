"""Limits as data: what the page about safety shows is valid, and what makes no sense is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.limits import RANGES, DimLimitsRecipe, LimitsRecipe
from vla_robot.recipe.peer import PeerNumbersRecipe
from vla_robot.recipe.reading.load import parse
from vla_robot.recipe.robot import SetPointsRecipe

TASK = {"kind": "robosuite", "task": "Lift", "instruction": "lift the red cube"}


def test_the_example_in_the_documents_is_a_valid_recipe(repository: Path) -> None:
    page = (repository / "docs" / "safety.md").read_text(encoding="utf-8")
    example = tomllib.loads("\n".join(line[4:] for line in page.splitlines() if line.startswith("    ")))
    robot = example.pop("robot")  # the page's other example, of a real robot
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
        ({"max_speed_m_s": 0.0}, "max_speed_m_s 0 is outside 0.0001 to 20 m/s"),
        ({"max_acceleration_rad_s2": -1.0}, "max_acceleration_rad_s2 -1 is outside 0.001 to 10000 rad/s2"),
        ({"max_acceleration_m_s2": 1e-300}, "max_acceleration_m_s2 1e-300 is outside 0.001 to 1000 m/s2"),
        ({"max_joint_step_rad": 1e300}, r"max_joint_step_rad 1e\+300 is outside 0.0001 to 10 rad"),
        ({"max_speed_rad_s": float("inf")}, "max_speed_rad_s: expected a number, got inf"),
        ({"max_speed_rad_s": float("nan")}, "max_speed_rad_s: expected a number, got nan"),
        ({"max_speed_rad_s": 10**400}, "max_speed_rad_s: expected a number of up to 64 bits, got 1000"),
        ({"gripper_per_s": -3}, "gripper_per_s -3 is outside"),
        ({"workspace_low": [-1e9, 0, 0]}, r"workspace_low -1e\+09 is outside -100 to 100 m"),
        ({"dims": {"dx": {"max_acceleration": 1e-300}}}, "max_acceleration 1e-300 is outside 0.001 to 100000"),
        ({"dims": {"dx": {"max_step": -0.1}}}, "max_step -0.1 is outside"),
        ({"dims": {"dx": {"low": -1e5}}}, "low -100000 is outside"),
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_step_m": -0.05}, "max_step_m -0.05 is outside 1e-06 to 1 m"),
        ({"max_step_rad": 1e-300}, "max_step_rad 1e-300 is outside"),
        ({"horizon": 10**9}, "horizon and success_hold must lie between 1 and 1000000"),
        ({"rate_hz": 1e-300}, "rate_hz 1e-300 is outside 1 to 100"),
    ],
)
def test_steps_that_no_arm_makes_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(EnvRecipe, {**TASK, **change}, "mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_speed_rad_s": -1.5}, "set_points.max_speed_rad_s -1.5 is outside"),
        ({"max_jerk_rad_s3": 1e-300}, "set_points.max_jerk_rad_s3 1e-300 is outside"),
        ({"opening_per_s": 1e9}, "set_points.opening_per_s"),
        ({"max_jerk_rad_s3": 0.5}, "set_points delay every motion by 60.05 s, at most 1 s"),
    ],
)
def test_set_points_that_no_motor_can_follow_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(SetPointsRecipe, {"rate_hz": 100, **change}, "mine")


def test_every_field_of_the_limits_has_a_range() -> None:
    limited = {name for schema in (LimitsRecipe, DimLimitsRecipe) for name in schema.__dataclass_fields__}
    assert limited - {"on_violation", "dims"} <= set(RANGES)


def test_a_scale_that_overflows_is_refused() -> None:
    for field in ({"scale": [1e300]}, {"offset": [1e300]}, {"scale": [1e-300]}):
        with pytest.raises(RecipeError, match="'actions' has a scale or offset of 1e"):
            parse(PeerNumbersRecipe, {"key": "actions", "names": ["dx"], **field}, "mine")
