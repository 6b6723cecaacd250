"""A policy that calls a function, and a guard that changes no action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_robot.core.messages import ActionChunk, Clamp, Observation, Vector


@dataclass
class FunctionPolicy:
    """A policy whose action is the value of a function.

    Attributes:
        decide: observation -> (D,) action, (T, D) actions, or one number: the motion, with the gripper open. It may
            raise PolicyError.
        seeds: seed of every reset.
        saw: every observation, in order.
    """

    decide: Callable[[Observation], float | Sequence[float] | Vector] = lambda observation: 0.0
    seeds: list[int] = field(default_factory=list[int])
    saw: list[Observation] = field(default_factory=list[Observation])

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.saw += observations
        return [ActionChunk(self._rows(o), o.stamp_ns, o.step) for o in observations]

    def _rows(self, observation: Observation) -> Vector:
        """(T, D)"""
        said = np.array(self.decide(observation), np.float64)
        return np.atleast_2d(np.array([float(said), 1.0]) if said.ndim == 0 else said)


class NoLimits:
    """A Guard without limits: it returns every action unchanged."""

    def check(self, action: Vector) -> tuple[Vector, tuple[Clamp, ...]]:
        return action, ()
