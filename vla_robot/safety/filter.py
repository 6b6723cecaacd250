"""The last filter before the arm, on the robot's side: it knows where the arm is and how fast it was sent.

Each limit leaves an interval for each dimension of the action. The action is cut to them one after the other, from the
weakest to the one that is never broken:

    acceleration    from the step before:       last step - a dt^2 .. last step + a dt^2
    speed           per step:                   -v dt .. v dt
    position        to stop in time:            n steps, each a dt^2 shorter than the last, fit into the room left
    step            from the measured arm:      measured - s .. measured + s
    position        the box itself
    range           the action space

Intervals that have a common part are all kept: to cut to one of them cannot leave another that it overlaps. They always
have one while the arm goes where it is sent, thanks to the third. An arm that was pushed may leave no common part; then
the stronger limit is kept and the weaker one gives way. An arm outside of its box may stay or come back, and go no
further.

Actions are positions (joints, gripper) or steps from where the arm is measured (the tool), as the embodiment says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import Clamp, Vector
from vla_robot.safety.limits import NO_LIMIT, RANGE, Limits, position_name, require_action

ACCELERATION = "acceleration"
SPEED = "speed"
STEP = "step"
POSITION = "position"
CAUSES = (ACCELERATION, SPEED, POSITION, STEP, POSITION, RANGE)
"""Of clamps, in the order above: weakest first."""

SMALLEST_STEP = 1e-12
"""In the unit of a dimension. Below it, 64-bit numbers no longer tell a position from the next."""

Interval = tuple[float, float]
"""Smallest and largest allowed value."""


class LimitStopError(PolicyError):
    """An action broke a limit, and the recipe asks for a stop."""


class SafetyFilter:
    """Keeps a stream of actions inside the limits of one arm."""

    def __init__(self, embodiment: Embodiment, limits: Limits) -> None:
        """
        Args:
            embodiment: of the arm; its rate is the rate of the actions.
            limits: see `limits_of`.

        Raises:
            ContractError: a limit is not finite, or so small that every motion would be rounded to nothing.
        """
        self._embodiment = embodiment
        self._on_violation = limits.on_violation
        self._axes = [_axis(index, embodiment, limits) for index in range(len(embodiment.action))]

    def reset(self, state: ArrayLike) -> None:
        """The arm stands still where it is measured: an episode begins, or a hold ended.

        A position that is not measured, such as a gripper's opening, is unknown until the first command.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        values = self._require_state(state)
        for axis in self._axes:
            axis.rest(axis.measured(values))

    def check(self, action: ArrayLike, state: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """The action to be sent now; the next one will be measured against it.

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
        """As `check` with "clamp", but nothing is remembered. What it returned, it returns again unchanged."""
        allowed = require_action(action, self._embodiment.action, PolicyError)
        values = self._require_state(state)
        clamps: list[Clamp] = []
        for index, (axis, wanted) in enumerate(zip(self._axes, allowed.tolist(), strict=True)):
            value, cause = axis.cut(wanted, axis.measured(values))
            if value != wanted:
                clamps.append(Clamp(axis.name, cause, wanted, value))
                allowed[index] = value
        return allowed, tuple(clamps)

    def brake(self, state: ArrayLike) -> Vector:
        """The action of a supported stop: as much slower as the acceleration allows, until the arm stands and is held.

        The gripper keeps what it was told, whatever it holds; one that was never told gets its smallest value, closed.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        allowed, _ = self.limit([axis.slower() for axis in self._axes], state)
        self._remember(allowed)
        return allowed

    @property
    def moving(self) -> bool:
        """Whether the last action was one of motion; False once `brake` has brought the arm to a stand."""
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
    """One dimension of the action. Plain floats: for the few that an arm has, arrays cost twice as much.

    Attributes:
        name: of the dimension.
        is_delta: its values are steps from where the arm is measured; otherwise they are positions.
        state_index: where the state has its position; None when it is not measured.
        range: of the action space.
        box: of positions.
        max_step: furthest from the measured position, in the dimension's unit.
        max_step_speed: speed limit as the longest step, in the unit per control step.
        max_step_change: acceleration limit as the largest difference of two consecutive steps, in the unit per step.
        position: last one commanded, for positions.
        step: last one.
        is_known: `position` and `step` are those of the arm.
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
        """The arm stands here."""
        self.position, self.step = 0.0 if self.is_delta else position, 0.0
        self.is_known = self.is_delta or self.state_index is not None

    def cut(self, wanted: float, measured: float) -> tuple[float, str]:
        """The nearest allowed value, and the limit that had the last word on it."""
        allowed, last_cause = wanted, ""
        for cause, (low, high) in zip(CAUSES, self._intervals(measured), strict=True):
            if allowed < low:
                allowed, last_cause = low, cause
            elif allowed > high:
                allowed, last_cause = high, cause
        return allowed, last_cause

    def slower(self) -> float:
        """The value that shortens the last step by as much as is allowed."""
        step = math.copysign(max(abs(self.step) - self.max_step_change, 0.0), self.step)
        return step if self.is_delta else self.position + step

    def remember(self, sent: float) -> None:
        """This was sent to the arm."""
        step = sent if self.is_delta else sent - self.position
        self.step = step if self.is_known else 0.0
        self.position = 0.0 if self.is_delta else sent
        self.is_known = True

    def _intervals(self, measured: float) -> tuple[Interval, ...]:
        """Allowed values by each of CAUSES."""
        still = 0.0 if self.is_delta else self.position  # the value of no motion
        offset = measured if self.is_delta else 0.0  # from a value to the position it leads to
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
        state_index=state.index(name) if name in state else None,
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
                f"the {name} of '{axis.name}' allows {value:g} a step at {rate_hz:g} Hz; {SMALLEST_STEP:g} is least."
            )
    ends = (*axis.range, *axis.box, *steps.values())
    if not all(math.isfinite(end) and abs(end) <= 2 * NO_LIMIT for end in ends):
        raise ContractError(f"limits of '{axis.name}' are not all finite: {', '.join(f'{end:g}' for end in ends)}.")


def _longest_step(room: float, change: float) -> float:
    """The longest step into a room that lets the steps after it, each shorter by `change`, end inside; none outside.

    With n steps the room is n d - change n (n - 1) / 2; n is the smallest for which the n-th step is not negative.
    """
    if room <= change:
        return max(room, 0.0)
    room = min(room, NO_LIMIT)
    steps = max(math.ceil((math.sqrt(1 + 8 * room / change) - 1) / 2), 1)
    # By rounding, n may be one off where both give the same; the room itself is never exceeded.
    return min(room / steps + change * (steps - 1) / 2, room)
