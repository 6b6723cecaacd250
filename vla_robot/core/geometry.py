"""Rotations: the one place that makes, composes, compares and limits them. numpy alone.

Conventions, everywhere in the package unless a name says otherwise:

    quaternion        (4,) w, x, y, z, of length 1; q and -q are the same rotation
    rotation vector   (3,) axis times angle [rad]
    matrix            (3, 3); its columns are the turned frame's axes, so that v_base = R @ v_tool
    roll, pitch, yaw  (3,) [rad] about x, then y, then z, each about the fixed axes: R = Rz(yaw) @ Ry(pitch) @ Rx(roll)

A turn given "in the base frame" goes to the left of an orientation (turn * orientation), one about the body's own axes
to the right. Arguments are float64 and are not checked: they are numbers of our own or were checked where they came in.

The maths follows MuJoCo's functions of the same purpose to the last bit (mju_mulQuat, mju_mat2Quat, mju_quat2Vel ...),
so a simulated arm and one without MuJoCo are told the same. Three or four numbers are quicker in Python's own floats
than as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.messages import Vector

Matrix = NDArray[np.float64]

IDENTITY_QUAT = np.array([1.0, 0.0, 0.0, 0.0])
"""No turn."""
IDENTITY_QUAT.flags.writeable = False

_TINY = 1e-15
"""A length below it has no direction; one that is off by less than it is 1."""

_NO_AXIS = 1e-9
"""A sine of half the angle below it counts as no turn, where the sign of the axis is about to be chosen."""

GIMBAL_MARGIN = 1e-6
"""Nearer than this to a sine of 1, the pitch hides the difference between roll and yaw."""


def quat_from_rotvec(rotvec: Vector) -> Vector:
    """(3,) rotation vector [rad] of any length -> (4,) quaternion."""
    angle = float(np.linalg.norm(rotvec))
    if angle == 0:
        return IDENTITY_QUAT.copy()
    x, y, z = rotvec.tolist()
    sine = math.sin(angle / 2)
    return np.array([math.cos(angle / 2), x / angle * sine, y / angle * sine, z / angle * sine])


def quat_from_matrix(matrix: Matrix) -> Vector:
    """(3, 3) or (9,) rotation matrix, row by row -> (4,) quaternion.

    The largest of the four numbers is the one that comes from a root, so that it is never divided by a small one.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = matrix.ravel().tolist()
    if r00 + r11 + r22 > 0:
        w = 0.5 * math.sqrt(1 + r00 + r11 + r22)
        return _unit([w, 0.25 * (r21 - r12) / w, 0.25 * (r02 - r20) / w, 0.25 * (r10 - r01) / w])
    if r00 > r11 and r00 > r22:
        x = 0.5 * math.sqrt(1 + r00 - r11 - r22)
        return _unit([0.25 * (r21 - r12) / x, x, 0.25 * (r01 + r10) / x, 0.25 * (r02 + r20) / x])
    if r11 > r22:
        y = 0.5 * math.sqrt(1 - r00 + r11 - r22)
        return _unit([0.25 * (r02 - r20) / y, 0.25 * (r01 + r10) / y, y, 0.25 * (r12 + r21) / y])
    z = 0.5 * math.sqrt(1 - r00 - r11 + r22)
    return _unit([0.25 * (r10 - r01) / z, 0.25 * (r02 + r20) / z, 0.25 * (r12 + r21) / z, z])


def rotvec_from_quat(quat: Vector) -> Vector:
    """(4,) quaternion -> (3,) rotation vector [rad], angle in [0, pi]."""
    w, x, y, z = quat.tolist()
    sine = math.sqrt(x * x + y * y + z * z)
    if sine < _TINY:
        return np.zeros(3)
    angle = 2 * math.atan2(sine, w)
    if angle > math.pi:  # the other way round is shorter
        angle -= 2 * math.pi
    inverse = 1 / sine
    return np.array([x * inverse * angle, y * inverse * angle, z * inverse * angle])


