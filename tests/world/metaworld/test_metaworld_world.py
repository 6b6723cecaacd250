"""Meta-World as its package has it: states of an episode, parameter sets, sets of tasks, the scripted policies."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libero_environment import METAWORLD, needs_metaworld

from vla_robot.cli.build import build_policy
from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.core.ports import World
from vla_robot.loop.control_loop import run_episode
from vla_robot.policy.scripted.experts import build_expert
from vla_robot.recipe.benchmarks.metaworld import METAWORLD_SUITES
from vla_robot.recipe.env import MetaWorldRecipe
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy_source import find_policy
from vla_robot.serve.world.world_process import spawn_world
from vla_robot.testing import NoLimits, toy_embodiment, toy_observation

STEPS = 40
installed = [needs_metaworld, pytest.mark.sim, pytest.mark.slow]


def recipe_of(name: str, **changes: Any) -> MetaWorldRecipe:
    recipe = find_env(name).recipe
    assert isinstance(recipe, MetaWorldRecipe)
    return dataclasses.replace(recipe, **{"cameras": (), **changes})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The package's own environment and scripted policy: 40 steps of pick-place with parameter set 3."""
    out = tmp_path_factory.mktemp("metaworld") / "reference.npz"
    script = Path(__file__).with_name("reference.py")
    command = [str(METAWORLD.python), "-I", str(script), "pick-place", "3", str(STEPS), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    with np.load(out) as found:
        return dict(found)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with spawn_world(recipe_of("metaworld_mt50/pick-place"), privileged=True) as world:
        yield world


class TestInstalled:
    pytestmark = installed

    def test_states_are_the_packages_own_and_the_same_bits_whatever_ran_before(
        self, world: World, reference: dict[str, Any]
    ) -> None:
        """The package moves the hand in float32, and we in float64."""
        runs: list[np.ndarray] = []
        for other_seed in (3, 11):
            world.reset(other_seed)
            world.step(np.array([0.01, 0.0, -0.01, 0.0]))
            seen = [world.reset(53).state]  # 53 is parameter set 3
            for fractions in reference["actions"].astype(np.float64):
                action = np.append(fractions[:3] * 0.01, (1.0 - fractions[3]) / 2.0)
                seen.append(world.step(action).observation.state)
            runs.append(np.stack(seen))
        np.testing.assert_allclose(runs[0], reference["seen"][:, :4], atol=1e-6)
        np.testing.assert_array_equal(runs[0], runs[1])

    def test_sets_of_tasks_are_the_packages(self, reference: dict[str, Any]) -> None:
        theirs = {name: [task.removesuffix("-v3") for task in tasks] for name, tasks in _sets(reference).items()}
        assert {name: sorted(tasks) for name, tasks in METAWORLD_SUITES.items()} == {
            name: sorted(tasks) for name, tasks in theirs.items()
        }

    def test_the_expert_does_what_the_packages_policy_does_and_succeeds(
        self, world: World, reference: dict[str, Any]
    ) -> None:
        told = world.reset(3).privileged["expert_action"]
        first = reference["actions"][0]
        np.testing.assert_allclose(told, np.append(first[:3] * 0.01, (1 - first[3]) / 2), atol=1e-9)
        expert = build_policy(find_policy("expert"), recipe_of("metaworld_mt50/pick-place"), world.embodiment)
        outcomes = [run_episode(world, expert, seed, guard=NoLimits()) for seed in (0, 3)]
        assert [outcome.outcome for outcome in outcomes] == ["success", "success"]

    def test_other_parameter_sets_are_as_many_as_seeds_repeat_and_are_none_of_the_benchmarks(
        self, world: World
    ) -> None:
        def places(world: World, seeds: Iterable[int]) -> list[tuple[float, ...]]:
            found = (world.reset(seed).privileged for seed in seeds)
            return [(*truth["object_pos"], *truth["goal_pos"]) for truth in found]

        seeds = [0, 3, 49, 50, 53, 99]
        with spawn_world(recipe_of("metaworld_mt50/pick-place", parameters="others"), privileged=True) as other:
            others = places(other, seeds)
            assert places(other, reversed(seeds)) == others[::-1]
        assert len({*others, *places(world, range(50))}) == len(seeds) + 50

    def test_frames_show_the_scene_the_right_way_up(self) -> None:
        """The table's white top fills the lower half; the wall behind it is darker."""
        front = dataclasses.replace(find_env("metaworld_mt50/reach").recipe.cameras[0], height=64, width=64)
        with spawn_world(recipe_of("metaworld_mt50/reach", cameras=(front,), shadows=False)) as world:
            frame = world.reset(0).images["front"].astype(float)
        assert frame.shape == (64, 64, 3) and frame.std() > 10


def _sets(reference: dict[str, Any]) -> dict[str, list[str]]:
    return json.loads(str(reference["sets"]))


def test_a_set_has_its_tasks_and_what_the_benchmark_fixes_is_refused() -> None:
    source = find_env("metaworld_mt10")
    assert [task.name for task in source.tasks()][:2] == ["metaworld_mt10/reach", "metaworld_mt10/push"]
    assert len(find_env("metaworld_mt50").tasks()) == 50
    with pytest.raises(RecipeError, match=r"rate_hz is 20; Meta-World's is 80\.0"):
        recipe_of("metaworld_mt10", rate_hz=20)
    with pytest.raises(RecipeError, match=r"above 500, after which Meta-World wants a reset"):
        recipe_of("metaworld_mt10", horizon=501)
    with pytest.raises(RecipeError, match="unknown task 'reech'; did you mean 'reach'"):
        find_env("metaworld_mt10/reech")
    protocol = recipe_of("metaworld_mt10").protocol(range(10))
    assert protocol.endswith("Departures: 10 episodes of a task, 10 of its 50 initial states")
    others = recipe_of("metaworld_mt10", parameters="others").protocol(range(50))
    assert others.endswith("Departures: parameters others, the reference's is benchmark")


def test_the_protocol_names_the_frames_which_the_package_leaves_open() -> None:
    whole, small = (find_env(name).recipe for name in ("metaworld_mt10", "metaworld_mt10_small"))
    assert isinstance(whole, MetaWorldRecipe)
    assert isinstance(small, MetaWorldRecipe)
    frames = "Frames, which it does not prescribe: front (corner2) of 224 x 224 px, wrist (gripperPOV) of 224 x 224 px."
    assert frames in whole.protocol(range(50))
    protocol = small.protocol(range(50))
    assert "front (placed at 0.75, 0.075, 0.7 m) of 112 x 112 px, wrist" in protocol
    assert protocol.endswith("px, without shadows, reflections and multisampling. Departures: none")


def test_the_benchmarks_expert_needs_a_world_that_tells_its_action() -> None:
    expert = build_expert("benchmark", toy_embodiment().action)
    observation = toy_observation(toy_embodiment())
    told = dataclasses.replace(observation, privileged={"expert_action": np.array([0.01, 0.5])})
    np.testing.assert_array_equal(expert.act([told])[0].actions[0], [0.01, 0.5])
    with pytest.raises(PolicyError, match='tells no "expert_action"'):
        expert.act([dataclasses.replace(observation, privileged={"eef_pos": np.zeros(3)})])
