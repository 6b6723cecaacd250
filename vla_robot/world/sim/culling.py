"""Leaves out what a camera cannot see before a frame is drawn: a renderer in software transforms each triangle.

The picture is the same to the bit as long as nothing is drawn but the scene itself: a body out of sight may throw a
shadow or be reflected.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUT_OF_SIGHT = 5
"""MuJoCo's geom group that is not drawn unless it is asked for; this package never asks for it."""

MARGIN_M = 1e-4
"""Added to each distance [m], far above its rounding."""


@contextlib.contextmanager
def only_in_sight(model: Any, data: Any, camera: str, aspect: float) -> Iterator[None]:
    """During the block, geoms that a camera of the model cannot see are in the group OUT_OF_SIGHT.

    Args:
        model: MuJoCo's model.
        data: its state.
        camera: name of a camera with perspective and without a sensor size; of others everything stays.
        aspect: width of the frame over its height.
    """
    groups = model.geom_group.copy()
    model.geom_group[out_of_sight(model, data, model.camera(camera).id, aspect)] = OUT_OF_SIGHT
    try:
        yield
    finally:
        model.geom_group[:] = groups


def out_of_sight(model: Any, data: Any, camera: int, aspect: float) -> NDArray[np.bool_]:
    """Return, for each of the model's geoms, (ngeom,), whether its box lies outside one of the five sides of a view."""
    if model.cam_orthographic[camera] or model.cam_sensorsize[camera].any():
        return np.zeros(model.ngeom, dtype=np.bool_)
    turns = data.geom_xmat.reshape(-1, 3, 3)
    middles = data.geom_xpos + np.einsum("gij,gj->gi", turns, model.geom_aabb[:, :3]) - data.cam_xpos[camera]
    sides = _outwards(model.cam_fovy[camera], aspect) @ data.cam_xmat[camera].reshape(3, 3).T
    reach = np.einsum("gj,gjs->gs", model.geom_aabb[:, 3:], np.abs(np.einsum("gij,si->gjs", turns, sides)))
    outside = (middles @ sides.T > reach + MARGIN_M).any(axis=1)
    return outside & (model.geom_rbound > 0)  # planes have no bound


def _outwards(fovy_deg: float, aspect: float) -> NDArray[np.float64]:
    """Return (5, 3) directions out of a camera's pyramid, along its axes right, up and back; the last is behind it."""
    up = math.tan(math.radians(fovy_deg) / 2)
    right = aspect * up
    normals = np.array([[1, 0, right], [-1, 0, right], [0, 1, up], [0, -1, up], [0, 0, 1]])
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)
