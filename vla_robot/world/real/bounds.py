"""Cuts the way from one joint configuration to the next where a bound of the whole configuration ends it.

    start ------------------|- - - - - - wanted         start, and all on the way up to the last allowed one, are inside
                      last allowed

A bound tells by how much a configuration breaks it, in metres. A configuration that breaks it already, since the arm
was pushed or began there, may stay or come back, but not go further out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_robot.core.messages import Vector
from vla_robot.world.real.arm_model import ArmModel

WAY_RAD = 0.02
"""Distance of two configurations that are tested on the way, in the joint that turns furthest."""

HALVINGS = 6
"""Halvings of the last piece of the way; what is lost is below WAY_RAD / 2**HALVINGS."""

SLACK_M = 1e-9
"""Depth that counts as none [m]."""


class Bound(Protocol):
    """A bound of the joint configuration."""

    @property
    def cause(self) -> str:
        """Cause of its clamps."""
        ...

    def depth_m(self, joints: Vector) -> float:
        """Return by how much a configuration (J,) [rad] breaks the bound [m]; 0 or less if it does not."""
        ...


class ToolBox:
    """The bound that keeps the tool in its workspace."""

    cause = "position"

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

    def depth_m(self, joints: Vector) -> float:
        position, _ = self._model.pose(joints[self._at])
        return float(np.maximum(self._low - position, position - self._high).max())


def last_allowed(start: Vector, wanted: Vector, bounds: Sequence[Bound]) -> tuple[Vector, str]:
    """Return the last configuration on the straight way to `wanted` that breaks no bound.

    Args:
        start: (J,) configuration that was sent last [rad].
        wanted: (J,) configuration that is wanted now [rad].
        bounds: the bounds.

    Returns:
        (J,) joints [rad], and the cause of the bound that cut the way; "" if none did.
    """
    cause = ""
    for bound in bounds:
        share = _allowed_share(start, wanted, bound)
        if share < 1:
            wanted, cause = start + share * (wanted - start), bound.cause
    return wanted, cause


def _allowed_share(start: Vector, wanted: Vector, bound: Bound) -> float:
    """Return which share of the way is allowed, 0 to 1."""
    way = wanted - start
    pieces = max(int(np.ceil(np.abs(way).max(initial=0.0) / WAY_RAD)), 1)
    if pieces == 1 and bound.depth_m(wanted) <= SLACK_M:
        return 1.0
    allowed_m = max(bound.depth_m(start), 0.0) + SLACK_M
    for piece in range(1, pieces + 1):
        if bound.depth_m(start + piece / pieces * way) > allowed_m:
            return _halved(start, way, bound, allowed_m, (piece - 1) / pieces, piece / pieces)
    return 1.0


def _halved(start: Vector, way: Vector, bound: Bound, allowed_m: float, good: float, bad: float) -> float:
    """Return the largest share found that is allowed, between one that is and one that is not."""
    for _ in range(HALVINGS):
        middle = (good + bad) / 2
        if bound.depth_m(start + middle * way) > allowed_m:
            bad = middle
        else:
            good = middle
    return good
