"""Policies without a model: baselines for every score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.messages import ActionChunk, Observation, Vector


def single(action: Vector, observation: Observation) -> ActionChunk:
    """Return a chunk of one action for the observation's step."""
    return ActionChunk(actions=action[None], stamp_ns=observation.stamp_ns, step=observation.step)


class HoldPolicy:
    """Policy that stays where it is with the gripper open. Only for arms whose actions are deltas."""

    def __init__(self, space: ActionSpace) -> None:
        self._action = np.zeros(len(space))
        self._action[-1] = 1.0

    def reset(self, seed: int) -> None:
        """Do nothing: the policy has no memory."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._action, observation) for observation in observations]


class RandomPolicy:
    """Policy that draws uniform actions within the limits."""

    def __init__(self, space: ActionSpace) -> None:
        self._space = space
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._rng.uniform(self._space.low, self._space.high), o) for o in observations]
