"""Policies without a model: the baselines that every score is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.messages import ActionChunk, Observation, Vector


def single(action: Vector, observation: Observation) -> ActionChunk:
    """A chunk of one action for the observation's own step."""
    return ActionChunk(actions=action[None], stamp_ns=observation.stamp_ns, step=observation.step)


class HoldPolicy:
    """Stays where it is with the gripper open. Only for arms that are moved by deltas."""

    def __init__(self, space: ActionSpace) -> None:
        self._action = np.zeros(len(space))
        self._action[-1] = 1.0

    def reset(self, seed: int) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._action, observation) for observation in observations]


class RandomPolicy:
    """Uniform actions within the limits."""

    def __init__(self, space: ActionSpace) -> None:
        self._space = space
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [single(self._rng.uniform(self._space.low, self._space.high), o) for o in observations]
