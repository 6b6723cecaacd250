"""Cuts each action to the limits of position, speed and acceleration, on the robot's side, just before the arm.

Each limit allows an interval for each dimension of the action. The filter cuts the action to one interval after the
other, from the weakest limit to the one that is never broken:

    acceleration    from the last step:         last step - a dt^2 .. last step + a dt^2
    speed           per step:                   -v dt .. v dt
    position        to stop in time:            n steps, each a dt^2 shorter than the last, end inside of the box
    step            from the measured arm:      measured - s .. measured + s
    position        the box itself
    range           the action space

When all intervals overlap, the action ends inside all of them: a cut to one cannot leave another that overlaps it. The
third interval makes sure that they overlap while the arm goes where it is sent. After the arm was pushed they may not
overlap; then the stronger limit is kept and the weaker one is broken. An arm outside of its box may stay or come back,
but not go further out.

Actions are positions (joints, gripper) or steps from the measured position (tool), as the embodiment says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.embodiment import GRIP_UNIT, Embodiment
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import Clamp, Vector
from vla_robot.safety.limits import NO_LIMIT, RANGE, Limits, position_name, require_action

ACCELERATION = "acceleration"
SPEED = "speed"
STEP = "step"
POSITION = "position"
CAUSES = (ACCELERATION, SPEED, POSITION, STEP, POSITION, RANGE)
"""Causes of clamps, in the order above: weakest first."""

SMALLEST_STEP = 1e-12
"""Smallest limit on a step, in the dimension's unit. Below it, 64-bit numbers do not resolve the change of position."""

SAME = 1e-6
"""Difference of two positions that counts as none, in the dimension's unit: drivers round."""

Interval = tuple[float, float]
"""Smallest and largest allowed value."""


class LimitStopError(PolicyError):
    """An action broke a limit, and the recipe's `on_violation` is "stop"."""


