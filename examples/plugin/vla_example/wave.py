"""Policy kind "wave": moves the tool to and fro along one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_robot.core.embodiment import ActionSpace, Embodiment
from vla_robot.core.errors import ContractError, RecipeError, unknown
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Policy
from vla_robot.recipe import Plugin
from vla_robot.recipe.policy import PolicyRecipe


@dataclass(frozen=True, kw_only=True)
class WaveRecipe(PolicyRecipe):
    """Moves the tool to and fro along one axis.

    Attributes:
        axis: the action dimension that moves.
        period_steps: control steps of one way to and fro.
    """

    kind: Literal["wave"] = "wave"
    axis: str = "dx"
    period_steps: int = 20

    def __post_init__(self) -> None:
        if self.period_steps < 2:
            raise RecipeError(f"period_steps is {self.period_steps}; at least 2 are needed")


class WavePolicy:
    """A cosine of half the largest step, with the gripper open."""

    def __init__(self, recipe: WaveRecipe, space: ActionSpace) -> None:
        self._period, self._axis = recipe.period_steps, space.names.index(recipe.axis)
        self._space = space

    def reset(self, seed: int) -> None:
        """Nothing to forget: an action depends on the observation's step alone."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> ActionChunk:
        action = np.zeros(len(self._space))
        action[-1] = 1.0
        swing = math.cos(2 * math.pi * observation.step / self._period)
        action[self._axis] = 0.5 * swing * self._space.high[self._axis]
        return ActionChunk(action[None], observation.stamp_ns, observation.step)


def build(recipe: WaveRecipe, embodiment: Embodiment | None) -> Policy:
    """Raises ContractError for an arm that has no such axis, or when no arm is named."""
    if embodiment is None:
        raise ContractError("a policy of kind 'wave' must be told which arm it moves.")
    if recipe.axis not in embodiment.action.names:
        raise ContractError(unknown("action dimension", recipe.axis, embodiment.action.names))
    return WavePolicy(recipe, embodiment.action)


PLUGIN = Plugin(WaveRecipe, "moves the tool to and fro along one axis", build)
