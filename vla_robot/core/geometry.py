"""Rotations as unit quaternions (w, x, y, z), made from and turned into axis times angle [rad]. numpy alone."""

from __future__ import annotations

import numpy as np

from vla_robot.core.messages import Vector

_SMALL_RAD = 1e-8
"""Below it sin(a) = a to float64."""


def quat_of(rotvec: Vector) -> Vector:
    """(3,) axis times angle [rad] -> (4,) unit quaternion."""
    angle = float(np.linalg.norm(rotvec))
    scale = 0.5 if angle < _SMALL_RAD else np.sin(angle / 2) / angle
    return np.array([np.cos(angle / 2), *(scale * rotvec)])


def rotvec_of(quat: Vector) -> Vector:
    """(4,) unit quaternion -> (3,) axis times angle [rad], angle in [0, pi]."""
    quat = -quat if quat[0] < 0 else quat
    sine = float(np.linalg.norm(quat[1:]))
    angle = 2 * np.arctan2(sine, quat[0])
    return quat[1:] * (2.0 if angle < _SMALL_RAD else angle / sine)


def angle_between(a: Vector, b: Vector) -> float:
    """Angle of the rotation that leads from one unit quaternion to the other [rad], in [0, pi].

    By differences, not by the product's cosine, which is flat near 0 and loses half of the digits.
    """
    nearest = aligned(b, a)
    return 4 * float(np.arctan2(np.linalg.norm(nearest - a), np.linalg.norm(nearest + a)))


def aligned(quat: Vector, to: Vector) -> Vector:
    """The one of q and -q, which are the same rotation, that lies nearer to the other quaternion."""
    return -quat if quat @ to < 0 else quat


def slerp(start: Vector, end: Vector, share: float) -> Vector:
    """The rotation at a share of the shortest way from one to the other, at constant speed.

    Args:
        start: (4,) unit quaternion.
        end: (4,) unit quaternion.
        share: in [0, 1].
    """
    end = aligned(end, start)
    half = angle_between(start, end) / 2
    if half < _SMALL_RAD:
        mixed = start + share * (end - start)
    else:
        mixed = (np.sin((1 - share) * half) * start + np.sin(share * half) * end) / np.sin(half)
    return mixed / np.linalg.norm(mixed)
