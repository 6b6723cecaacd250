"""Every recipe is a gymnasium environment that gymnasium itself finds nothing wrong with."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Clamp, StepResult, Vector
from vla_robot.recipe import available, dump, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.world.gym_env import WorldEnv, env_id, register_all
from vla_robot.world.kinds import build_world
from vla_robot.world.mujoco_world import MujocoWorld

HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
SHORT = dataclasses.replace(read(EnvRecipe, "tabletop"), cameras=(), horizon=3)


@pytest.fixture
def env() -> Iterator[WorldEnv]:
    with contextlib.closing(WorldEnv(build_world(SHORT))) as built:
        yield built


@pytest.mark.sim
@pytest.mark.parametrize("name", ["tabletop", "lift"])
def test_gymnasium_finds_nothing_wrong(name: str) -> None:
    with contextlib.closing(gymnasium.make(env_id(name), render_mode="rgb_array")) as env, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Only Tabletop's is built again for each render mode: a second Lift costs seconds.
        check_env(env.unwrapped, skip_render_check=name != "tabletop", skip_close_check=name != "tabletop")


@pytest.mark.parametrize(
    ("name", "expected"), [("lift", "vla_robot/Lift-v0"), ("pick_place_can", "vla_robot/PickPlaceCan-v0")]
)
def test_an_id_is_made_from_the_name_of_the_recipe(name: str, expected: str) -> None:
    assert env_id(name) == expected
    assert expected in gymnasium.registry


def test_every_recipe_is_registered_once(recwarn: pytest.WarningsRecorder) -> None:
    register_all()
    assert {env_id(name) for name in available("envs")} <= set(gymnasium.registry)
    assert list(recwarn) == []


@pytest.mark.sim
def test_one_import_is_enough_when_the_id_names_the_module() -> None:
    script = (
        "import gymnasium\n"
        "env = gymnasium.make('vla_robot.world.gym_env:vla_robot/Tabletop-v0')\n"
        "print(env.reset(seed=0)[0] in env.observation_space)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_a_recipe_of_the_working_folder_is_an_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs").mkdir()
    text = dump(dataclasses.replace(SHORT, horizon=2))
    (tmp_path / "envs" / "brief_lift.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    register_all()
    with contextlib.closing(gymnasium.make("vla_robot/BriefLift-v0")) as env:
        env.reset(seed=0)
        assert [env.step(HOLD)[3] for _ in range(2)] == [False, True]


def test_the_spaces_are_the_embodiments(env: WorldEnv) -> None:
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    np.testing.assert_array_equal(space.low, [-0.05] * 3 + [-0.5] * 3 + [0.0])
    np.testing.assert_array_equal(space.high, [0.05] * 3 + [0.5] * 3 + [1.0])
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space
    assert env.metadata["render_fps"] == 10


def test_the_reward_is_one_while_the_task_is_done() -> None:
    on_the_table = dataclasses.replace(SHORT.success, threshold=-1.0)  # pyright: ignore[reportArgumentType]
    env = WorldEnv(build_world(dataclasses.replace(SHORT, success=on_the_table, success_hold=2)))
    env.reset(seed=0)
    steps = [env.step(HOLD) for _ in range(2)]
    assert [(reward, terminated, info["success"]) for _, reward, terminated, _, info in steps] == [
        (1.0, False, True),
        (1.0, True, True),
    ]


def test_a_seed_may_be_any_integer_from_zero_on(env: WorldEnv) -> None:
    states = [env.reset(seed=seed)[0]["state"] for seed in (2**40, 2**100, 2**100)]
    np.testing.assert_array_equal(states[1], states[2])


def test_the_reward_is_nothing_before_that(env: WorldEnv) -> None:
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(HOLD)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    assert info["instruction"] == "lift the red cube"


def test_an_episode_without_a_seed_follows_from_the_last_seed(env: WorldEnv) -> None:
    def next_states(seed: int) -> list[bytes]:
        env.reset(seed=seed)
        return [cube(env) for _ in range(2) if env.reset()]

    def cube(env: WorldEnv) -> bytes:
        assert isinstance(env._world, MujocoWorld)
        return env._world._data.qpos.tobytes()

    first = next_states(3)
    assert first == next_states(3)
    assert first != next_states(4)
    assert first[0] != first[1]


def test_an_action_outside_of_the_space_is_refused(env: WorldEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(ContractError, match=r"dx is 0\.3 m, allowed is -0\.05 to 0\.05"):
        env.step(HOLD + [0.3, 0, 0, 0, 0, 0, 0])


def test_gymnasiums_own_wrapper_clips_for_those_who_want_it(env: WorldEnv) -> None:
    clipped = gymnasium.wrappers.ClipAction(env)
    clipped.reset(seed=0)
    info = clipped.step(HOLD + [0.3, 0, 0, 0, 0, 0, 0])[-1]
    assert info["executed"][0] == 0.05


def test_what_a_world_clamped_is_told(env: WorldEnv) -> None:
    class Clamping:
        """The world, behind a guard that always has something to say."""

        def __init__(self) -> None:
            self.embodiment, self.instruction = env._world.embodiment, env._world.instruction
            self.reset, self.close = env._world.reset, env._world.close

        def step(self, action: Vector) -> StepResult:
            clamps = (Clamp("dx", "workspace", 0.03, 0.01),)
            return dataclasses.replace(env._world.step(action), clamps=clamps)

    guarded = WorldEnv(Clamping())
    guarded.reset(seed=0)
    info = guarded.step(HOLD)[-1]
    assert info["clamps"] == [{"dim": "dx", "cause": "workspace", "wanted": 0.03, "allowed": 0.01}]


@pytest.mark.sim
def test_rendering_gives_the_first_cameras_frame() -> None:
    with contextlib.closing(gymnasium.make(env_id("tabletop"), render_mode="rgb_array")) as env:
        observation, _ = env.reset(seed=0)
        np.testing.assert_array_equal(np.asarray(env.render()), observation["images"]["front"])


def test_rendering_without_a_camera_says_what_to_add() -> None:
    env = WorldEnv(build_world(SHORT), render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(WorldError, match=r"no camera to render; add a \[\[cameras\]\] table"):
        env.render()


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(WorldError, match=r"unknown render mode 'human'.*Available: rgb_array"):
        WorldEnv(build_world(SHORT), render_mode="human")
