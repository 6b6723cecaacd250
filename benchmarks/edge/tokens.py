"""Compares the tokens of an exported policy with torch's on what it sees while it drives a world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_robot.cli.build import build_guard, open_world
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.onnx.policy import OnnxPolicy
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.wrappers import wrap_policy
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.policy import CheckpointRecipe
from vla_robot.recipe.policy_source import find_policy


@dataclass(frozen=True)
class Compared:
    """Result of a comparison.

    Attributes:
        observations: number of observations.
        tokens: number of tokens.
        differ: number of tokens that differ from torch's.
        episodes: episodes that were begun.
    """

    observations: int
    tokens: int
    differ: int
    episodes: int


def compare_tokens(policy: str, exported: Path, env: str, observations: int) -> Compared:
    """Drive a world with an exported policy, from seed 0 on, and ask torch for each observation too."""
    both, source = _Both(policy, exported), find_env(env)
    with open_world(source.recipe) as world:
        acting = wrap_policy(both, find_policy(policy).recipe, world.embodiment)
        guard = build_guard(world.embodiment.action)
        episodes = 0
        while len(both.differ) < observations:
            seen, is_over = world.reset(episodes), False
            episodes += 1
            while not is_over and len(both.differ) < observations:
                action, _ = guard.check(acting.act([seen])[0].actions[0])
                result = world.step(action)
                seen, is_over = result.observation, result.terminated or result.truncated
    return Compared(len(both.differ), both.tokens, sum(both.differ), episodes)


class _Both:
    """The exported policy, which notes how many of its tokens differ from torch's for each observation."""

    def __init__(self, policy: str, exported: Path) -> None:
        recipe = find_policy(policy).recipe
        assert isinstance(recipe, CheckpointRecipe)
        self._theirs: Any = family_of(recipe.checkpoint).load(recipe.checkpoint, Loading.on_cpu(recipe))
        self._mine = OnnxPolicy(exported)
        self.embodiment = self._mine.embodiment
        self.differ, self.tokens = list[int](), 0

    def reset(self, seed: int) -> None:
        self._mine.reset(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        mine = self._mine.answers(observations)
        theirs = self._theirs.generate(self._theirs.read(observations), mine.shape[1])
        self.differ.append(int(np.sum(mine != theirs)))
        self.tokens += mine.size
        return self._mine.act(observations)