class SafetyFilter:
    """A filter that keeps consecutive actions inside the limits of one arm."""

    def __init__(self, embodiment: Embodiment, limits: Limits) -> None:
        """
        Args:
            embodiment: the arm's; its rate is the rate of the actions.
            limits: see `limits_of`.

        Raises:
            ContractError: a limit is not finite, or so small that every motion would be rounded to nothing.
        """
        self._embodiment = embodiment
        self._on_violation = limits.on_violation
        self._axes = [_axis(index, embodiment, limits) for index in range(len(embodiment.action))]

    def reset(self, state: ArrayLike) -> None:
        """Take the measured state as a state of rest: an episode begins, or a hold has ended.

        A position that is not measured, such as a gripper's opening, is unknown until the first command.

        Args:
            state: (S,) measured state of the arm.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        values = self._require_state(state)
        for axis in self._axes:
            axis.rest(axis.measured(values))

    def check(self, action: ArrayLike, state: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """Return the action to send now, and remember it as the last one for the limits on speed and acceleration.

        Args:
            action: (D,) in the units of the action space.
            state: (S,) the newest state of the arm.

        Returns:
            (D,) float64 within all limits, and one clamp for each dimension that was changed.

        Raises:
            PolicyError: wrong shape or type, a number that is not finite, or a broken limit where the recipe says
                "reject". Nothing may be sent.
            LimitStopError: a broken limit where the recipe says "stop". Nothing may be sent, and the arm must stop.
        """
        allowed, clamps = self.limit(action, state)
        if clamps and self._on_violation != "clamp":
            raise self._refusal(clamps)
        self._remember(allowed)
        return allowed, clamps

    def limit(self, action: ArrayLike, state: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """Return what `check` returns with "clamp", without remembering it. It returns its own result unchanged."""
        allowed = require_action(action, self._embodiment.action, PolicyError)
        values = self._require_state(state)
        clamps: list[Clamp] = []
        for index, (axis, wanted) in enumerate(zip(self._axes, allowed.tolist(), strict=True)):
            value, cause = axis.cut(wanted, axis.measured(values))
            if value != wanted:
                clamps.append(Clamp(axis.name, cause, wanted, value))
                allowed[index] = value
        return allowed, tuple(clamps)

    def note(self, executed: ArrayLike) -> None:
        """Take what the arm was really sent as the last command: the arm itself may have cut the allowed one.

        Only positions are taken: of a tool's motion, inverse kinematics executes a little less or more.

        Args:
            executed: (D,) the action that was sent to the arm.
        """
        for axis, value in zip(self._axes, np.asarray(executed, dtype=np.float64).tolist(), strict=True):
            axis.correct(value)

    def brake(self, state: ArrayLike) -> Vector:
        """Return the action that slows the arm down by its acceleration limit; at rest, the action that holds it.

        The gripper keeps its last command. One that got no command and is not measured is sent 0 (closed).

        Args:
            state: (S,) newest measured state of the arm.

        Returns:
            (D,) float64 within all limits.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        allowed, _ = self.limit([axis.slower() for axis in self._axes], state)
        self._remember(allowed)
        return allowed

    @property
    def moving(self) -> bool:
        """Whether the last action moved the arm; False once `brake` has brought it to rest."""
        return any(axis.step for axis in self._axes)

    def _require_state(self, state: ArrayLike) -> list[float]:
        values = np.asarray(state, dtype=np.float64)
        dims = self._embodiment.state
        if values.shape != (len(dims),):
            raise PolicyError(f"no action can be judged: the state has shape {values.shape}, expected ({len(dims)},).")
        if not np.isfinite(values).all():
            bad = [dim.name for dim, value in zip(dims, values, strict=True) if not np.isfinite(value)]
            raise PolicyError(f"no action can be judged: the state is not finite in {', '.join(bad)}.")
        return values.tolist()

    def _remember(self, sent: Vector) -> None:
        for axis, value in zip(self._axes, sent.tolist(), strict=True):
            axis.remember(value)

    def _refusal(self, clamps: tuple[Clamp, ...]) -> PolicyError:
        broken = "; ".join(
            f"{c.dim} = {c.wanted:g} breaks its {c.cause} limit, {c.allowed:g} is allowed" for c in clamps
        )
        if self._on_violation == "stop":
            return LimitStopError(f"{broken}. The arm stops until it is armed again.")
        return PolicyError(f"{broken}. Nothing was sent to the arm.")


@dataclass
class _Axis:
    """One dimension of the action, as plain floats: for so few dimensions, arrays take twice as long.

    Attributes:
        name: the dimension's name.
        is_delta: whether its values are steps from the measured position; otherwise they are positions.
        state_index: index of its position in the state; None when it is not measured.
        range: smallest and largest value of the action space.
        box: smallest and largest position.
        max_step: largest distance from the measured position, in the dimension's unit.
        max_step_speed: speed limit as the longest step, in the unit per control step.
        max_step_change: acceleration limit as the largest difference of two consecutive steps, in the unit per step.
        position: last commanded position; 0 for deltas.
        step: last commanded step, in the unit.
        is_known: whether `position` and `step` are those of the arm.
    """

    name: str
    is_delta: bool
    state_index: int | None
    range: Interval
    box: Interval
    max_step: float
    max_step_speed: float
    max_step_change: float
    position: float = 0.0
    step: float = 0.0
    is_known: bool = False

    def measured(self, state: list[float]) -> float:
        if self.state_index is None:
            return self.position
        return min(max(state[self.state_index], -NO_LIMIT), NO_LIMIT)

    def rest(self, position: float) -> None:
        """Take this position as the one at which the arm rests."""
        self.position, self.step = 0.0 if self.is_delta else position, 0.0
        self.is_known = self.is_delta or self.state_index is not None

    def cut(self, wanted: float, measured: float) -> tuple[float, str]:
        """Return the allowed value, and the cause of the last cut; "" when there was none."""
        allowed, last_cause = wanted, ""
        for cause, (low, high) in zip(CAUSES, self._intervals(measured), strict=True):
            if allowed < low:
                allowed, last_cause = low, cause
            elif allowed > high:
                allowed, last_cause = high, cause
        return allowed, last_cause

    def slower(self) -> float:
        """Return the value whose step is shorter than the last one by `max_step_change`, down to no motion."""
        step = math.copysign(max(abs(self.step) - self.max_step_change, 0.0), self.step)
        return step if self.is_delta else self.position + step

    def remember(self, sent: float) -> None:
        """Remember a value that was sent to the arm."""
        step = sent if self.is_delta else sent - self.position
        self.step = step if self.is_known else 0.0
        self.position = 0.0 if self.is_delta else sent
        self.is_known = True

    def correct(self, sent: float) -> None:
        """Replace the last remembered position by the one that was sent."""
        if not self.is_delta and abs(sent - self.position) > SAME:
            before, self.position = self.position - self.step, sent
            self.step = sent - before if self.is_known else 0.0

    def _intervals(self, measured: float) -> tuple[Interval, ...]:
        """Return the allowed interval of each of CAUSES."""
        still = 0.0 if self.is_delta else self.position  # the value for no motion
        offset = measured if self.is_delta else 0.0  # position = value + offset
        here, ahead = measured - offset, still + self.step
        low, high = self.box[0] - offset, self.box[1] - offset
        speed, change = (self.max_step_speed, self.max_step_change) if self.is_known else (NO_LIMIT, NO_LIMIT)
        return (
            (ahead - change, ahead + change),
            (still - speed, still + speed),
            (still - _longest_step(still - low, change), still + _longest_step(high - still, change)),
            (here - self.max_step, here + self.max_step),
            (min(low, still), max(high, still)),
            self.range,
        )


