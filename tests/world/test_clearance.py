"""Tests of the clearance of an arm's bodies: from each other, from obstacles, and from the twin of a pair."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import MujocoRecipe, RealArmRecipe
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.recipe.reading.load import parse
from vla_robot.recipe.robot import MountRecipe, ObstacleRecipe, RobotRecipe

pytest.importorskip("mujoco")

from vla_robot.world.real.kinematics.bounds import last_allowed
from vla_robot.world.real.kinematics.clearance import Clearance, clearance_of
from vla_robot.world.real.kinematics.scene import compiled

MARGIN_M = 0.01
READY = np.array([0.0, -0.52, 0.35, 1.2, 0.0])
POST = ObstacleRecipe((0.15, 0.10, 0.0), (0.30, 0.14, 0.5))
BOX = {"low": [0.0, 0.0, 0.0], "high": [1.0, 1.0, 1.0]}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")


@pytest.fixture
def check(repository: Path) -> Any:
    """tests/shared/check_clearance.py, which is a program too."""
    name = "check_clearance"
    spec = importlib.util.spec_from_file_location(name, repository / "tests" / "shared" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_of(repository: Path, **changes: Any) -> RealArmRecipe:
    mounts = changes.pop("mounts", {})
    return RealArmRecipe(
        instruction="keep apart",
        scene=repository / "envs" / "so101.xml",
        limits=LimitsRecipe(max_speed_rad_s=1.5, clearance_m=MARGIN_M),
        robot=RobotRecipe(driver="lerobot", type="any", id="any", actions="joints", mounts=mounts),
        **changes,
    )


@pytest.mark.parametrize("arm", ["so101", "panda"])
def test_random_commands_keep_the_margin_and_are_cut_only_there(check: Any, arm: str) -> None:
    """A hundred thousand were sent by hand; see docs/safety.md."""
    if arm == "panda":
        pytest.importorskip("robosuite")
    outcome = check.drive(arm, 300)
    assert outcome.nearest_m >= MARGIN_M - check.TOLERANCE_M
    assert outcome.cuts > 30, "the commands hardly met anything: the test shows little"
    assert outcome.early == 0


def test_neighbours_are_left_out_and_the_gripper_is_kept_from_the_base(repository: Path) -> None:
    limit = clearance_of(recipe_of(repository), JOINTS)
    assert limit is not None
    assert ("base", "gripper") in limit.pairs
    assert not {("base", "shoulder"), ("wrist", "gripper"), ("gripper", "jaw")} & set(limit.pairs)


def test_a_cut_names_both_bodies_and_ends_at_the_margin(repository: Path) -> None:
    limit = clearance_of(recipe_of(repository, obstacles={"post": POST}), JOINTS)
    assert limit is not None
    wanted = READY + [-1.0, 0, 0, 0, 0]
    allowed, cause = last_allowed(READY, wanted, [limit])
    assert cause.startswith("collision of ") and cause.endswith(" with post")
    assert 0 < READY[0] - allowed[0] < 1.0
    assert -0.001 < limit.depths_m(allowed).max() <= 1e-6
    free, cause = last_allowed(READY, READY + [1.0, 0, 0, 0, 0], [limit])
    assert cause == "" and free[0] == 1.0


def test_a_pair_of_arms_is_kept_from_its_twin(repository: Path) -> None:
    mounts = {"left": MountRecipe((0.0, 0.12, 0.0)), "right": MountRecipe((0.0, -0.12, 0.0))}
    joints = [f"{side}_{name}" for side in ("left", "right") for name in JOINTS]
    recipe = recipe_of(repository, mounts=mounts)
    limit = clearance_of(recipe, joints)
    assert limit is not None
    ready = np.tile(READY, 2)
    towards = ready.copy()
    towards[[0, 5]] = 0.9, -0.9
    ends = [last_allowed(ready, ready + side * (towards - ready), [limit]) for side in (1, -1)]
    (met, cause), (_, apart) = ends if ends[0][1] else ends[::-1]
    assert apart == "" and "left_" in cause and "right_" in cause
    assert 0 < abs(met[0]) < 0.9
    assert {"left_base", "right_base"} <= {body for pair in limit.pairs for body in pair}
    assert compiled(recipe).nbody == 2 * 7 + 1


def test_an_arm_inside_its_margin_may_leave_it_and_not_go_further_in(repository: Path) -> None:
    model = compiled(recipe_of(repository, obstacles={"post": POST}))
    towards = np.array([-1.0, 0, 0, 0, 0])
    near, _ = last_allowed(READY, READY + towards, [Clearance(model, JOINTS, MARGIN_M)])
    wider = Clearance(model, JOINTS, 1.5 * MARGIN_M)
    assert wider.depths_m(near).max() == pytest.approx(0.5 * MARGIN_M, abs=1e-3)
    further, cause = last_allowed(near, near + 0.02 * towards, [wider])
    assert further == pytest.approx(near, abs=1e-3) and cause.endswith(" with post")
    back, cause = last_allowed(near, near - 0.1 * towards, [wider])
    assert cause == "" and back[0] == near[0] + 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scene": None}, "clearance_m needs the scene"),
        (
            {"limits": {"max_speed_rad_s": 1.0}, "obstacles": {"post": BOX}},
            r"clearance_m in \[limits\], which is missing",
        ),
        (
            {"obstacles": {"post": {"low": [0.0, 0.0, 1.0], "high": [1.0, 1.0, 1.0]}}},
            "each number of low must be below",
        ),
        ({"limits": {"max_speed_rad_s": 1.0, "clearance_m": 2.0}}, "clearance_m 2 is outside"),
    ],
)
def test_what_cannot_be_kept_apart_is_refused(repository: Path, change: dict[str, Any], words: str) -> None:
    table: dict[str, Any] = {
        "kind": "robot",
        "instruction": "x",
        "scene": "so101.xml",
        "limits": {"max_speed_rad_s": 1.0, "clearance_m": 0.01},
        "robot": {"driver": "lerobot", "type": "any", "id": "any", "actions": "joints"},
    } | change
    table = {key: value for key, value in table.items() if value is not None}
    with pytest.raises(RecipeError, match=words):
        parse(RealArmRecipe, table, repository / "envs" / "mine.toml")


def test_a_simulation_has_no_clearance(repository: Path) -> None:
    table = {"kind": "mujoco", "instruction": "x", "scene": "tabletop.xml", "limits": {"clearance_m": 0.01}}
    table |= {"success": {"test": "lifted", "body": "cube"}}
    with pytest.raises(RecipeError, match="is for real arms"):
        parse(MujocoRecipe, table, repository / "envs" / "mine.toml")
