"""Limits of actions, and the guard that clamps an action to its action space.

`RangeGuard` knows only the action space; the control loop calls it. `Limits` are the limits of position, speed and
acceleration that the filter on the robot's side (`filter.py`) keeps as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.embodiment import GRIP_UNIT, ActionSpace, Dim, Embodiment
from vla_robot.core.errors import ContractError, PolicyError, VlaError, unknown
from vla_robot.core.messages import Clamp, Vector, clamps_of
from vla_robot.recipe.limits import DimLimitsRecipe, LimitsRecipe, OnViolation

RANGE = "range"
"""Cause of a clamp: the value lay outside of its dimension's range in the action space."""


class RangeGuard:
    """A guard that clamps actions to an action space."""

    def __init__(self, space: ActionSpace) -> None:
        """
        Raises:
            ContractError: a limit of the space is not finite, or a lower limit is above the upper one.
        """
        for dim in space.dims:
            if not (np.isfinite([dim.low, dim.high]).all() and dim.low <= dim.high):
                raise ContractError(
                    f"limits of '{dim.name}' are {dim.low:g} to {dim.high:g} {dim.unit}; "
                    "they must be finite and in order."
                )
        self._space = space

    def check(self, action: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """Clamp an action to the action space.

        Args:
            action: (D,) in the units of the action space.

        Returns:
            (D,) float64 within the limits, and one clamp for each dimension that was changed.

        Raises:
            PolicyError: wrong shape, or a number that is not finite. Nothing may be sent.
        """
        wanted = require_action(action, self._space, PolicyError)
        allowed = np.clip(wanted, self._space.low, self._space.high)
        return allowed, clamps_of(self._space.names, RANGE, wanted, allowed)


def require_action(action: ArrayLike, space: ActionSpace, error: type[VlaError] = ContractError) -> Vector:
    """Return an action as (D,) float64. Raise `error` unless it has D numbers and all are finite."""
    try:
        given = np.asarray(action)
    except (TypeError, ValueError) as cause:
        raise error(f"an action is {len(space)} numbers ({', '.join(space.names)}): {cause}.") from cause
    # numpy would convert strings, dates and complex numbers; an action holds none of them.
    if given.dtype.kind not in "iuf":
        raise error(f"an action is {len(space)} numbers ({', '.join(space.names)}), got dtype {given.dtype}.")
    with np.errstate(over="ignore"):  # a long double that overflows becomes infinite, and is refused below
        values = given.astype(np.float64)
    if values.shape != (len(space),):
        raise error(
            f"an action has shape {values.shape}, but the arm takes {len(space)} numbers ({', '.join(space.names)})."
        )
    if not np.isfinite(values).all():
        bad = [f"{name} = {value}" for name, value in zip(space.names, values, strict=True) if not np.isfinite(value)]
        raise error(f"an action holds numbers that are not finite: {', '.join(bad)}. Nothing was sent to the arm.")
    return values


NO_LIMIT = 1e9
"""Stands for "not limited" in any unit; finite, so that sums and products with it are finite."""

_WORKSPACE_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Limits:
    """The limits that the safety filter keeps, one number for each dimension of the action, in its unit (m, rad, or 1).

    Attributes:
        low: (D,) smallest position: the tool's coordinate, the joint's angle or the gripper's opening.
        high: (D,) largest position.
        max_step: (D,) largest distance of a commanded position from the measured one, in the dimension's unit.
        max_speed: (D,) in the unit per second.
        max_acceleration: (D,) in the unit per second squared.
        on_violation: "clamp", "reject" or "stop".
    """

    low: Vector
    high: Vector
    max_step: Vector
    max_speed: Vector
    max_acceleration: Vector
    on_violation: OnViolation = "clamp"


def limits_of(embodiment: Embodiment, recipe: LimitsRecipe) -> Limits:
    """Return the limits of a recipe; the embodiment's ranges fill in what the recipe does not set.

    Raises:
        ContractError: the recipe names a dimension that the arm lacks, allows no position of a dimension, or limits a
            position that the arm does not measure.
    """
    space = embodiment.action
    for name in recipe.dims:
        if name not in space.names:
            raise ContractError(unknown("action dimension", name, space.names, "See [limits.dims] in the recipe."))
    rows = [_dim_limits(dim, embodiment, recipe, recipe.dims.get(dim.name, DimLimitsRecipe())) for dim in space.dims]
    columns = [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]
    return Limits(*columns, on_violation=recipe.on_violation)


def position_name(dim: Dim, space: ActionSpace) -> str:
    """Return the state's name of the position that an action dimension moves: "x" for "dx", "joint_1" for "joint_1"."""
    is_delta = space.kind == "eef_delta" and dim.unit != GRIP_UNIT
    return dim.name.removeprefix("d") if is_delta else dim.name


def _dim_limits(
    dim: Dim, embodiment: Embodiment, recipe: LimitsRecipe, own: DimLimitsRecipe
) -> tuple[float, float, float, float, float]:
    """Return low and high position, step, speed and acceleration of one dimension."""
    low, high = _position_range(dim, embodiment, recipe)
    low, high = _pick(own.low, low), _pick(own.high, high)
    if low > high:
        raise ContractError(
            f"the limits of '{dim.name}' allow no position: the lowest is {low:g} {dim.unit}, the highest {high:g}."
        )
    _require_measured(dim, low, high, embodiment)
    speed = {"m": recipe.max_speed_m_s, "rad": recipe.max_speed_rad_s, "1": recipe.gripper_per_s}.get(dim.unit)
    acceleration = {"m": recipe.max_acceleration_m_s2, "rad": recipe.max_acceleration_rad_s2}.get(dim.unit)
    is_joint = embodiment.action.kind == "joint_position" and dim.unit == "rad"
    step = recipe.max_joint_step_rad if is_joint else None
    return low, high, _pick(own.max_step, step), _pick(own.max_speed, speed), _pick(own.max_acceleration, acceleration)


def _position_range(dim: Dim, embodiment: Embodiment, recipe: LimitsRecipe) -> tuple[float, float]:
    """Return low and high position: the workspace's, else the state's, cut to the action's range if it is absolute."""
    name = position_name(dim, embodiment.action)
    state = next((d for d in embodiment.state if d.name == name), None)
    low, high = (state.low, state.high) if state else (-NO_LIMIT, NO_LIMIT)
    if name == dim.name:  # absolute: the action's values are positions
        low, high = max(low, dim.low), min(high, dim.high)
    if name in _WORKSPACE_AXES and embodiment.action.kind == "eef_delta":
        axis = _WORKSPACE_AXES.index(name)
        low = recipe.workspace_low[axis] if recipe.workspace_low else low
        high = recipe.workspace_high[axis] if recipe.workspace_high else high
    return low, high


def _require_measured(dim: Dim, low: float, high: float, embodiment: Embodiment) -> None:
    """Raise ContractError where the positions of a delta are limited but the arm does not measure them."""
    name, measured = position_name(dim, embodiment.action), [d.name for d in embodiment.state]
    if name != dim.name and name not in measured and (low > -NO_LIMIT or high < NO_LIMIT):
        raise ContractError(
            f"positions of '{name}' are limited to {low:g} to {high:g} {dim.unit}, but the arm does not measure it. "
            f"Its state has: {', '.join(measured) or 'nothing'}."
        )


def _pick(own: float | None, general: float | None) -> float:
    """Return the dimension's own limit, else the arm's, else NO_LIMIT."""
    return next((limit for limit in (own, general) if limit is not None), NO_LIMIT)
