"""Sends many set points for each tick of the control clock, to motors that take positions at a higher rate.

    bridge --command, 30 a second--> arm --goal of the joints--> SetPoints --set point, 100 to 500 a second--> motors

The set points reach a goal over one tick of the control clock, with bounded speed, acceleration and jerk and a constant
delay (see `vla_robot.world.real.smooth`). Each set point is checked once more: it must be inside the joints' ranges,
and no further from the one before than the speed allows; a cut is reported as a clamp with the next tick. The bridge's
server sends the set points between its messages, in its only thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, Ticker
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Clamp, Observation, StepResult, Vector, clamps_of
from vla_robot.core.ports import Arm, Motors
from vla_robot.core.ports.wrapped_arm import WrappedArm
from vla_robot.world.real.smooth import MotionBounds, Smoother

SET_POINT = "set_point"
"""Cause of a clamp: the check of a set point cut it."""

TOLERANCE = 1e-6
"""Radians, or share of the gripper's range, below which two numbers are equal."""

BLOCKED_RAD = 0.06
"""Distance of a joint from its set point above which it counts as blocked: more than the arm's own weight causes."""


@dataclass(frozen=True)
class StreamBounds:
    """Bounds of set points.

    Attributes:
        joints: bounds of each joint's motion [rad/s], [rad/s2], [rad/s3].
        low: (J,) smallest angles [rad].
        high: (J,) largest angles [rad].
        opening_per_s: largest speed of the gripper, in full openings per second.
        names: (J + G,) names of the joints, then of the grippers, for clamps.
    """

    joints: MotionBounds
    low: Vector
    high: Vector
    opening_per_s: float
    names: tuple[str, ...]

    @property
    def opening(self) -> MotionBounds:
        """Bounds of the gripper's motion, which give the window of the joints, so that all arrive together."""
        share = self.opening_per_s / self.joints.speed
        return MotionBounds(self.opening_per_s, share * self.joints.acceleration, share * self.joints.jerk)


