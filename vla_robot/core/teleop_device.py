"""Mapping of a teleoperation device to an action: six axes, -1 to 1 of the largest allowed motion, and a gripper.

axes of the device x    y    z    roll   pitch   yaw
action             dx   dy   dz   droll  dpitch  dyaw  gripper
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_robot.core.embodiment import GRIPPER_CLOSED, GRIPPER_OPEN, ActionSpace
from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.messages import Vector

AXES: tuple[str, ...] = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
"""Action dimension of each axis."""


def require_drivable(space: ActionSpace) -> None:
    """Raise ContractError unless each dimension has an axis: the tool's motion, and the gripper last."""
    if space.kind != "eef_delta":
        raise ContractError(
            f"this arm takes actions of kind '{space.kind}', but the device moves the tool ('eef_delta'). "
            "Drive it through an environment whose actions move its tool."
        )
    for name in space.names[:-1]:
        if name not in AXES:
            raise ContractError(unknown("dimension of an action", name, AXES, "The device has no axis for it."))


def action_of(space: ActionSpace, axes: Sequence[float], closed: bool) -> Vector:
    """
    Args:
        space: action space of the arm.
        axes: one value for each of AXES, -1 to 1.
        closed: whether to close the gripper.

    Returns:
        (D,) in the units of the space, within its limits.
    """
    share = dict(zip(AXES, axes, strict=True))
    moves = [share[dim.name] * (dim.high if share[dim.name] > 0 else -dim.low) for dim in space.dims[:-1]]
    return np.array([*moves, GRIPPER_CLOSED if closed else GRIPPER_OPEN])


def is_closed(opening: float) -> bool:
    """Return whether a gripper is nearer to closed than to open."""
    return abs(opening - GRIPPER_CLOSED) < abs(opening - GRIPPER_OPEN)
