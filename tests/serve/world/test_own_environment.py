"""A world in an environment of its own: that interpreter and packages, this very package, the recipe's time limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from toy_environment import toy_environment

import vla_robot
from vla_robot.cli.main import main
from vla_robot.core.errors import MissingDependencyError, RecipeError
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.serve.world import world_process
from vla_robot.serve.world.world_process import spawn_world
from vla_robot.world.environments.install import make
from vla_robot.world.environments.location import Environment
from vla_robot.world.kinds import build_world


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    return toy_environment(tmp_path, monkeypatch)


@pytest.fixture
def recipe(toy: Environment, repository: Path) -> Path:
    """A world that names the toy environment."""
    scene = repository / "envs" / "tabletop.xml"
    text = f"""\
kind = "mujoco"
environment = "toy"
scene = "{scene}"
instruction = "lift the red cube"

[success]
test = "lifted"
body = "cube"
"""
    path = Path("envs/mine.toml")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--env", "mine", "--policy", "hold"],
        ["eval", "--env", "mine", "--policy", "hold"],
        ["record", "--env", "mine", "--source", "expert", "--out", "d"],
        ["bridge", "mine", "--bind", "tcp://127.0.0.1:0"],
    ],
    ids=["run", "eval", "record", "bridge"],
)
def test_a_command_names_the_one_that_makes_a_missing_environment(
    recipe: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert "'toy', which is not installed. `vla install toy` makes it (0.001 GB" in capsys.readouterr().err


def test_a_world_of_another_environment_is_not_built_in_this_process(recipe: Path, toy: Environment) -> None:
    with pytest.raises(MissingDependencyError, match="`vla install toy`"):
        build_world(read(EnvRecipe, recipe))
    make(toy)
    with pytest.raises(RecipeError, match="runs in the environment 'toy', in a process of its own, and not in"):
        build_world(read(EnvRecipe, recipe))


def test_a_whole_suite_is_refused_before_a_process_starts() -> None:
    with pytest.raises(RecipeError, match=r"a suite of 10 tasks.*NAME/0 to NAME/9"), spawn_world("libero_spatial"):
        pass


@pytest.mark.sim
def test_the_child_runs_that_interpreter_with_this_very_package(
    recipe: Path, toy: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make(toy)
    other = tmp_path / "other" / "vla_robot"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the parent\\'s PYTHONPATH was used')")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    seen: list[Any] = []
    original = world_process.connected

    def connected(*arguments: Any) -> Any:
        seen.extend(arguments)
        return original(*arguments)

    monkeypatch.setattr(world_process, "connected", connected)
    with spawn_world(recipe) as world:
        assert world.reset(1).instruction == "lift the red cube"
        command, limits, variables = seen
        assert command[0] == str(toy.python)
        assert Path(command[2]).is_relative_to(Path(vla_robot.__file__).parent)
        assert (limits.start_s, limits.reset_s, limits.step_s) == (240, 230, 220)
        assert "PYTHONPATH" not in variables
        assert variables["PATH"] == os.environ["PATH"]