def _axis(index: int, embodiment: Embodiment, limits: Limits) -> _Axis:
    dim, period_s = embodiment.action.dims[index], 1 / embodiment.rate_hz
    name, state = position_name(dim, embodiment.action), [d.name for d in embodiment.state]
    axis = _Axis(
        name=dim.name,
        is_delta=name != dim.name,
        # A gripper that holds an object is measured away from its command: its last command is its position.
        state_index=state.index(name) if name in state and dim.unit != GRIP_UNIT else None,
        range=(dim.low, dim.high),
        box=(float(limits.low[index]), float(limits.high[index])),
        max_step=float(limits.max_step[index]),
        max_step_speed=min(float(limits.max_speed[index]) * period_s, NO_LIMIT),
        max_step_change=min(float(limits.max_acceleration[index]) * period_s**2, NO_LIMIT),
    )
    _require_usable(axis, embodiment.rate_hz)
    axis.rest(0.0)
    return axis


def _require_usable(axis: _Axis, rate_hz: float) -> None:
    """Raise ContractError unless all sums and quotients of the filter stay finite."""
    steps = {"max_step": axis.max_step, "max_speed": axis.max_step_speed, "max_acceleration": axis.max_step_change}
    for name, value in steps.items():
        if not value >= SMALLEST_STEP:
            raise ContractError(
                f"the {name} of '{axis.name}' allows {value:g} per step at {rate_hz:g} Hz; it must allow at least "
                f"{SMALLEST_STEP:g}."
            )
    ends = (*axis.range, *axis.box, *steps.values())
    if not all(math.isfinite(end) and abs(end) <= 2 * NO_LIMIT for end in ends):
        raise ContractError(f"limits of '{axis.name}' are not all finite: {', '.join(f'{end:g}' for end in ends)}.")


def _longest_step(room: float, change: float) -> float:
    """Return the longest step d from which steps that shorten by `change` end within `room`; 0 if `room` is negative.

    n steps cover n d - change n (n - 1) / 2 = room; n is the smallest for which the n-th step is not negative.
    """
    if room <= change:
        return max(room, 0.0)
    room = min(room, NO_LIMIT)
    steps = max(math.ceil((math.sqrt(1 + 8 * room / change) - 1) / 2), 1)
    # Rounding may make n one too large or too small, where both give the same d; `room` is never exceeded.
    return min(room / steps + change * (steps - 1) / 2, room)
