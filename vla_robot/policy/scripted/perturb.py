"""Adds noise to a policy, so that demonstrations show mistakes and recoveries.

Source: Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning": the executed action is disturbed, the
label stays clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.messages import ActionChunk, Observation, Vector
from vla_robot.core.ports import Policy


@dataclass(frozen=True)
class Perturbation:
    """Strength of the noise.

    Attributes:
        jitter: standard deviation of the noise of every step, as a share of the largest translation.
        burst_probability: probability per step that a burst begins.
        burst_steps: shortest and longest burst [steps].
        flip_probability: probability that a burst also inverts the gripper.
    """

    jitter: float = 0.15
    burst_probability: float = 0.08
    burst_steps: tuple[int, int] = (2, 6)
    flip_probability: float = 0.15


class PerturbedPolicy:
    """Policy that adds noise to another policy's single actions. The same seed gives the same noise."""

    def __init__(self, policy: Policy, space: ActionSpace, perturbation: Perturbation) -> None:
        self._policy = policy
        self._space = space
        self._p = perturbation
        self._start(0)

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)
        self._start(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = self._policy.act(observations)
        return [replace(chunk, actions=self._disturb(chunk.actions[0])[None]) for chunk in chunks]

    def _start(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0xDA27])
        self._left = 0
        self._drift = np.zeros(3)
        self._flip = False

    def _disturb(self, action: Vector) -> Vector:
        noisy = action.copy()
        largest = self._space.high[:3]
        if self._left == 0 and self._rng.random() < self._p.burst_probability:
            self._left = int(self._rng.integers(self._p.burst_steps[0], self._p.burst_steps[1] + 1))
            self._drift = self._rng.uniform(-1, 1, 3) * largest
            self._flip = self._rng.random() < self._p.flip_probability
        if self._left:
            self._left -= 1
            noisy[:3] = self._drift
            if self._flip:
                noisy[-1] = 1.0 - noisy[-1]
        noisy[:3] += self._rng.normal(0, self._p.jitter, 3) * largest
        return np.clip(noisy, self._space.low, self._space.high)
