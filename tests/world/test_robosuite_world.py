"""Tests of robosuite as a World: repeatable episodes, physical units, and errors that name the recipe's mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import pytest

from vla_robot.core.errors import ContractError, RecipeError, WorldError
from vla_robot.recipe import read
from vla_robot.recipe.env import CameraRecipe, RobosuiteRecipe
from vla_robot.world.kinds import build_world
from vla_robot.world.sim import robosuite_world
from vla_robot.world.sim.robosuite_world import ARMS, TASKS, RobosuiteWorld

pytestmark = pytest.mark.sim

HOLD = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
UP = HOLD + np.array([0.0, 0.0, 0.03, 0.0, 0.0, 0.0, 0.0])


def blind(name: str) -> RobosuiteRecipe:
    return dataclasses.replace(read(RobosuiteRecipe, name), cameras=())


@pytest.fixture(scope="module")
def lift() -> Iterator[RobosuiteWorld]:
    world = RobosuiteWorld(read(RobosuiteRecipe, "lift"), privileged=True)
    yield world
    world.close()


def trajectory(world: RobosuiteWorld, seed: int) -> list[bytes]:
    """Return the bytes of state and images of a short episode with fixed random actions."""
    generator = np.random.default_rng(0)
    space = world.embodiment.action
    observations = [world.reset(seed)]
    for _ in range(4):
        observations.append(world.step(generator.uniform(space.low, space.high)).observation)
    return [o.state.tobytes() + b"".join(image.tobytes() for image in o.images.values()) for o in observations]


def test_a_seed_gives_the_same_bytes_whatever_ran_before(lift: RobosuiteWorld) -> None:
    first = trajectory(lift, seed=5)
    for seed in (1, 2, 3):
        trajectory(lift, seed)
    assert trajectory(lift, seed=5) == first


def test_two_seeds_differ(lift: RobosuiteWorld) -> None:
    assert not np.array_equal(lift.reset(1).privileged["cube_pos"], lift.reset(2).privileged["cube_pos"])


def test_a_reset_leaves_the_callers_random_numbers_alone(lift: RobosuiteWorld) -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(3)
    lift.reset(0)
    assert (np.random.random(), random.random()) == expected


def test_a_reset_opens_the_gripper_and_fits_the_embodiment(lift: RobosuiteWorld) -> None:
    observation = lift.reset(0)
    lift.embodiment.check(observation)
    assert observation.step == 0
    assert observation.state[-1] > 0.07


def test_frames_show_something_and_are_not_upside_down(lift: RobosuiteWorld) -> None:
    front = lift.reset(0).images["front"]
    assert front.std() > 10
    assert front[-40:].mean() > front[:40].mean(), "the white table belongs at the bottom, the grey wall at the top"


def test_an_action_is_in_metres_in_the_base_frame(lift: RobosuiteWorld) -> None:
    start = lift.reset(0).state[:3]
    moved = [lift.step(UP).observation.state[:3] for _ in range(5)][-1] - start
    assert moved[2] > 0.03
    assert np.abs(moved[:2]).max() < 0.03


def test_gripper_zero_closes_and_one_opens(lift: RobosuiteWorld) -> None:
    lift.reset(0)
    closing = [lift.step(HOLD * 0).observation.state[-1] for _ in range(10)]
    opening = [lift.step(HOLD).observation.state[-1] for _ in range(10)]
    assert closing[-1] < 0.01 < 0.07 < opening[-1]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (HOLD[:6], r"shape \(6,\), expected \(7,\)"),
        (HOLD * np.nan, "not finite"),
        (HOLD + np.array([0.2, 0, 0, 0, 0, 0, 0]), r"dx is 0\.2 m, allowed is -0\.05 to 0\.05"),
    ],
)
def test_a_bad_action_is_refused_and_nothing_moves(lift: RobosuiteWorld, action: np.ndarray, message: str) -> None:
    before = lift.reset(0).state
    with pytest.raises(ContractError, match=message):
        lift.step(action)
    after = lift.step(HOLD).observation
    assert after.step == 1
    assert np.abs(after.state - before).max() < 0.02


def test_the_horizon_truncates_at_its_step_and_not_before() -> None:
    world = build_world(dataclasses.replace(blind("lift"), horizon=3))
    world.reset(0)
    assert [world.step(HOLD).truncated for _ in range(3)] == [False, False, True]
    world.close()


def test_the_truth_is_given_only_when_asked_for() -> None:
    world = build_world(blind("lift"))
    assert world.reset(0).privileged == {}
    world.close()


def test_a_closed_world_says_so_and_may_be_closed_twice() -> None:
    world = build_world(blind("lift"))
    world.close()
    world.close()
    with pytest.raises(WorldError, match="was closed; build a new one"):
        world.reset(0)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("stack", {"cubeA_pos", "cubeB_pos", "cubeA_mat"}),
        ("pick_place_can", {"Can_pos", "Can_goal_pos"}),
        ("door", {"handle_pos", "hinge_angle", "latch_angle"}),
    ],
)
def test_a_task_resets_twice_and_has_the_privileged_values_of_its_expert(name: str, truth: set[str]) -> None:
    world = build_world(blind(name), privileged=True)
    first = world.reset(4)
    world.reset(5)
    again = world.reset(4)
    assert truth <= set(first.privileged)
    assert all(np.array_equal(first.privileged[key], again.privileged[key]) for key in first.privileged)
    world.close()


def test_a_task_that_chooses_its_object_chooses_the_same_for_a_seed() -> None:
    world = RobosuiteWorld(dataclasses.replace(blind("pick_place_can"), task="PickPlaceSingle"), privileged=True)

    def chosen(seed: int) -> str:
        world.reset(seed)
        return world._env.obj_to_use

    random.seed(1)
    first = [chosen(seed) for seed in range(6)]
    random.seed(2)
    assert [chosen(seed) for seed in range(6)] == first
    assert len(set(first)) > 1
    world.close()


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown robosuite task 'Lifft'; did you mean 'Lift'\? Available: .*Stack"):
        build_world(dataclasses.replace(blind("lift"), task="Lifft"))


def test_an_unknown_arm_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown robosuite arm 'Pandda'; did you mean 'Panda'\?"):
        build_world(dataclasses.replace(blind("lift"), arm="Pandda"))


def test_an_unknown_camera_source_names_the_nearest() -> None:
    camera = CameraRecipe(name="front", source="frontvieww")
    with pytest.raises(RecipeError, match=r"source of camera 'front' 'frontvieww'; did you mean 'frontview'\?"):
        build_world(dataclasses.replace(blind("lift"), cameras=(camera,)))


def built(task: str, arm: str) -> RobosuiteWorld:
    return RobosuiteWorld(dataclasses.replace(blind("lift"), task=task, arm=arm), privileged=True)


QUICK = [("Lift", "Panda"), ("PickPlace", "Panda"), ("Door", "Panda"), ("Lift", "UR5e")]
OFFERED = [*((task, "Panda") for task in TASKS), *(("Lift", arm) for arm in ARMS[1:])]


@pytest.mark.parametrize(
    ("task", "arm"), [each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in OFFERED]
)
def test_every_task_and_arm_on_offer_moves_as_told_and_opens_in_metres(task: str, arm: str) -> None:
    with contextlib.closing(built(task, arm)) as world:
        start = world.reset(1)
        world.embodiment.check(start)
        moved = [world.step(UP).observation.state[:3] for _ in range(5)][-1] - start.state[:3]
        assert moved[2] > 0.03 and np.abs(moved[:2]).max() < 0.03
        closed = [world.step(HOLD * 0).observation.state[-1] for _ in range(20)][-1]
        opened = [world.step(HOLD).observation for _ in range(20)][-1]
        assert closed < 0.01 and 0.07 < opened.state[-1] < world.embodiment.state[-1].high
        world.embodiment.check(opened)
        np.testing.assert_array_equal(world.reset(1).state, start.state)


@pytest.mark.parametrize(
    ("task", "arm", "what"),
    [
        ("Wipe", "Panda", "task 'Wipe'"),
        ("TwoArmLift", "Panda", "task 'TwoArmLift'"),
        *(("Lift", arm, f"arm '{arm}'") for arm in ("Sawyer", "Baxter", "GR1", "Jaco", "PandaOmron", "PandaDexRH")),
    ],
)
def test_tasks_and_arms_that_are_not_offered_are_refused_in_one_line(task: str, arm: str, what: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"robosuite's {what} is not supported: .* Available: .*(Panda|Lift)"
    ) as told:
        built(task, arm)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("task", "arm", "message"),
    [
        ("Wipe", "Panda", r"task 'Wipe' with arm 'Panda' has 1 arm\(s\) and takes 6 numbers an action; .* which is 7"),
        ("Lift", "GR1ArmsOnly", r"with arm 'GR1ArmsOnly' has 2 arm\(s\) and takes 24 numbers an action"),
        ("Lift", "Sawyer", r"robosuite cannot build task 'Lift' with arm 'Sawyer': Error: mesh volume is too small"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_even_where_it_is_offered(
    monkeypatch: pytest.MonkeyPatch, task: str, arm: str, message: str
) -> None:
    monkeypatch.setattr(robosuite_world, "TASKS", (*TASKS, "Wipe"))
    monkeypatch.setattr(robosuite_world, "ARMS", (*ARMS, "GR1ArmsOnly", "Sawyer"))
    with pytest.raises(RecipeError, match=message) as told:
        built(task, arm)
    assert "\n" not in str(told.value)
