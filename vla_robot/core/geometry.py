"""Rotations: makes, composes, compares and limits them, with numpy alone.

Conventions, everywhere in the package unless a name says otherwise:

    quaternion        (4,) w, x, y, z, of length 1; q and -q are the same rotation
    rotation vector   (3,) axis times angle [rad]
    matrix            (3, 3); its columns are the rotated frame's axes, so that v_base = R @ v_tool
    roll, pitch, yaw  (3,) [rad] about x, then y, then z, each about the fixed axes: R = Rz(yaw) @ Ry(pitch) @ Rx(roll)

A rotation "in the base frame" is multiplied from the left (turn * orientation), one about the body's own axes
from the right. Arguments are float64 and are not checked; callers check what comes from outside.

The maths follows MuJoCo's functions of the same purpose to the last bit (mju_mulQuat, mju_mat2Quat, mju_quat2Vel ...),
so that a simulated arm and one without MuJoCo get the same numbers. Three or four numbers are faster in Python's floats
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
"""The identity rotation."""
IDENTITY_QUAT.flags.writeable = False

_TINY = 1e-15
"""A length below it has no direction; a length within it of 1 counts as 1."""

_NO_AXIS = 1e-9
"""Sine of half the angle below which a rotation has no axis whose sign could be chosen."""

GIMBAL_MARGIN = 1e-6
"""Distance of the pitch's sine from 1 below which roll and yaw cannot be told apart."""


def quat_from_rotvec(rotvec: Vector) -> Vector:
    """Convert a (3,) rotation vector [rad] of any length to a (4,) quaternion."""
    angle = float(np.linalg.norm(rotvec))
    if angle == 0:
        return IDENTITY_QUAT.copy()
    x, y, z = rotvec.tolist()
    sine = math.sin(angle / 2)
    return np.array([math.cos(angle / 2), x / angle * sine, y / angle * sine, z / angle * sine])


def quat_from_matrix(matrix: Matrix) -> Vector:
    """Convert a (3, 3) or (9,) rotation matrix, row by row, to a (4,) quaternion.

    The largest of the four numbers is computed by the square root, so that no division by a small number occurs.
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
    """Convert a (4,) quaternion to a (3,) rotation vector [rad], angle in [0, pi]."""
    w, x, y, z = quat.tolist()
    sine = math.sqrt(x * x + y * y + z * z)
    if sine < _TINY:
        return np.zeros(3)
    angle = 2 * math.atan2(sine, w)
    if angle > math.pi:  # the opposite rotation is shorter
        angle -= 2 * math.pi
    inverse = 1 / sine
    return np.array([x * inverse * angle, y * inverse * angle, z * inverse * angle])


def half_space_rotvec(quat: Vector) -> Vector:
    """Convert a (4,) quaternion to a (3,) rotation vector [rad] with a positive largest component, angle in [0, 2 pi).

    A world's state has the tool's orientation in this form. A tool that points straight down is rotated by pi, where
    the axis' sign is arbitrary; restricting it to one half space keeps the state from flipping between frames.
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
    """Convert a (4,) quaternion to a (3, 3) rotation matrix."""
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
    """Convert a (3,) rotation vector [rad] to a (3, 3) rotation matrix. Source: Rodrigues' formula."""
    angle = float(np.linalg.norm(rotvec))
    if angle < _NO_AXIS:
        return np.eye(3)
    x, y, z = rotvec / angle
    K = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def rotvec_from_matrix(matrix: Matrix) -> Vector:
    """Convert a (3, 3) or (9,) rotation matrix, row by row, to a (3,) rotation vector [rad], angle in [0, pi]."""
    return rotvec_from_quat(quat_from_matrix(matrix))


def rpy_from_quats(quats: NDArray[Any]) -> NDArray[Any]:
    """Convert (T, 4) quaternions, float32 or float64, to (T, 3) roll, pitch and yaw [rad] of the same type.

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
    """Return the (4,) quaternion of rotation b followed by a, both about the fixed axes: R(a) @ R(b)."""
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
    """Return the (4,) quaternion of the opposite rotation."""
    return np.array([quat[0], -quat[1], -quat[2], -quat[3]])


def rotate(quat: Vector, turn: Vector) -> Vector:
    """Rotate a (4,) orientation by a (3,) rotation vector [rad] in the same frame as the orientation."""
    return _unit(multiply(quat_from_rotvec(turn), quat).tolist())


def rotvec_between(start: Vector, end: Vector) -> Vector:
    """Return the (3,) rotation vector [rad], angle in [0, pi], from one (4,) orientation to another, in their frame.

    `rotate(start, rotvec_between(start, end))` is `end`.
    """
    return rotvec_from_quat(multiply(end, conjugate(start)))


def limit_rotation(start: Vector, end: Vector, max_rad: float) -> Vector:
    """Return the (4,) orientation on the shortest way from `start` to `end`, at most `max_rad` [rad] from `start`."""
    turn = rotvec_between(start, end)
    angle = float(np.linalg.norm(turn))
    return end if angle <= max_rad else rotate(start, turn * (max_rad / angle))


def _unit(quat: Sequence[float]) -> Vector:
    """Scale a (4,) quaternion to length 1."""
    w, x, y, z = quat
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    scale = 1.0 if abs(norm - 1) <= _TINY else 1 / norm
    return np.array([w * scale, x * scale, y * scale, z * scale])
