"""Inverse kinematics of a tool: computes joint angles that bring a site of a MuJoCo model to a pose."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_robot.core.geometry import quat_from_matrix, rotvec_between
from vla_robot.core.messages import Vector

ITERATIONS = 4
"""Number of iterations. A control step moves the tool by centimetres, for which four leave an error far below 1 mm."""

DAMPING = 0.02
"""Damping [m/rad], which keeps joints slow near a singularity; a larger one is slower and less exact."""


class ToolIk:
    """A solver by damped least squares over the joints of one arm.

    Source: Y. Nakamura, H. Hanafusa, J. Dyn. Sys. Meas. Control 108 (1986).
    """

    def __init__(self, model: mujoco.MjModel, site: int, joints: list[int], radian_m: float = 1.0) -> None:
        """
        Args:
            model: the compiled model, which is only read.
            site: id of the site that is the tool.
            joints: ids of the arm's hinge and slide joints, in order.
            radian_m: weight of an error of 1 rad, as an error of position [m]. A small one makes an arm with fewer than
                six joints reach the position rather than the orientation.
        """
        self._model = model
        self._scratch = mujoco.MjData(model)
        self._site = site
        self._weights = np.array([1.0, 1.0, 1.0, radian_m, radian_m, radian_m])
        self._qpos = model.jnt_qposadr[joints]
        self._dofs = model.jnt_dofadr[joints]
        self._low, self._high = _ranges(model, joints)

    def solve(self, qpos: Vector, position: Vector, quat: Vector) -> Vector:
        """Return joint values within their ranges that bring the tool near to a pose.

        Args:
            qpos: (nq,) configuration of the whole model at which the search begins [rad] or [m].
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
        """Return the joints after one step, (J,). Joints at an end of their range stay there; the others compensate."""
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
        """Return the weighted pose error, (6,), and its Jacobian, (6, J), both in the world frame."""
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
