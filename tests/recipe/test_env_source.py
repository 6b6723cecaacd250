"""A world's name: a recipe, or one task of a suite."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe import available, dump, parse, read
from vla_robot.recipe.env import LIBERO_SUITES, EnvRecipe, LiberoRecipe, SuiteRecipe
from vla_robot.recipe.env_source import find_env


@pytest.mark.parametrize("name", ["libero_spatial/3", "envs/libero/libero_spatial.toml/3", "libero/libero_spatial/3"])
def test_a_task_is_named_behind_its_suite(name: str, repository: Path) -> None:
    source = find_env(name)
    assert (source.name, source.chosen) == ("libero_spatial/3", "3")
    assert source.path == repository / "envs" / "libero" / "libero_spatial.toml"
    assert isinstance(source.recipe, SuiteRecipe)
    assert source.recipe.require_one() == "3"


def test_a_plain_world_has_its_files_name() -> None:
    assert (find_env("lift").name, find_env("envs/lift.toml").name) == ("lift", "lift")


def test_a_file_of_that_name_wins_over_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libero_spatial").mkdir()
    (tmp_path / "libero_spatial" / "3.toml").write_text('kind = "robosuite"\ntask = "Lift"\ninstruction = "lift"\n')
    monkeypatch.chdir(tmp_path)
    assert find_env("libero_spatial/3").recipe.kind == "robosuite"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("libero_spatail/3", "unknown env 'libero_spatail'; did you mean 'libero/libero_spatial'"),
        ("libero_spatial/10", "unknown task '10'.*Available: 0, 1,"),
        ("libero_spatial/03", "unknown task '03'; did you mean"),
        ("libero_spatial/bowl", "unknown task 'bowl'"),
        ("lift/3", "'lift/3' names task '3' of 'lift', which is one world and no suite"),
        ("envs/lifft", "unknown env 'lifft'; did you mean 'lift'"),
        ("3", "unknown env '3'"),
    ],
)
def test_a_name_that_leads_nowhere_gets_the_nearest(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        find_env(name)


def test_every_suite_has_a_recipe_of_its_name() -> None:
    shipped = {name.rpartition("/")[2] for name in available("envs") if name.startswith("libero/")}
    for_training = {
        f"libero_{suite}_{kind}" for suite in ("object", "spatial") for kind in ("small", "others", "moved")
    }
    perturbed = {f"libero_object_{how}_small" for how in ("lan", "object", "swap", "task")}
    assert shipped == set(LIBERO_SUITES) | for_training | perturbed
    steps = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
    for suite in LIBERO_SUITES:
        recipe = read(LiberoRecipe, suite)
        assert (recipe.suite, recipe.environment, recipe.success_hold, recipe.shadows) == (suite, "libero", 1, True)
        assert recipe.horizon == steps[suite.split("_")[1]]
        assert {c.name: (c.source, c.height, c.width, c.mirror) for c in recipe.cameras} == {
            "front": ("agentview", 256, 256, False),
            "wrist": ("robot0_eye_in_hand", 256, 256, False),
        }
    assert len(read(LiberoRecipe, "libero_90").tasks()) == 90


def test_a_suites_recipe_stands_for_no_single_world() -> None:
    with pytest.raises(RecipeError, match="a suite of 10 tasks, and a world has one: name it as NAME/0 to NAME/9"):
        read(LiberoRecipe, "libero_spatial").require_one()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "libero_spatail"}, "unknown suite 'libero_spatail'; did you mean 'libero_spatial'"),
        ({"task": "10"}, "unknown task '10'"),
        ({"rate_hz": 10.0}, r"rate_hz is 10.0; LIBERO's is 20.0"),
        ({"max_step_m": 0.02}, r"max_step_m is 0.02; LIBERO's is 0.05"),
        ({"arm": "UR5e"}, "arm is UR5e; LIBERO's is Panda"),
        ({"settle_steps": -1}, "settle_steps -1 is outside 0 to 100"),
    ],
)
def test_what_the_benchmark_fixes_is_not_changed(changes: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        dataclasses.replace(read(LiberoRecipe, "libero_spatial"), **changes)  # pyright: ignore[reportArgumentType]


def test_the_childs_copy_of_a_task_is_the_same_recipe(tmp_path: Path) -> None:
    import tomllib

    recipe = find_env("libero_goal_swap/2").recipe
    assert parse(EnvRecipe, tomllib.loads(dump(recipe)), tmp_path / "world.toml") == recipe


def test_a_camera_of_metal_is_not_turned_by_a_recipe() -> None:
    recipe = read(EnvRecipe, "desk_so101")
    camera = dataclasses.replace(recipe.cameras[0], mirror=True)
    with pytest.raises(RecipeError, match="mirror, which are for simulations"):
        dataclasses.replace(recipe, cameras=(camera,))
