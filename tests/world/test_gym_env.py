"""Tests of worlds as gymnasium environments, also by gymnasium's own checker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Clamp, StepResult, Vector
from vla_robot.recipe import available, dump, read
from vla_robot.recipe.env import MujocoRecipe
from vla_robot.world.kinds import build_world
from vla_robot.world.sim.gym_env import WorldEnv, env_id, register_all
from vla_robot.world.sim.mujoco_world import MujocoWorld

HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
DEADLINE_S = 240.0
"""Time after which a process counts as hung; on an idle computer each takes some seconds."""

SHORT = dataclasses.replace(read(MujocoRecipe, "tabletop"), cameras=(), horizon=3)


@pytest.fixture
def env() -> Iterator[WorldEnv]:
    with contextlib.closing(WorldEnv(build_world(SHORT))) as built:
        yield built


@pytest.mark.sim
@pytest.mark.parametrize("name", ["tabletop", "lift"])
def test_gymnasium_finds_nothing_wrong(name: str) -> None:
    with contextlib.closing(gymnasium.make(env_id(name), render_mode="rgb_array")) as env, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Only Tabletop is built again for each render mode: a second Lift takes seconds.
        check_env(env.unwrapped, skip_render_check=name != "tabletop", skip_close_check=name != "tabletop")


@pytest.mark.parametrize(
    ("name", "expected"), [("lift", "vla_robot/Lift-v0"), ("pick_place_can", "vla_robot/PickPlaceCan-v0")]
)
def test_an_id_is_made_from_the_name_of_the_recipe(name: str, expected: str) -> None:
    assert env_id(name) == expected
    assert expected in gymnasium.registry


def test_every_recipe_is_registered_once(recwarn: pytest.WarningsRecorder) -> None:
    register_all()
    assert {env_id(name) for name in available("envs") if "/" not in name} <= set(gymnasium.registry)
    assert list(recwarn) == []


@pytest.mark.sim
def test_one_import_is_enough_when_the_id_names_the_module() -> None:
    script = (
        "import gymnasium\n"
        "env = gymnasium.make('vla_robot.world.sim.gym_env:vla_robot/Tabletop-v0')\n"
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


def test_the_reward_is_0_before_the_task_is_done(env: WorldEnv) -> None:
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


def test_gymnasiums_wrapper_clip_action_clips(env: WorldEnv) -> None:
    clipped = gymnasium.wrappers.ClipAction(env)
    clipped.reset(seed=0)
    info = clipped.step(HOLD + [0.3, 0, 0, 0, 0, 0, 0])[-1]
    assert info["executed"][0] == 0.05


def test_the_info_holds_the_worlds_clamps(env: WorldEnv) -> None:
    class Clamping:
        """The world, with a clamp in the result of each step."""

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


VECTOR = """
import sys
import gymnasium, numpy as np
import vla_robot.world.sim.gym_env

def main(mode, context, drawn_before):
    if drawn_before:
        gymnasium.make("vla_robot/Tabletop-v0").reset(seed=0)
    more = {"vector_kwargs": {"context": context}} if mode == "async" else {}
    wrappers = [lambda env: gymnasium.wrappers.FrameStackObservation(env, 2)] if mode == "sync" else None
    envs = gymnasium.make_vec("vla_robot/Tabletop-v0", 2, mode, wrappers=wrappers, **more)
    try:
        observation, info = envs.reset(seed=7)
        assert observation in envs.observation_space
        first = observation["images"]["front"]
        assert first.std() > 10 and list(info["instruction"]) == ["lift the red cube"] * 2
        for _ in range(3):
            observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert info["executed"].shape == (2, 7)
        print(first.shape, observation["state"].shape)
    except Exception as error:
        print(type(error).__name__, error)
    finally:
        envs.close()

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "True")
"""


def vector(tmp_path: Path, mode: str, context: str, drawn_before: bool = False) -> str:
    """Return what a process prints that steps two environments. A process that hangs is killed with its children."""
    (tmp_path / "vector.py").write_text(VECTOR)
    command = [sys.executable, str(tmp_path / "vector.py"), mode, context, str(drawn_before)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, error = process.communicate(timeout=DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, error
    return out.strip()


@pytest.mark.sim
@pytest.mark.parametrize(
    "context",  # "spawn" is asked for below, too
    ["fork", pytest.param("forkserver", marks=pytest.mark.slow), pytest.param("spawn", marks=pytest.mark.slow)],
)
def test_environments_step_side_by_side_in_processes_however_they_are_started(tmp_path: Path, context: str) -> None:
    assert vector(tmp_path, "async", context) == "(2, 224, 224, 3) (2, 7)"


@pytest.mark.sim
def test_environments_with_stacked_frames_step_in_one_process(tmp_path: Path) -> None:
    assert vector(tmp_path, "sync", "-") == "(2, 2, 224, 224, 3) (2, 2, 7)"


@pytest.mark.sim
def test_a_worker_that_was_forked_after_a_frame_was_drawn_says_which_context_to_ask_for(tmp_path: Path) -> None:
    told = vector(tmp_path, "async", "fork", drawn_before=True)
    assert told.startswith("WorldError OpenGL had started in the process that this one was forked from")
    assert 'vector_kwargs={"context": "spawn"}' in told
    assert vector(tmp_path, "async", "spawn", drawn_before=True) == "(2, 224, 224, 3) (2, 7)"


@pytest.mark.sim
def test_a_child_that_was_forked_after_a_frame_was_drawn_ends_by_itself() -> None:
    """No finaliser and no exit handler waits for the driver's threads, which the child does not have."""
    script = (
        "import gc, os, sys, vla_robot.world.sim.gym_env as gym_env\n"
        "env = gym_env.make_env('tabletop')\n"
        "env.reset(seed=0)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    env.close()\n"
        "    del env\n"
        "    gc.collect()\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(env.reset(seed=0)[0]['images']['front'].std() > 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    assert done.stdout.split() == ["7", "True"]


@pytest.mark.sim
def test_a_world_may_be_reset_stepped_and_closed_in_another_thread_each() -> None:
    with contextlib.closing(gymnasium.make(env_id("tabletop"))) as env:
        here = env.reset(seed=3)[0]["images"]["front"]
        for _ in range(2):
            with ThreadPoolExecutor(1) as thread:
                there = thread.submit(lambda: env.reset(seed=3)[0]["images"]["front"]).result()
                np.testing.assert_array_equal(there, here)
            with ThreadPoolExecutor(1) as thread:
                assert thread.submit(env.step, HOLD).result()[0]["images"]["wrist"].std() > 0
        with ThreadPoolExecutor(1) as thread:
            thread.submit(env.close).result()


@pytest.mark.sim
def test_frames_stack_and_videos_are_recorded_by_gymnasiums_own_wrappers(tmp_path: Path) -> None:
    stacked = gymnasium.wrappers.FrameStackObservation(gymnasium.make(env_id("tabletop")), 3)
    with contextlib.closing(stacked):
        observation, _ = stacked.reset(seed=0)
        assert observation["images"]["front"].shape == (3, 224, 224, 3)
        assert stacked.step(HOLD)[0] in stacked.observation_space
    pytest.importorskip("moviepy")
    inner = gymnasium.make(env_id("tabletop"), render_mode="rgb_array")
    recorded = gymnasium.wrappers.RecordVideo(inner, str(tmp_path), disable_logger=True)
    with contextlib.closing(recorded):
        recorded.reset(seed=0)
        for _ in range(5):
            recorded.step(HOLD)
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000