class SetPoints:
    """Motors that take goals and get set points. Before `start`, and after `stop`, goals pass through unchanged."""

    def __init__(
        self, motors: Motors, rate_hz: float, command_rate_hz: float, bounds: StreamBounds, clock: Clock
    ) -> None:
        """
        Args:
            motors: the motors that get the set points.
            rate_hz: rate of the control clock and so of the goals [Hz].
            command_rate_hz: rate of the set points [Hz].
            bounds: bounds of the set points.
            clock: paces the set points, at absolute deadlines.

        Raises:
            ContractError: the rate of set points is below that of goals.
        """
        if command_rate_hz < rate_hz:
            raise ContractError(f"{command_rate_hz:g} set points a second are too few for {rate_hz:g} goals a second.")
        self._motors, self._bounds, self._clock = motors, bounds, clock
        self._names = bounds.names
        self._rate_hz = command_rate_hz
        self._ticks = max(round(command_rate_hz / rate_hz), 1)
        self._smooth: tuple[Smoother, Smoother] | None = None
        self._cuts: list[Clamp] = []

    @property
    def delay_s(self) -> float:
        """Delay of the set points behind the goals [s]."""
        return Smoother(self._bounds.low, self._rate_hz, self._bounds.joints).delay_s

    @property
    def next_ns(self) -> int:
        """Time at which the next set point is due [ns], on the clock."""
        return self._due_ns if self._smooth else self._clock.now_ns() + NS_PER_S

    def start(self, joints: Vector, openings: Vector) -> None:
        """Begin to send set points, from a position at which the motors are at rest.

        Args:
            joints: (J,) joint angles [rad].
            openings: (G,) openings of the grippers, 0 closed to 1 open.
        """
        self._last = np.append(joints, openings)
        self._smooth = (
            Smoother(joints, self._rate_hz, self._bounds.joints),
            Smoother(openings, self._rate_hz, self._bounds.opening),
        )
        self._ticker = Ticker(self._clock, round(NS_PER_S / self._rate_hz))
        self._due_ns = self._ticker.next_ns()

    def read(self) -> tuple[Vector, Vector]:
        return self._motors.read()

    def send(self, joints: Vector, openings: Vector) -> tuple[Vector, Vector]:
        """Take a goal. Return it clipped to the ranges, as the set points will reach it one delay later."""
        if self._smooth is None:
            return self._motors.send(joints, openings)
        goal = np.clip(joints, self._bounds.low, self._bounds.high)
        held = np.clip(openings, 0.0, 1.0)
        self._smooth[0].target(goal, self._ticks)
        self._smooth[1].target(held, self._ticks)
        return goal, held

    def send_next(self) -> None:
        """Send the set point that is due. Periods that the caller missed are skipped, so that the arm does not jump.

        Raises:
            WorldError: the motors do not accept it.
        """
        assert self._smooth is not None
        self._put(np.concatenate([smoother.tick() for smoother in self._smooth]))

    def _put(self, wanted: Vector) -> None:
        allowed = self._allowed(wanted)
        self._cuts += clamps_of(self._names, SET_POINT, wanted, allowed, TOLERANCE)
        joints = len(self._bounds.low)
        self._motors.send(allowed[:joints], allowed[joints:])
        self._last = allowed
        self._due_ns = self._ticker.next_ns()

    def take_cuts(self) -> tuple[Clamp, ...]:
        """Return the clamps of set points since the last call."""
        cuts, self._cuts = tuple(self._cuts), []
        return cuts

    def stop(self) -> bool:
        """Ramp down to rest within the bounds, at the rate of the set points, and hold the last one.

        Returns:
            Whether the motors took all set points and are at the last one; False where `start` was not called.
        """
        smooth, self._smooth = self._smooth, None
        if smooth is None:
            return False
        try:
            for position in self._ramp(*smooth):
                self._clock.sleep_until_ns(min(self._due_ns, self._clock.now_ns() + self._ticker.period_ns))
                self._put(position)
            joints, _ = self._motors.read()
        except WorldError:
            return False
        return bool(np.abs(joints - self._last[: len(joints)]).max() < BLOCKED_RAD)

    def _ramp(self, *smoothers: Smoother) -> Iterator[Vector]:
        """Yield the set points of the ramp, which lasts as long as the window."""
        for smoother in smoothers:
            smoother.stop()
        for _ in range(round(2 * self.delay_s * self._rate_hz) + 2):
            yield np.concatenate([smoother.tick() for smoother in smoothers])

    def _allowed(self, wanted: Vector) -> Vector:
        """Return the set point clipped to the ranges, and to the longest step from the last one."""
        joints, grippers = len(self._bounds.low), len(wanted) - len(self._bounds.low)
        speeds = np.repeat([self._bounds.joints.speed, self._bounds.opening_per_s], [joints, grippers])
        step = speeds / self._rate_hz
        near = np.clip(wanted, self._last - step, self._last + step)
        low, high = np.append(self._bounds.low, np.zeros(grippers)), np.append(self._bounds.high, np.ones(grippers))
        return np.clip(near, low, high)


class StreamedArm(WrappedArm):
    """The port Arm for an arm whose motors are `SetPoints`, with the set points between its commands."""

    def __init__(self, arm: Arm, set_points: SetPoints) -> None:
        super().__init__(arm)
        self._set_points = set_points

    @property
    def can_wait(self) -> bool:
        return False

    @property
    def next_set_point_ns(self) -> int:
        return self._set_points.next_ns

    def send_set_point(self) -> None:
        self._set_points.send_next()

    def reset(self, seed: int) -> Observation:
        self._set_points.stop()
        observation = self._arm.reset(seed)
        self._set_points.start(*self._set_points.read())
        return observation

    def command(self, action: Vector) -> StepResult:
        return self._with_cuts(self._arm.command(action))

    def hold(self) -> StepResult:
        return self._with_cuts(self._arm.hold())

    def _with_cuts(self, result: StepResult) -> StepResult:
        """Return the result with the clamps of the set points since the last tick added."""
        return replace(result, clamps=(*result.clamps, *self._set_points.take_cuts()))

    def look(self) -> Observation:
        return self._arm.look()

    def stop(self) -> None:
        """Ramp down and hold the last set point; an arm that is not there, or does not answer, stops its own way."""
        is_there = False
        try:
            is_there = self._set_points.stop()
        finally:
            if not is_there:
                self._arm.stop()

    def close(self) -> None:
        try:
            self._set_points.stop()
        finally:
            self._arm.close()