def half_space_rotvec(quat: Vector) -> Vector:
    """(4,) quaternion -> (3,) rotation vector [rad] whose largest component is positive, angle in [0, 2 pi).

    This is how a world's state tells the tool's orientation. A tool that points straight down is turned by pi, where
    the axis' sign is arbitrary; with one half space for it, the state does not flip from frame to frame.
    """
    sine = float(np.linalg.norm(quat[1:]))
    if sine < _NO_AXIS:
        return np.zeros(3)
    axis = quat[1:] / sine
    angle = 2 * np.arctan2(sine, quat[0])
    if axis[np.argmax(np.abs(axis))] < 0:  # q and -q are one rotation
        axis, angle = -axis, 2 * np.pi - angle
    return axis * angle


def matrix_from_quat(quat: Vector) -> Matrix:
    """(4,) quaternion -> (3, 3) rotation matrix."""
    w, x, y, z = quat.tolist()
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    return np.array(
        [
            [ww + xx - yy - zz, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), ww - xx + yy - zz, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), ww - xx - yy + zz],
        ]
    )


def matrix_from_rotvec(rotvec: Vector) -> Matrix:
    """(3,) rotation vector [rad] -> (3, 3) rotation matrix. Source: Rodrigues' formula."""
    angle = float(np.linalg.norm(rotvec))
    if angle < _NO_AXIS:
        return np.eye(3)
    x, y, z = rotvec / angle
    K = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def rotvec_from_matrix(matrix: Matrix) -> Vector:
    """(3, 3) or (9,) rotation matrix, row by row -> (3,) rotation vector [rad], angle in [0, pi]."""
    return rotvec_from_quat(quat_from_matrix(matrix))


def rpy_from_quats(quats: NDArray[Any]) -> NDArray[Any]:
    """(T, 4) quaternions, float32 or float64 -> (T, 3) roll, pitch and yaw [rad] of the same type.

    Pitch is in [-pi/2, pi/2]. At its ends roll and yaw turn about the same axis, and yaw is taken as 0 (GIMBAL_MARGIN).

    Source: tensorflow/graphics, geometry/transformation/euler.py.
    """
    w, x, y, z = quats.T
    r00, r01, r02 = 1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)
    r10, r20, r21, r22 = 2 * (x * y + z * w), 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)
    r20 = np.clip(r20, -1, 1)
    general = np.stack([np.arctan2(r21, r22), -np.arcsin(r20), np.arctan2(r10, r00)], axis=1)
    sign = np.where(r20 < 0, -1, 1)
    locked = np.stack([np.arctan2(-sign * r01, -sign * r02), -sign * np.pi / 2, np.zeros_like(x)], axis=1)
    is_locked = np.abs(np.abs(r20) - 1) < GIMBAL_MARGIN
    return np.where(is_locked[:, None], locked, general).astype(quats.dtype)


def multiply(a: Vector, b: Vector) -> Vector:
    """(4,) quaternion of the rotation b followed by a, both about the fixed axes: R(a) @ R(b)."""
    aw, ax, ay, az = a.tolist()
    bw, bx, by, bz = b.tolist()
    return np.array(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ]
    )


def conjugate(quat: Vector) -> Vector:
    """(4,) quaternion of the opposite rotation."""
    return np.array([quat[0], -quat[1], -quat[2], -quat[3]])


def rotate(quat: Vector, turn: Vector) -> Vector:
    """(4,) orientation after a (3,) rotation vector [rad] that is given in the same frame as the orientation."""
    return _unit(multiply(quat_from_rotvec(turn), quat).tolist())


def rotvec_between(start: Vector, end: Vector) -> Vector:
    """(3,) rotation vector [rad], angle in [0, pi], from one (4,) orientation to another, in the frame of both.

    `rotate(start, rotvec_between(start, end))` is `end`.
    """
    return rotvec_from_quat(multiply(end, conjugate(start)))


def limit_rotation(start: Vector, end: Vector, max_rad: float) -> Vector:
    """(4,) the orientation on the shortest way from one to the other, at most `max_rad` from the first."""
    turn = rotvec_between(start, end)
    angle = float(np.linalg.norm(turn))
    return end if angle <= max_rad else rotate(start, turn * (max_rad / angle))


def _unit(quat: Sequence[float]) -> Vector:
    """(4,) the same direction at length 1."""
    w, x, y, z = quat
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    scale = 1.0 if abs(norm - 1) <= _TINY else 1 / norm
    return np.array([w * scale, x * scale, y * scale, z * scale])
