"""The [rollouts] of a training run: episodes in closed loop, in a world in a separate process, between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vla_robot.cli.build import build_guard, build_policy, open_world
from vla_robot.core.errors import PolicyError
from vla_robot.core.host.device_names import AUTO
from vla_robot.evaluate.runner import run_episodes
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.results import RunInfo
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.finetune import RolloutsRecipe
from vla_robot.recipe.policy_source import find_policy


@dataclass(frozen=True)
class Rollouts:
    """Runs episodes with a policy in training; a `vla_robot.train.finetune.RollOut`.

    Attributes:
        recipe: world and episodes.
        should_stop: returns True to end them early.
        device: device of the training, where the policy acts too.
    """

    recipe: RolloutsRecipe
    should_stop: Callable[[], bool]
    device: str = AUTO

    def __call__(self, folder: Path, statistics_key: str) -> float | None:
        """Return the success rate of a policy's folder; None if the episodes were ended early.

        Raises:
            VlaError: the world cannot be built, or the policy does not fit it.
            PolicyError: the policy had no action in any episode.
        """
        env, source = find_env(self.recipe.env), find_policy(folder.resolve()).on_device(self.device)
        recipe = replace(source.recipe, statistics_key=statistics_key)
        seeds = self.recipe.seeds
        with open_world(env.recipe) as world:
            policy = build_policy(replace(source, recipe=recipe), env.recipe, world.embodiment)
            info = RunInfo(env.name, source.name, env.recipe.instruction or world.instruction)
            guard = build_guard(world.embodiment.action)
            drive = partial(run_episode, world, policy, guard=guard, should_stop=self.should_stop, frames_every=None)
            summary = run_episodes(drive, world.embodiment, seeds, info=info, should_stop=self.should_stop)
        errors = [episode.error for episode in summary.episodes if episode.error]
        if errors:
            raise PolicyError(f"{len(errors)} of {len(seeds)} rollouts had no action: {errors[0]}")
        return None if summary.interrupted else summary.success_rate
