"""Converts joint positions between radians and the numbers of a driver or a dataset. It is the only place that does.

    unit         number                                        angle at 0          one unit
    degrees      90.0                                          zero                1 degree
    radians      1.571                                         zero                1 rad
    range        -100 to 100 over the joint's range            middle of the range a hundredth of half the range
    share        0 to 100 over the joint's range               lowest of the range a hundredth of the range

The last two are lerobot's normalised units, RANGE_M100_100 and RANGE_0_100. A gripper's opening is 0 closed to 1 open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Vector

JointUnit = Literal["degrees", "radians", "range", "share"]
JOINT_UNITS: tuple[JointUnit, ...] = get_args(JointUnit)


@dataclass(frozen=True)
class JointScale:
    """Conversion of one joint: angle [rad] = rad_per_unit * (number - zero).

    Attributes:
        rad_per_unit: radians for one unit of the number, negative if it counts the other way.
        zero: the number at the joint's zero.
    """

    rad_per_unit: float
    zero: float = 0.0

    def from_zero(self, zero_rad: float, inverted: bool = False) -> JointScale:
        """Return the scale of a joint whose zero is at an angle of this one, and which may turn the other way.

        Args:
            zero_rad: angle of this scale at the zero of the other joint [rad].
            inverted: whether the other joint turns the other way.
        """
        sign = -1.0 if inverted else 1.0
        return JointScale(sign * self.rad_per_unit, self.zero + zero_rad / self.rad_per_unit)


def scale_of(unit: JointUnit, low_rad: float | None = None, high_rad: float | None = None) -> JointScale:
    """Return the scale of a unit.

    Args:
        unit: one of JOINT_UNITS.
        low_rad: smallest angle of the joint's range [rad], for "range" and "share".
        high_rad: largest angle of the joint's range [rad].

    Raises:
        ContractError: the unit needs the range, which is missing or empty.
    """
    if unit == "degrees":
        return JointScale(math.radians(1.0))
    if unit == "radians":
        return JointScale(1.0)
    if low_rad is None or high_rad is None or not low_rad < high_rad:
        raise ContractError(f"the unit '{unit}' counts over a joint's range, which is {low_rad} to {high_rad} rad.")
    units, lowest = (200.0, -100.0) if unit == "range" else (100.0, 0.0)
    rad_per_unit = (high_rad - low_rad) / units
    return JointScale(rad_per_unit, lowest - low_rad / rad_per_unit)


@dataclass(frozen=True)
class JointScales:
    """Conversion of J joints at once.

    Attributes:
        rad_per_unit: (J,) radians for one unit of each number.
        zero: (J,) the numbers at the joints' zeros.
    """

    rad_per_unit: Vector
    zero: Vector

    @classmethod
    def of(cls, scales: Sequence[JointScale]) -> JointScales:
        return cls(np.array([s.rad_per_unit for s in scales]), np.array([s.zero for s in scales]))

    def to_rad(self, numbers: ArrayLike) -> Vector:
        """Return the angles (J,) [rad] of numbers (J,)."""
        return self.rad_per_unit * (np.asarray(numbers, dtype=np.float64) - self.zero)

    def from_rad(self, angles: ArrayLike) -> Vector:
        """Return the numbers (J,) of angles (J,) [rad]."""
        return np.asarray(angles, dtype=np.float64) / self.rad_per_unit + self.zero


def opening_of(number: float, closed: float, opened: float) -> float:
    """Return a gripper's opening, 0 closed to 1 open; not clipped.

    Args:
        number: the driver's number.
        closed: its number for a closed gripper.
        opened: its number for an open gripper, another one.
    """
    return (number - closed) / (opened - closed)
