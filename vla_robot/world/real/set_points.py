"""Many set points for each tick of the control clock, for motors that follow positions at a rate of their own.

    bridge --command, 30 a second--> arm --goal of the joints--> SetPoints --set point, 100 to 500 a second--> motors

A goal is reached over one tick of the control clock, with speed, acceleration and jerk bounded, and a constant delay
later (see `vla_robot.world.real.smooth`). Each set point is checked once more: inside of the joints' ranges, and no
further from the one before than the speed allows; what that cuts is told as a clamp with the next tick. The bridge's
server sends them between its messages, in its only thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vla_robot.core.clock import NS_PER_S, Clock, Ticker
from vla_robot.core.errors import ContractError, WorldError
from vla_robot.core.messages import Clamp, Observation, StepResult, Vector, clamps_of
from vla_robot.core.ports import Arm, Motors
from vla_robot.core.wrapped_arm import WrappedArm
from vla_robot.world.real.smooth import MotionBounds, Smoother

SET_POINT = "set_point"
"""Cause of a clamp: the check of a set point cut it."""

TOLERANCE = 1e-6
"""Radians, or of the gripper's way, below which two numbers are one."""

BLOCKED_RAD = 0.06
"""Further from its set point than its own weight pulls an arm of plastic: something is in the way."""


@dataclass(frozen=True)
class StreamBounds:
    """What set points keep.

    Attributes:
        joints: of each joint, in radians.
        low: (J,) smallest angles [rad].
        high: (J,) largest angles [rad].
        opening_per_s: of the gripper's way, in one second.
        names: (J,) of the joints, for clamps.
    """

    joints: MotionBounds
    low: Vector
    high: Vector
    opening_per_s: float
    names: tuple[str, ...] = ()

    @property
    def opening(self) -> MotionBounds:
        """The gripper's: as long a window as the joints', so that all arrive together."""
        share = self.opening_per_s / self.joints.speed
        return MotionBounds(self.opening_per_s, share * self.joints.acceleration, share * self.joints.jerk)


class SetPoints:
    """Motors that are told goals and get set points. Until `start`, and after `stop`, goals go through as they are."""

    def __init__(
        self, motors: Motors, rate_hz: float, command_rate_hz: float, bounds: StreamBounds, clock: Clock
    ) -> None:
        """
        Args:
            motors: what is told.
            rate_hz: of the control clock: of the goals.
            command_rate_hz: of the set points.
            bounds: kept by them.
            clock: paces them, at absolute deadlines.

        Raises:
            ContractError: fewer set points than goals.
        """
        if command_rate_hz < rate_hz:
            raise ContractError(f"{command_rate_hz:g} set points a second are too few for {rate_hz:g} goals a second.")
        self._motors, self._bounds, self._clock = motors, bounds, clock
        self._names = (*(bounds.names or [f"joint_{k + 1}" for k in range(len(bounds.low))]), "gripper")
        self._rate_hz = command_rate_hz
        self._ticks = max(round(command_rate_hz / rate_hz), 1)
        self._smooth: tuple[Smoother, Smoother] | None = None
        self._cuts: list[Clamp] = []

    @property
    def delay_s(self) -> float:
        """How far the set points are behind the goals."""
        return Smoother(self._bounds.low, self._rate_hz, self._bounds.joints).delay_s

    @property
    def next_ns(self) -> int:
        """When the next set point is due."""
        return self._due_ns if self._smooth else self._clock.now_ns() + NS_PER_S

    def start(self, joints: Vector, opening: float) -> None:
        """From here on goals are reached by set points. The motors hold this position."""
        self._last = np.append(joints, opening)
        self._smooth = (
            Smoother(joints, self._rate_hz, self._bounds.joints),
            Smoother([opening], self._rate_hz, self._bounds.opening),
        )
        self._ticker = Ticker(self._clock, round(NS_PER_S / self._rate_hz))
        self._due_ns = self._ticker.next_ns()

    def read(self) -> tuple[Vector, float]:
        return self._motors.read()

    def send(self, joints: Vector, opening: float) -> tuple[Vector, float]:
        """Take a goal; what it is as the motors will get it, one delay later."""
        if self._smooth is None:
            return self._motors.send(joints, opening)
        goal = np.clip(joints, self._bounds.low, self._bounds.high)
        held = min(max(opening, 0.0), 1.0)
        self._smooth[0].target(goal, self._ticks)
        self._smooth[1].target([held], self._ticks)
        return goal, held

    def send_next(self) -> None:
        """The set point that is due. Periods that the caller missed are left out: the arm waits, and never hops.

        Raises:
            WorldError: the motors do not take it.
        """
        assert self._smooth is not None
        self._put(np.concatenate([smoother.tick() for smoother in self._smooth]))

    def _put(self, wanted: Vector) -> None:
        allowed = self._allowed(wanted)
        self._cuts += clamps_of(self._names, SET_POINT, wanted, allowed, TOLERANCE)
        self._motors.send(allowed[:-1], float(allowed[-1]))
        self._last = allowed
        self._due_ns = self._ticker.next_ns()

    def take_cuts(self) -> tuple[Clamp, ...]:
        """Set points that were cut since this was asked last."""
        cuts, self._cuts = tuple(self._cuts), []
        return cuts

    def stop(self) -> bool:
        """Come to a stand within the bounds, at the pace of the set points, and keep the last one.

        Returns:
            Whether the motors took it all, and stand there; False too where no set points were sent.
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
        return bool(np.abs(joints - self._last[:-1]).max() < BLOCKED_RAD)

    def _ramp(self, *smoothers: Smoother) -> Iterator[Vector]:
        """Set points until the path's end is reached: the window's length later."""
        for smoother in smoothers:
            smoother.stop()
        for _ in range(round(2 * self.delay_s * self._rate_hz) + 2):
            yield np.concatenate([smoother.tick() for smoother in smoothers])

    def _allowed(self, wanted: Vector) -> Vector:
        """The set point inside of the ranges, and as near to the last as the speed asks."""
        speeds = np.append(np.full(len(wanted) - 1, self._bounds.joints.speed), self._bounds.opening_per_s)
        step = speeds / self._rate_hz
        near = np.clip(wanted, self._last - step, self._last + step)
        return np.clip(near, np.append(self._bounds.low, 0.0), np.append(self._bounds.high, 1.0))


class StreamedArm(WrappedArm):
    """The Arm port of an arm whose motors are `SetPoints`: it tells the arm's goals, and sends what lies between."""

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
        """Beside the clamps of the goal, those of the set points since the last tick."""
        return replace(result, clamps=(*result.clamps, *self._set_points.take_cuts()))

    def look(self) -> Observation:
        return self._arm.look()

    def stop(self) -> None:
        """The last set point is the pose that is held; an arm that is not there, or not reached, stops by itself."""
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
