"""The scripted experts do their tasks, from anywhere, and look at nothing but the present observation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.core.geometry import matrix_from_rotvec
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy, World
from vla_robot.policy.scripted.experts import build_expert, cube_grasp
from vla_robot.policy.scripted.perturb import Perturbation, PerturbedPolicy
from vla_robot.policy.scripted.simple import HoldPolicy
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe, RobosuiteRecipe, SimulationRecipe
from vla_robot.world.kinds import build_world
from vla_robot.world.sim.sim_embodiment import embodiment_of

SPACE: ActionSpace = embodiment_of(RobosuiteRecipe(instruction="lift", task="Lift"), "panda").action
LENGTH = st.floats(-0.6, 0.6)


def seen(tool: list[float], cube: list[float], width: float, yaw: float = 0.0) -> Observation:
    truth = {
        "eef_pos": np.array(tool),
        "eef_rot": np.array([np.pi, 0.0, 0.0]),
        "gripper_width": np.array([width]),
        "cube_pos": np.array(cube),
        "cube_mat": matrix_from_rotvec(np.array([0.0, 0.0, yaw])).ravel(),
    }
    return Observation(images={}, state=np.zeros(7), instruction="lift", stamp_ns=0, step=0, privileged=truth)


def lift_action(observation: Observation) -> np.ndarray:
    return build_expert("lift", SPACE).act([observation])[0].actions[0]


@given(LENGTH, LENGTH, LENGTH, LENGTH, LENGTH, LENGTH, st.floats(0, 0.08), st.floats(-3, 3))
def test_an_action_is_always_within_the_limits(
    x: float, y: float, z: float, cx: float, cy: float, cz: float, width: float, yaw: float
) -> None:
    action = lift_action(seen([x, y, z], [cx, cy, cz], width, yaw))
    assert np.isfinite(action).all()
    assert (action >= SPACE.low).all()
    assert (action <= SPACE.high).all()


@given(st.floats(-3, 3))
def test_fingers_at_the_cubes_own_width_hold_it_at_any_yaw(yaw: float) -> None:
    # At 45 degrees the fingers stop at the diagonal; an expert that waits for the side's width waits for ever.
    held = cube_grasp(matrix_from_rotvec(np.array([0.0, 0.0, yaw])).ravel(), 0.042).held_width - 0.001
    action = lift_action(seen([0.5, 0.0, 0.0], [0.5, 0.0, 0.0], held, yaw))
    assert action[2] == SPACE.high[2]
    assert action[-1] == 0.0


@given(st.floats(-3, 3))
def test_a_quarter_turn_of_the_cube_changes_nothing(yaw: float) -> None:
    widths = [
        cube_grasp(matrix_from_rotvec(np.array([0.0, 0.0, y])).ravel(), 0.042).held_width
        for y in (yaw, yaw + np.pi / 2)
    ]
    assert widths[0] == pytest.approx(widths[1])


@given(st.floats(-3, 3), st.floats(0.040, 0.062), st.floats(-0.01, 0.01))
def test_fingers_that_may_hold_the_cube_never_wait(yaw: float, width: float, above: float) -> None:
    # A learner does not see the yaw well: an expert that waits at some width teaches it to wait there for ever.
    action = lift_action(seen([0.5, 0.0, above], [0.5, 0.0, 0.0], width, yaw))
    assert action[2] > 0
    assert action[-1] == 0.0


def test_a_low_tool_beside_the_cube_rises_instead_of_pushing_it() -> None:
    action = lift_action(seen([0.4, 0.0, 0.0], [0.5, 0.0, 0.0], width=0.078))
    assert action[2] == SPACE.high[2]
    assert action[-1] == 1.0


def test_a_gripper_that_closed_too_early_opens_again() -> None:
    assert lift_action(seen([0.5, 0.0, 0.08], [0.5, 0.0, 0.0], width=0.01))[-1] == 1.0


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    a, b = seen([0.4, 0.1, 0.1], [0.5, 0.0, 0.0], 0.078), seen([0.5, 0.0, 0.0], [0.5, 0.0, 0.0], 0.04)
    together = [chunk.actions for chunk in build_expert("lift", SPACE).act([a, b])]
    assert np.array_equal(together[0][0], lift_action(a))
    assert np.array_equal(together[1][0], lift_action(b))


def test_without_the_simulators_truth_it_says_what_is_missing() -> None:
    blind = dataclasses.replace(seen([0, 0, 0], [0, 0, 0], 0.0), privileged={})
    with pytest.raises(PolicyError, match="privileged=True"):
        lift_action(blind)


def test_an_unknown_expert_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown expert 'lifft'; did you mean 'lift'\?"):
        build_expert("lifft", SPACE)


def test_a_recipe_without_an_expert_lists_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"names no expert\. Available: .*door.*stack"):
        build_expert(None, SPACE)


def succeeds(world: World, policy: Policy, seed: int) -> bool:
    observation = world.reset(seed)
    policy.reset(seed)
    while True:
        result = world.step(policy.act([observation])[0].actions[0])
        observation = result.observation
        if result.terminated or result.truncated:
            return result.terminated


def without_cameras(name: str) -> SimulationRecipe:
    recipe = read(EnvRecipe, name)
    assert isinstance(recipe, SimulationRecipe)
    return dataclasses.replace(recipe, cameras=())


@pytest.mark.sim
@pytest.mark.parametrize("name", ["lift", "stack", "pick_place_can", "door"])
def test_an_expert_does_its_task_and_holding_still_does_not(name: str) -> None:
    recipe = without_cameras(name)
    world = build_world(recipe, privileged=True)
    space = world.embodiment.action
    assert all(succeeds(world, build_expert(recipe.expert, space), seed) for seed in (500, 501))
    assert not succeeds(world, HoldPolicy(space), 500)
    world.close()


class DisturbedAtFirst:
    """An expert whose first actions have noise."""

    def __init__(self, expert: Policy, space: ActionSpace, steps: int) -> None:
        self._expert, self._disturbed, self._steps = expert, PerturbedPolicy(expert, space, Perturbation()), steps

    def reset(self, seed: int) -> None:
        self._disturbed.reset(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        disturbed = observations[0].step < self._steps
        return (self._disturbed if disturbed else self._expert).act(observations)


@pytest.mark.sim
def test_the_door_is_opened_after_the_hand_was_driven_off_the_lever() -> None:
    """Of these seeds the expert that approached from above, whatever the lever's angle, opened none."""
    recipe = dataclasses.replace(without_cameras("door"), horizon=170)
    world = build_world(recipe, privileged=True)
    space = world.embodiment.action
    expert = build_expert(recipe.expert, space)
    assert all(succeeds(world, DisturbedAtFirst(expert, space, 30), seed) for seed in (703, 714, 722, 723))
    world.close()


@pytest.mark.sim
def test_lift_succeeds_on_cubes_at_forty_five_degrees_and_from_every_disturbance() -> None:
    recipe = without_cameras("lift")
    world = build_world(recipe, privileged=True)
    expert = build_expert(recipe.expert, world.embodiment.action)
    diagonal = (2, 18, 62, 98)
    assert all(succeeds(world, expert, seed) for seed in diagonal)
    disturbed = PerturbedPolicy(expert, world.embodiment.action, Perturbation())
    assert all(succeeds(world, disturbed, seed) for seed in (300, 301, 302, 303))
    world.close()
