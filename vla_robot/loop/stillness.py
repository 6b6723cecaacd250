"""How long an arm had stood still when an episode ended: a policy that stalls looks at the same picture for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vla_robot.core.embodiment import Dim
from vla_robot.core.messages import Vector

STALL_S = 2.0
"""Time [s] from which a failed episode that ended with an arm at rest counts as stalled."""

REST: Mapping[str, float] = {"m": 0.005, "rad": 0.02}
"""Unit -> largest difference between two positions of an arm at rest, in the unit."""

REST_SHARE = 0.02
"""The same for numbers of other units, such as a gripper's opening, as a share of their range."""


def steps_at_rest(states: Sequence[Vector], dims: Sequence[Dim]) -> int:
    """Return in how many of the last states the arm stayed where it was at the end.

    Args:
        states: (P,) state after each step, in order.
        dims: the P dimensions. Of a tool pose only position and gripper count, since the numbers of a rotation may
            jump where it does not; velocities never count.
    """
    units = {dim.unit for dim in dims}
    places = {unit for unit in units if not unit.endswith("/s") and not (unit == "rad" and "m" in units)}
    counted = [number for number, dim in enumerate(dims) if dim.unit in places and math.isfinite(_rest(dim))]
    if not states or not counted:
        return 0
    last_first = np.array(states)[::-1, counted]
    span = np.maximum.accumulate(last_first) - np.minimum.accumulate(last_first)
    moved = (span > [_rest(dims[number]) for number in counted]).any(axis=1)
    return int(moved.argmax()) if moved.any() else len(states)


def _rest(dim: Dim) -> float:
    return REST.get(dim.unit, REST_SHARE * (dim.high - dim.low))
