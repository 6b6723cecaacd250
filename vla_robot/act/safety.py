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

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.act.limits import NO_LIMIT, RANGE, Limits, position_name, require_action
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import Clamp, Vector

ACCELERATION = "acceleration"
SPEED = "speed"
STEP = "step"
POSITION = "position"
CAUSES = (ACCELERATION, SPEED, POSITION, STEP, POSITION, RANGE)
"""Of clamps, in the order above: weakest first."""

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Lowest and highest allowed action for each of CAUSES, (6, D)."""


class LimitStopError(PolicyError):
    """An action broke a limit, and the recipe asks for a stop."""


class SafetyFilter:
    """Keeps a stream of actions inside the limits of one arm."""

    def __init__(self, embodiment: Embodiment, limits: Limits) -> None:
        """
        Args:
            embodiment: of the arm; its rate is the rate of the actions.
            limits: see `limits_of`.
        """
        space, period_s = embodiment.action, 1 / embodiment.rate_hz
        self._embodiment, self._limits = embodiment, limits
        self._names, self._low, self._high = space.names, space.low, space.high
        self._max_speed = np.minimum(limits.max_speed * period_s, NO_LIMIT)
        self._max_change = np.minimum(limits.max_acceleration * period_s**2, NO_LIMIT)
        names = [position_name(dim, space) for dim in space.dims]
        state_names = [dim.name for dim in embodiment.state]
        self._is_delta = np.array([name != dim.name for name, dim in zip(names, space.dims, strict=True)])
        self._measured_dims = np.array([name in state_names for name in names])
        self._state_index = np.array([state_names.index(n) if n in state_names else 0 for n in names])
        self._last_position = np.zeros(len(space))
        self._last_step = np.zeros(len(space))
        self._start_rated = self._rated = self._measured_dims | self._is_delta
        self._all_rated = bool(self._rated.all())

    def reset(self, state: ArrayLike) -> None:
        """The arm stands still where it is measured: an episode begins, or a hold ended.

        A position that nobody measures, such as a gripper's opening, is unknown until the first command.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        self._last_position = self._measured(state)
        self._last_step = np.zeros(len(self._last_position))
        self._rated, self._all_rated = self._start_rated, bool(self._start_rated.all())

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
        if clamps and self._limits.on_violation != "clamp":
            raise self._refusal(clamps)
        self._remember(allowed)
        return allowed, clamps

    def limit(self, action: ArrayLike, state: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """As `check` with "clamp", but nothing is remembered. What it returned, it returns again unchanged."""
        wanted = require_action(action, self._embodiment.action, PolicyError)
        lows, highs = self._bounds(self._measured(state))
        if ((wanted >= lows) & (wanted <= highs)).all():
            return wanted, ()
        allowed, causes = wanted, np.zeros(len(wanted), dtype=np.int64)
        for cause, (low, high) in enumerate(zip(lows, highs, strict=True)):
            cut = np.minimum(np.maximum(allowed, low), high)
            causes[cut != allowed] = cause
            allowed = cut
        changes = zip(self._names, causes.tolist(), wanted.tolist(), allowed.tolist(), strict=True)
        return allowed, tuple(Clamp(name, CAUSES[cause], w, a) for name, cause, w, a in changes if w != a)

    def brake(self, state: ArrayLike) -> Vector:
        """The action of a supported stop: as much slower as the acceleration allows, until the arm stands and is held.

        The gripper keeps what it was told, whatever it holds. A gripper that was never told opens nothing: it gets
        its smallest value, closed.

        Raises:
            PolicyError: the state has the wrong shape or is not finite.
        """
        slower = np.sign(self._last_step) * np.maximum(np.abs(self._last_step) - self._max_change, 0)
        allowed, _ = self.limit(np.where(self._is_delta, slower, self._last_position + slower), state)
        self._remember(allowed)
        return allowed

    @property
    def moving(self) -> bool:
        """Whether the last action was one of motion; False once `brake` has brought the arm to a stand."""
        return bool(self._last_step.any())

    def _bounds(self, measured: Vector) -> Bounds:
        origin = np.where(self._is_delta, 0.0, self._last_position)  # what an action of no motion is
        ahead = origin + self._last_step
        offset = np.where(self._is_delta, measured, 0.0)  # from an action to the position it leads to
        here = measured - offset
        low, high = self._limits.low - offset, self._limits.high - offset
        change = self._max_change if self._all_rated else np.where(self._rated, self._max_change, NO_LIMIT)
        speed = self._max_speed if self._all_rated else np.where(self._rated, self._max_speed, NO_LIMIT)
        to_low, to_high = _longest_step(np.maximum([origin - low, high - origin], 0.0), change)
        lows, highs = np.empty((2, len(CAUSES), len(origin)))
        lows[0], highs[0] = ahead - change, ahead + change
        lows[1], highs[1] = origin - speed, origin + speed
        lows[2], highs[2] = origin - to_low, origin + to_high
        lows[3], highs[3] = here - self._limits.max_step, here + self._limits.max_step
        lows[4], highs[4] = np.minimum(low, origin), np.maximum(high, origin)
        lows[5], highs[5] = self._low, self._high
        return lows, highs

    def _measured(self, state: ArrayLike) -> Vector:
        """(D,) position of what each dimension moves; the last command's for what nobody measures."""
        values = np.asarray(state, dtype=np.float64)
        dims = self._embodiment.state
        if values.shape != (len(dims),):
            raise PolicyError(f"no action can be judged: the state has shape {values.shape}, expected ({len(dims)},).")
        if not np.isfinite(values).all():
            bad = [dim.name for dim, value in zip(dims, values, strict=True) if not np.isfinite(value)]
            raise PolicyError(f"no action can be judged: the state is not finite in {', '.join(bad)}.")
        measured = np.minimum(np.maximum(values[self._state_index], -NO_LIMIT), NO_LIMIT)
        return np.where(self._measured_dims, measured, self._last_position)

    def _remember(self, sent: Vector) -> None:
        step = np.where(self._is_delta, sent, sent - self._last_position)
        self._last_step = step if self._all_rated else np.where(self._rated, step, 0.0)
        self._last_position = np.where(self._is_delta, 0.0, sent)
        self._all_rated = True

    def _refusal(self, clamps: tuple[Clamp, ...]) -> PolicyError:
        broken = "; ".join(
            f"{c.dim} = {c.wanted:g} breaks its {c.cause} limit, {c.allowed:g} is allowed" for c in clamps
        )
        if self._limits.on_violation == "stop":
            return LimitStopError(f"{broken}. The arm stops until it is armed again.")
        return PolicyError(f"{broken}. Nothing was sent to the arm.")


def _longest_step(room: NDArray[np.float64], change: Vector) -> NDArray[np.float64]:
    """The longest step into a room, (2, D), that lets the steps after it, each shorter by `change`, end inside.

    With n steps the room is n d - change n (n - 1) / 2; n is the smallest for which the n-th step is not negative.
    """
    room = np.minimum(room, NO_LIMIT)
    steps = np.maximum(np.ceil((np.sqrt(1 + 8 * room / change) - 1) / 2), 1.0)
    # By rounding, n may be one off where both give the same; the room itself is never exceeded.
    return np.minimum(room / steps + change * (steps - 1) / 2, room)
