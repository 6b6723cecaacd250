"""Whole episodes: the loop's steps are those of lerobot's own `select_action`, with its queues."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.cli.build import build_policy
from vla_robot.core.clock import FakeClock
from vla_robot.core.messages import Clamp, Observation, StepResult, Vector
from vla_robot.loop.control_loop import run_episode
from vla_robot.policy.lerobot.policy import LeRobotPolicy
from vla_robot.policy.vla.heads.noise import row_seed
from vla_robot.recipe.policy_source import find_policy

from .lerobot_folders import ARM, batch_of, edit, lerobots_own, observation

STEPS, SEED = 11, 3


@dataclass
class Film:
    """A world whose observations are always the same, and that keeps the actions it gets."""

    embodiment = ARM
    instruction = "lift the cube"
    step_number: int = 0
    actions: list[Vector] = field(default_factory=list[Vector])

    def reset(self, seed: int) -> Observation:
        self.step_number = 0
        return observation(0)

    def step(self, action: Vector) -> StepResult:
        self.actions.append(action)
        self.step_number += 1
        return StepResult(observation(self.step_number), action, False, False, self.step_number >= STEPS)

    def close(self) -> None:
        """Nothing is open."""


class Unlimited:
    """A guard that lets every action pass, so that it can be compared."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        return action, ()


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_an_episode_by_the_folders_path_is_lerobots_own(kind: str, folder: Callable[[str], Path]) -> None:
    """ACT's chunks have 8 actions; Diffusion Policy's 4, for which it reads two observations."""
    world = Film()
    policy = build_policy(find_policy(str(folder(kind))), None, ARM)
    ended = run_episode(world, policy, SEED, guard=Unlimited(), clock=FakeClock(start_ns=1))
    assert (ended.outcome, ended.steps) == ("timeout", STEPS)
    model, before, after = lerobots_own(folder(kind))
    model.reset()
    for step, action in enumerate(world.actions):
        torch.manual_seed(row_seed(SEED, step))  # drawn from only where the queue is empty
        with torch.no_grad():
            theirs = after(model.select_action(before(batch_of(observation(step)))))[0].double().numpy()
        np.testing.assert_allclose(action, theirs, rtol=0, atol=1e-6)


def test_two_observations_are_read_where_they_differ(load: Callable[..., LeRobotPolicy]) -> None:
    """Lest the episode above is equal because the earlier observation is never looked at."""
    policy = load("diffusion")
    policy.reset(SEED)
    (alone,) = policy.act([observation(1)])
    (after,) = policy.act([_with(observation(1), observation(0))])
    assert np.abs(alone.actions - after.actions).max() > 1e-6
    (longer,) = policy.act([_with(observation(1), observation(7), observation(0))])
    np.testing.assert_array_equal(longer.actions, after.actions)


def _with(seen: Observation, *before: Observation) -> Observation:
    return replace(seen, before=before)


def test_rows_of_the_command_line_give_the_whole_chunk_as_rows_of_a_recipe_do(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Otherwise an answer would have `n_action_steps` actions: 2 here, and none to compare the next with."""
    short = shutil.copytree(folder("act"), tmp_path / "act")
    edit(short, "config.json", lambda config: config.update(n_action_steps=2))
    (tmp_path / "mine.toml").write_text(f'kind = "lerobot"\ncheckpoint = "{short}"\nrows = 3\n')
    answers = [
        build_policy(find_policy(str(short)), None, ARM, rows=3),
        build_policy(find_policy(str(tmp_path / "mine.toml")), None, ARM),
    ]
    for policy in answers:
        policy.reset(SEED)
    (here,), (there,) = (policy.act([observation(0)]) for policy in answers)
    np.testing.assert_array_equal(here.actions, there.actions)
    assert here.rows == there.rows == 3 < len(here.actions)
