"""The embodiment of an arm with a parallel gripper that takes motions of its tool; shared by all such arms."""

from __future__ import annotations

import numpy as np

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import EnvRecipe

REACH_M = 1.5
MAX_OPENING_M = 0.1


def embodiment_of(
    recipe: EnvRecipe, name: str, reach_m: float = REACH_M, opening_m: float = MAX_OPENING_M
) -> Embodiment:
    """Return an embodiment of tool deltas and an absolute gripper; its state is the tool's pose and the opening [m].

    Args:
        recipe: the world's recipe.
        name: the arm's name.
        reach_m: largest distance of the tool from the base.
        opening_m: largest opening of the fingers.
    """
    translation = [Dim(n, "m", -recipe.max_step_m, recipe.max_step_m) for n in ("dx", "dy", "dz")]
    rotation = [Dim(n, "rad", -recipe.max_step_rad, recipe.max_step_rad) for n in ("droll", "dpitch", "dyaw")]
    position = [Dim(n, "m", -reach_m, reach_m) for n in ("x", "y", "z")]
    orientation = [Dim(n, "rad", -2 * np.pi, 2 * np.pi) for n in ("rx", "ry", "rz")]
    return Embodiment(
        name=name,
        action=ActionSpace("eef_delta", "base", (*translation, *rotation, Dim("gripper", "1", 0.0, 1.0))),
        state=(*position, *orientation, Dim("gripper_width", "m", 0.0, opening_m)),
        cameras=tuple(CameraSpec(c.name, c.height, c.width) for c in recipe.cameras),
        rate_hz=recipe.rate_hz,
    )


def check_action(action: Vector, space: ActionSpace) -> Vector:
    """Return a copy of the action, (D,) float64.

    Raises:
        ContractError: wrong shape, not finite, or outside the limits. A world does not clamp: the guard before it does.
    """
    values = np.array(action, dtype=np.float64)
    if values.shape != (len(space),):
        raise ContractError(f"action has shape {values.shape}, expected ({len(space)},): {', '.join(space.names)}.")
    if not np.isfinite(values).all():
        raise ContractError(f"action {values.tolist()} is not finite.")
    slack = 1e-6 * (space.high - space.low)
    outside = (values < space.low - slack) | (values > space.high + slack)
    if outside.any():
        dim = space.dims[int(np.argmax(outside))]
        value = values[int(np.argmax(outside))]
        raise ContractError(f"{dim.name} is {value:g} {dim.unit}, allowed is {dim.low:g} to {dim.high:g}.")
    return values
