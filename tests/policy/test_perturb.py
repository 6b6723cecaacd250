"""A disturbed policy is a policy: repeatable, within the limits, and clean when nothing disturbs it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.messages import Observation
from vla_robot.core.ports import Policy
from vla_robot.policy.scripted.perturb import Perturbation, PerturbedPolicy
from vla_robot.policy.scripted.simple import HoldPolicy, RandomPolicy
from vla_robot.recipe.env import RobosuiteRecipe
from vla_robot.world.sim.sim_embodiment import embodiment_of

SPACE = embodiment_of(RobosuiteRecipe(instruction="lift", task="Lift"), "panda").action
CALM = Perturbation(jitter=0.0, burst_probability=0.0)
WILD = Perturbation(jitter=0.0, burst_probability=1.0, burst_steps=(3, 3), flip_probability=1.0)
SEEN = Observation(images={}, state=np.zeros(7), instruction="lift", stamp_ns=17, step=4)


def episode(perturbation: Perturbation, seed: int, steps: int = 30) -> np.ndarray:
    policy = PerturbedPolicy(HoldPolicy(SPACE), SPACE, perturbation)
    policy.reset(seed)
    return np.stack([policy.act([SEEN])[0].actions[0] for _ in range(steps)])


def test_a_wrapped_policy_is_a_policy() -> None:
    assert isinstance(PerturbedPolicy(HoldPolicy(SPACE), SPACE, CALM), Policy)


@given(st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_noise_within_the_limits(seed: int) -> None:
    actions = episode(Perturbation(), seed)
    assert np.array_equal(actions, episode(Perturbation(), seed))
    assert (actions >= SPACE.low).all()
    assert (actions <= SPACE.high).all()


def test_two_seeds_give_different_noise() -> None:
    assert not np.array_equal(episode(Perturbation(), 1), episode(Perturbation(), 2))


def test_no_perturbation_leaves_the_action_as_it_is() -> None:
    clean = HoldPolicy(SPACE).act([SEEN])[0].actions[0]
    assert np.array_equal(episode(CALM, 0), np.tile(clean, (30, 1)))


def test_a_burst_keeps_one_direction_and_holds_the_gripper_the_wrong_way() -> None:
    actions = episode(WILD, seed=0, steps=6)
    assert np.array_equal(actions[0], actions[1])
    assert np.array_equal(actions[0], actions[2])
    assert not np.array_equal(actions[2], actions[3])
    assert (actions[:, -1] == 0.0).all()


def test_the_clean_policy_is_not_changed_by_the_noise_around_it() -> None:
    clean = HoldPolicy(SPACE)
    before = clean.act([SEEN])[0].actions.copy()
    noisy = PerturbedPolicy(clean, SPACE, WILD)
    noisy.act([SEEN])
    assert np.array_equal(clean.act([SEEN])[0].actions, before)


def test_a_chunk_keeps_the_stamp_and_step_of_its_cause() -> None:
    chunk = PerturbedPolicy(HoldPolicy(SPACE), SPACE, Perturbation()).act([SEEN])[0]
    assert (chunk.stamp_ns, chunk.step) == (17, 4)


@given(st.integers(0, 2**31))
def test_random_actions_repeat_with_their_seed_and_stay_within_the_limits(seed: int) -> None:
    policy = RandomPolicy(SPACE)
    policy.reset(seed)
    first = policy.act([SEEN])[0].actions
    policy.reset(seed)
    assert np.array_equal(policy.act([SEEN])[0].actions, first)
    assert (first >= SPACE.low).all()
    assert (first <= SPACE.high).all()
