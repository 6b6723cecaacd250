"""Cuts the way from one joint configuration to the next where a bound of the whole configuration ends it.

    start ------------------|- - - - - - wanted         start, and all on the way up to the last allowed one, are inside
                      last allowed

A bound tells by how much a configuration breaks each of its conditions, in metres. A condition that is broken already,
since the arm was pushed or began there, may stay so or come back, but not be broken further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_robot.core.messages import Vector
from vla_robot.world.real.kinematics.arm_model import ArmModel

WAY_RAD = 0.02
"""Distance of two configurations that are tested on the way, in the joint that turns furthest."""

HALVINGS = 6
"""Halvings of the last piece of the way; what is lost is below WAY_RAD / 2**HALVINGS."""

SLACK_M = 1e-6
"""Depth that counts as none, and change of a depth that counts as none [m]: distances of shapes are iterated."""

POSITION = "position"
"""Cause of a clamp: the tool would leave its workspace."""


class Bound(Protocol):
    """A bound of the joint configuration."""

    def depths_m(self, joints: Vector) -> Vector:
        """Return by how much a configuration (J,) [rad] breaks each condition [m], (C,); 0 or less if it does not."""
        ...

    def cause(self, which: int) -> str:
        """Return the cause of a clamp by a condition, by its index."""
        ...


class ToolBox:
    """The bound that keeps the tool in its workspace."""

    def __init__(self, model: ArmModel, low: Vector, high: Vector, joints: Sequence[str]) -> None:
        """
        Args:
            model: the arm's model.
            low: (3,) smallest position of the tool in the base frame [m].
            high: (3,) largest position of the tool [m].
            joints: (J,) names of the configuration's joints.
        """
        self._model, self._low, self._high = model, low, high
        self._at = [joints.index(name) for name in model.names]

    def depths_m(self, joints: Vector) -> Vector:
        position, _ = self._model.pose(joints[self._at])
        return np.append(self._low - position, position - self._high)

    def cause(self, which: int) -> str:
        return POSITION


def last_allowed(start: Vector, wanted: Vector, bounds: Sequence[Bound]) -> tuple[Vector, str]:
    """Return the last configuration on the straight way to `wanted` that breaks no bound.

    Args:
        start: (J,) configuration that was sent last [rad].
        wanted: (J,) configuration that is wanted now [rad].
        bounds: the bounds.

    Returns:
        (J,) joints [rad], and the cause of what cut the way; "" if nothing did.
    """
    cause = ""
    for bound in bounds:
        share, which = _allowed_share(start, wanted, bound)
        if which is not None:
            wanted, cause = start + share * (wanted - start), bound.cause(which)
    return wanted, cause


def _allowed_share(start: Vector, wanted: Vector, bound: Bound) -> tuple[float, int | None]:
    """Return which share of the way is allowed, 0 to 1, and the index of the condition that ends it."""
    way = wanted - start
    pieces = max(int(np.ceil(np.abs(way).max(initial=0.0) / WAY_RAD)), 1)
    if pieces == 1 and (bound.depths_m(wanted) <= SLACK_M).all():
        return 1.0, None
    before = bound.depths_m(start)
    allowed = np.where(before > SLACK_M, before, 0.0) + SLACK_M
    for piece in range(1, pieces + 1):
        depths = bound.depths_m(start + piece / pieces * way)
        if (depths > allowed).any():
            share = _halved(start, way, bound, allowed, (piece - 1) / pieces, piece / pieces)
            return share, int(np.argmax(depths - allowed))
    return 1.0, None


def _halved(start: Vector, way: Vector, bound: Bound, allowed: Vector, good: float, bad: float) -> float:
    """Return the largest share found that is allowed, between one that is and one that is not."""
    for _ in range(HALVINGS):
        middle = (good + bad) / 2
        if (bound.depths_m(start + middle * way) > allowed).any():
            bad = middle
        else:
            good = middle
    return good
