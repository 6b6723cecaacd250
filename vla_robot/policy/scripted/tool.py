"""The rotation of the Panda's tool in scripted motions."""

from __future__ import annotations

import numpy as np

from vla_robot.core.geometry import matrix_from_rotvec, rotvec_from_matrix
from vla_robot.core.messages import Vector

TOOL_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""The Panda's tool pointing straight down with its fingers apart along the base's y axis."""


def turn_to(wanted: np.ndarray, tool_rot: Vector) -> Vector:
    """Return the (3,) rotation step [rad] in the base frame from the tool's axis-angle towards a (3, 3) rotation."""
    return np.clip(rotvec_from_matrix(wanted @ matrix_from_rotvec(tool_rot).T), -0.3, 0.3)
