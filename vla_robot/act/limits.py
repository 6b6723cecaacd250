"""What may reach the arm. The guard says what it changed and why, and never makes up an action of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vla_robot.core.embodiment import ActionSpace
from vla_robot.core.errors import ContractError, PolicyError, VlaError
from vla_robot.core.messages import Clamp, Vector

RANGE = "range"
"""Cause of a clamp: the value lay outside of its dimension's limits."""


class Guard:
    """Keeps actions inside an action space."""

    def __init__(self, space: ActionSpace) -> None:
        """
        Raises:
            ContractError: the space's own limits are no limits.
        """
        for dim in space.dims:
            if not (np.isfinite([dim.low, dim.high]).all() and dim.low <= dim.high):
                raise ContractError(f"limits of '{dim.name}' are {dim.low:g} to {dim.high:g} {dim.unit}.")
        self._space = space

    def check(self, action: ArrayLike) -> tuple[Vector, tuple[Clamp, ...]]:
        """The action that may be sent, and every limit that changed it.

        Args:
            action: (D,) in the units of the action space.

        Returns:
            (D,) float64 within the limits, and one clamp for each dimension that differs from what was wanted.

        Raises:
            PolicyError: wrong shape, or a number that is not finite. Nothing may be sent.
        """
        wanted = require_action(action, self._space, PolicyError)
        allowed = np.clip(wanted, self._space.low, self._space.high)
        pairs = zip(self._space.names, wanted.tolist(), allowed.tolist(), strict=True)
        return allowed, tuple(Clamp(name, RANGE, w, a) for name, w, a in pairs if w != a)


def require_action(action: ArrayLike, space: ActionSpace, error: type[VlaError] = ContractError) -> Vector:
    """(D,) float64 of finite numbers; `error` is raised for anything else."""
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise error(f"an action is {len(space)} numbers ({', '.join(space.names)}): {cause}.") from cause
    if values.shape != (len(space),):
        raise error(
            f"an action has shape {values.shape}, but the arm takes {len(space)} numbers ({', '.join(space.names)})."
        )
    bad = [f"{name} = {value}" for name, value in zip(space.names, values, strict=True) if not np.isfinite(value)]
    if bad:
        raise error(f"an action holds numbers that are not finite: {', '.join(bad)}. Nothing was sent to the arm.")
    return values
