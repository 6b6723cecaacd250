"""Success tests by name, for MuJoCo scenes: pure functions of the positions of objects.

lifted   the body is more than `threshold` [m] above its start
near     the centres are at most `threshold` [m] apart
on_top   the body rests on the other, the centres at most `threshold` [m] apart sideways
inside   the body's centre is within the other's box and at least `threshold` [m] below its rim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_robot.core.messages import Vector

RESTING_GAP_M = 0.01
"""Two bodies touch when the bottom of one is this close to the top of the other; contacts are soft and boxes coarse."""


@dataclass(frozen=True)
class Placed:
    """The present place of one object, in the world frame.

    Attributes:
        centre: (3,) middle of its bounding box [m].
        half_size: (3,) half edges of its bounding box along the world's axes [m].
        start: (3,) centre at the start of the episode [m].
    """

    centre: Vector
    half_size: Vector
    start: Vector

    @property
    def bottom(self) -> float:
        """Height of the lowest point of the bounding box [m]."""
        return float(self.centre[2] - self.half_size[2])

    @property
    def top(self) -> float:
        """Height of the highest point of the bounding box [m]."""
        return float(self.centre[2] + self.half_size[2])


SuccessTest = Callable[[Placed, Placed, float], bool]
"""(body, other, threshold [m]) -> whether the test holds now."""


def lifted(body: Placed, other: Placed, threshold: float) -> bool:
    """Return whether the body is more than `threshold` above its start; `other` is not used."""
    return bool(body.centre[2] - body.start[2] > threshold)


def near(body: Placed, other: Placed, threshold: float) -> bool:
    """Return whether the centres are at most `threshold` apart."""
    return bool(np.linalg.norm(body.centre - other.centre) <= threshold)


def on_top(body: Placed, other: Placed, threshold: float) -> bool:
    """Return whether the body rests on the other, their centres at most `threshold` apart sideways."""
    sideways = float(np.linalg.norm(body.centre[:2] - other.centre[:2]))
    return sideways <= threshold and abs(body.bottom - other.top) <= RESTING_GAP_M


def inside(body: Placed, other: Placed, threshold: float) -> bool:
    """Return whether the body's centre is within the other's bounding box, at least `threshold` below its rim."""
    within = bool((np.abs(body.centre - other.centre)[:2] <= other.half_size[:2]).all())
    return within and other.bottom <= float(body.centre[2]) <= other.top - threshold


TESTS: dict[str, SuccessTest] = {"lifted": lifted, "near": near, "on_top": on_top, "inside": inside}
"""Every test that `[success] test = "..."` of a recipe may name."""
