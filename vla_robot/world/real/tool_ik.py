"""Inverse kinematics of a tool: joint angles that bring a site of a MuJoCo model to a pose."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_robot.core.geometry import quat_from_matrix, rotvec_between
from vla_robot.core.messages import Vector

ITERATIONS = 4
"""A control step moves the tool by centimetres, for which four steps leave an error far below a millimetre."""

DAMPING = 0.02
"""Keeps joints slow near a singularity, in m per rad; larger is calmer and less exact."""


class ToolIk:
    """Damped least squares over the joints of one arm.

    Source: Y. Nakamura, H. Hanafusa, J. Dyn. Sys. Meas. Control 108 (1986).
    """

    def __init__(self, model: mujoco.MjModel, site: int, joints: list[int], radian_m: float = 1.0) -> None:
        """
        Args:
            model: read only.
            site: id of the site that is the tool.
            joints: ids of the arm's hinge and slide joints, in order.
            radian_m: how many metres of error one radian weighs, where not both can be had: an arm with less than six
                joints should go where it is sent rather than point there.
        """
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._site = site
        self._weights = np.array([1.0, 1.0, 1.0, radian_m, radian_m, radian_m])
        self._qpos = model.jnt_qposadr[joints]
        self._dofs = model.jnt_dofadr[joints]
        self._low, self._high = _ranges(model, joints)

    def solve(self, qpos: Vector, position: Vector, quat: Vector) -> Vector:
        """Joint values within their ranges that bring the tool as near to the pose as they can.

        Args:
            qpos: (nq,) where the whole model is now, [rad] or [m]; the search begins there.
            position: (3,) wanted position of the tool in the world frame [m].
            quat: (4,) wanted orientation in the world frame, w first.

        Returns:
            (J,) joint targets, [rad] or [m].
        """
        self._scratch.qpos[:] = qpos
        for _ in range(ITERATIONS):
            error, jacobian = self._linearise(position, quat)
            self._scratch.qpos[self._qpos] = self._moved(self._scratch.qpos[self._qpos], error, jacobian)
        return self._scratch.qpos[self._qpos].copy()

    def _moved(self, joints: Vector, error: Vector, jacobian: np.ndarray) -> Vector:
        """(J,) one step. Joints that would leave their range stay at its end, and the others make up for it."""
        free = np.ones(len(joints), dtype=bool)
        while True:
            open_jacobian = jacobian * free
            gram = open_jacobian @ open_jacobian.T + DAMPING**2 * np.eye(6)
            moved = joints + open_jacobian.T @ np.linalg.solve(gram, error)
            stuck = free & ((moved < self._low) | (moved > self._high))
            if not stuck.any():
                return moved
            ends = np.clip(moved, self._low, self._high)
            error = error - jacobian[:, stuck] @ (ends - joints)[stuck]
            joints = np.where(stuck, ends, joints)
            free &= ~stuck

    def _linearise(self, position: Vector, quat: Vector) -> tuple[Vector, np.ndarray]:
        """(6,) pose error, its angles weighed, and the (6, J) Jacobian of that, both in the world frame."""
        data = self._scratch
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        jacobian = np.zeros((6, self._model.nv))
        mujoco.mj_jacSite(self._model, data, jacobian[:3], jacobian[3:], self._site)
        error = np.empty(6)
        error[:3] = position - data.site_xpos[self._site]
        error[3:] = rotvec_between(quat_from_matrix(data.site_xmat[self._site]), quat)
        return self._weights * error, self._weights[:, None] * jacobian[:, self._dofs]


def _ranges(model: mujoco.MjModel, joints: list[int]) -> tuple[Vector, Vector]:
    limited = model.jnt_limited[joints].astype(bool)
    low = np.where(limited, model.jnt_range[joints, 0], -np.inf)
    high = np.where(limited, model.jnt_range[joints, 1], np.inf)
    return low, high
