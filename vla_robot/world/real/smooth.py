"""Turns targets at the policy's rate, such as 10 Hz, into commands at 100 to 500 Hz with bounded jerk.

    target    ________+        +________
                      |  path  /          speed limited, straight from target to target
                      |       /
    command   ________.....--'~           the path's mean over a window: acceleration and jerk limited

The window is a box of n1 ticks after a box of n2 ticks. With v the path's greatest speed and dt one tick:

    n1 dt >= 2 v / a    a mean of speeds changes by 2 v / (n1 dt) at most      acceleration <= a
    n2 dt >= 2 a / j    a mean of accelerations changes by 2 a / (n2 dt)       jerk <= j

Commands are weighted means of the path's positions: they cannot overshoot, they are exactly on target after the window
has passed, and all dimensions stay on one straight line, as they share one window. They have a constant delay of half
the window: (n1 + n2) dt / 2, 40 ms for 0.5 m/s, 13 m/s2 and 6500 m/s3. A time-optimal generator is faster from rest to
rest; this one needs no solver, takes one product a tick, and its bounds follow from the two lines above.

Source of the window: L. Biagiotti, C. Melchiorri, "FIR filters for online trajectory planning with time- and
frequency-domain specifications", Control Engineering Practice 20 (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Vector


@dataclass(frozen=True)
class MotionBounds:
    """Bounds of a motion in each dimension, in the unit of its position.

    Attributes:
        speed: largest speed, per second.
        acceleration: largest acceleration, per second squared.
        jerk: largest jerk, per second cubed.
    """

    speed: float
    acceleration: float
    jerk: float

    def __post_init__(self) -> None:
        values = np.array([self.speed, self.acceleration, self.jerk])
        if not (np.isfinite(values) & (values > 0)).all():
            raise ContractError(f"bounds of a motion must be above 0 and finite, got {self}.")


class Smoother:
    """A generator of commands for positions along straight lines: a tool's coordinates, joints, a gripper."""

    def __init__(self, start: ArrayLike, rate_hz: float, bounds: MotionBounds) -> None:
        """
        Args:
            start: (D,) position of the arm at rest.
            rate_hz: rate of the commands.
            bounds: bounds in each dimension.
        """
        position = np.array(start, dtype=np.float64)
        self._max_step = bounds.speed / rate_hz
        self._window = _Window(position, rate_hz, bounds)
        self._path = self._target = position
        self._ticks_left = 1

    @property
    def delay_s(self) -> float:
        """Delay of the commands behind the path [s]."""
        return self._window.delay_s

    def target(self, position: ArrayLike, ticks: int) -> None:
        """Set a target (D,) for the path to reach in `ticks` commands, or later where the speed does not allow it.

        Raises:
            ContractError: wrong shape, a number that is not finite, or fewer than 1 tick.
        """
        values = np.array(position, dtype=np.float64)
        if values.shape != self._path.shape or not np.isfinite(values).all():
            raise ContractError(f"a target must be {self._path.shape} finite numbers, got {values.tolist()}.")
        if ticks < 1:
            raise ContractError(f"a target must be at least 1 command away, got {ticks}.")
        self._target, self._ticks_left = values, ticks

    def stop(self) -> None:
        """Come to rest as fast as the bounds allow."""
        self._target = self._path

    def tick(self) -> Vector:
        """Return the next command, (D,)."""
        way = self._target - self._path
        step = way / self._ticks_left
        fastest = float(np.abs(step).max(initial=0.0))
        if fastest > self._max_step:
            self._path = self._path + step * (self._max_step / fastest)
        else:
            self._path = self._target if self._ticks_left == 1 else self._path + step
        self._ticks_left = max(self._ticks_left - 1, 1)
        return self._window.mean_with(self._path)


class _Window:
    """A weighted mean of the newest positions of a path."""

    def __init__(self, start: Vector, rate_hz: float, bounds: MotionBounds) -> None:
        n1 = _box_ticks(bounds.speed, bounds.acceleration, rate_hz)
        n2 = _box_ticks(bounds.acceleration, bounds.jerk, rate_hz)
        self._weights = np.convolve(np.full(n1, 1 / n1), np.full(n2, 1 / n2))
        self._history: NDArray[np.float64] = np.tile(start, (len(self._weights), 1))
        self.delay_s = (len(self._weights) - 1) / 2 / rate_hz

    def mean_with(self, newest: Vector) -> Vector:
        """Add a position and return the mean, (D,); for a path at rest it is exactly that position."""
        self._history[:-1] = self._history[1:]
        self._history[-1] = newest
        # The mean is taken of distances to the newest, so that rounding does not move an arm at rest far from 0.
        return newest + self._weights @ (self._history - newest)


def _box_ticks(value: float, slope: float, rate_hz: float) -> int:
    """Return the ticks of a box whose mean of values within +- `value` changes by at most `slope` per second."""
    return max(1, int(np.ceil(2 * value / slope * rate_hz)))
