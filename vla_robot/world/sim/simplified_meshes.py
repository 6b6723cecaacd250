"""Draws meshes with fewer triangles: a renderer in software transforms each one, however small it is in the picture.

Vertices in one cell of a grid become one of them, and triangles that have no area left, or are there already, are left
out: vertex clustering, after Rossignac and Borrel, "Multi-resolution 3D approximations for rendering complex scenes"
(1993). Physics is not touched: the arrays are changed only while OpenGL gets them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELLS_ACROSS = 16
"""A mesh has at least so many cells along its longest side: a small thing keeps its shape."""

_BY_FACE = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord")
"""MuJoCo's (number of triangles, 3) arrays: vertices, normals and texture coordinates of each corner."""


@contextlib.contextmanager
def simplified_meshes(model: Any, cell_m: float) -> Iterator[None]:
    """During the block, a model's meshes have the triangles that are to be drawn.

    Args:
        model: MuJoCo's model; it is as before after the block.
        cell_m: edge of a cell [m]; 0 leaves the meshes whole.
    """
    if cell_m == 0:
        yield
        return
    before = {name: getattr(model, name).copy() for name in (*_BY_FACE, "mesh_facenum")}
    try:
        for mesh in range(model.nmesh):
            _simplify(model, mesh, cell_m)
        yield
    finally:
        for name, values in before.items():
            getattr(model, name)[:] = values


def _simplify(model: Any, mesh: int, cell_m: float) -> None:
    """Write a mesh's remaining triangles to the beginning of its part of the arrays."""
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
    faces = _merged(vertices, cell_m)[model.mesh_face[start : start + count]]
    kept = drawn(faces)
    end = start + len(kept)
    model.mesh_face[start:end] = faces[kept]
    for name in _BY_FACE[1:]:
        values = getattr(model, name)
        values[start:end] = values[start : start + count][kept]
    model.mesh_facenum[mesh] = len(kept)


def _merged(vertices: NDArray[np.float32], cell_m: float) -> NDArray[np.int64]:
    """Return, for each of (N, 3) vertices, (N,): the vertex that stands for all in its cell."""
    low = vertices.min(axis=0)
    extent = float((vertices.max(axis=0) - low).max())
    cells = np.floor((vertices - low) / max(min(cell_m, extent / CELLS_ACROSS), 1e-9)).astype(np.int64)
    _, first, cell_of = np.unique(cells @ _strides(cells), return_index=True, return_inverse=True)
    return first[cell_of]


def drawn(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of (N, 3) triangles have an area, one of each that have the same corners in the same turn."""
    a, b, c = faces.T
    solid = np.flatnonzero((a != b) & (b != c) & (c != a))
    turn = (faces[solid].argmin(axis=1)[:, None] + np.arange(3)) % 3  # the smallest first; the back stays another face
    corners = np.take_along_axis(faces[solid], turn, axis=1)
    _, first = np.unique(corners @ _strides(corners), return_index=True)
    return solid[np.sort(first)]


def _strides(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return factors by which (N, 3) whole numbers from 0 on become one number, another for each row."""
    size = int(rows.max(initial=0)) + 1  # of meshes with fewer than 2 million vertices and cells: below 2^63
    return np.array([size * size, size, 1])
