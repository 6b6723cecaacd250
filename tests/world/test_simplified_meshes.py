"""Meshes are drawn with fewer triangles: the picture hardly changes, and the model not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env_source import find_env
from vla_robot.recipe.scene import CameraRecipe
from vla_robot.world.sim.render import Renderer, start_mujoco
from vla_robot.world.sim.simplified_meshes import drawn, simplified_meshes

mujoco: Any = pytest.importorskip("mujoco")

RINGS, SPOKES = 40, 60


def ball(radius_m: float) -> str:
    """A mesh of a ball: 4,560 triangles."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, RINGS), np.linspace(0, 2 * np.pi, SPOKES, endpoint=False))
    vertices = radius_m * np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    ring = np.arange(SPOKES * RINGS).reshape(SPOKES, RINGS)
    here, next_ring = ring[:, :-1], np.roll(ring, -1, axis=0)[:, :-1]
    upper = np.stack([here, here + 1, next_ring], -1)[:, 1:]  # at the poles these have no area
    lower = np.stack([next_ring, here + 1, next_ring + 1], -1)[:, :-1]
    faces = np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)])
    words = " ".join(f"{x:.5f}" for x in vertices.ravel()), " ".join(map(str, faces.ravel()))
    return f'vertex="{words[0]}" face="{words[1]}"'


@pytest.fixture(scope="module")
def model() -> Any:
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="large" {ball(0.1)}/><mesh name="small" {ball(0.004)}/></asset>'
        '<worldbody><light pos="0 0 3"/><geom type="plane" size="0 0 0.1" pos="0 0 -0.1"/>'
        '<geom type="mesh" mesh="large" rgba="0.8 0.2 0.1 1"/>'
        '<geom type="mesh" mesh="small" pos="0.13 0 0" rgba="0.1 0.8 0.1 1"/></worldbody></mujoco>'
    )


def arrays(model: Any) -> list[np.ndarray]:
    names = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum", "mesh_vert")
    return [getattr(model, name).copy() for name in names]


def test_large_meshes_have_fewer_triangles_small_things_keep_their_shape_and_all_is_restored(model: Any) -> None:
    before = arrays(model)
    with simplified_meshes(model, 0.02):
        large, small = model.mesh_facenum
    assert 500 < large < 4560 / 2
    assert small == pytest.approx(large, rel=0.1), "its cells are a 16th of its length, not five times its length"
    for values, expected in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_zero_draws_meshes_whole_and_an_error_restores_them(model: Any) -> None:
    before = arrays(model)
    with simplified_meshes(model, 0.0):
        assert list(model.mesh_facenum) == list(before[3])
    with pytest.raises(ZeroDivisionError), simplified_meshes(model, 0.02):
        raise ZeroDivisionError
    for values, expected in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_triangles_without_area_and_repeated_ones_are_left_out_but_a_back_stays() -> None:
    faces = np.array([[1, 2, 3], [4, 4, 5], [2, 3, 1], [3, 2, 1], [7, 8, 9], [6, 5, 6]])
    assert list(drawn(faces)) == [0, 3, 4]


@pytest.mark.sim
def test_the_picture_hardly_changes(model: Any) -> None:
    start_mujoco()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = CameraRecipe("front", pos=(0.4, 0.0, 0.2), target=(0.0, 0.0, 0.0), height=96, width=96)
    pictures = list[np.ndarray]()
    for cell_m in (0.0, 0.005, 0.05):
        renderer = Renderer(model, shadows=False, mesh_cell_m=cell_m)
        pictures.append(renderer.frame(data, camera).astype(float))
        renderer.close()
    whole, fine, coarse = pictures
    assert 0 < np.abs(fine - whole).mean() < 1.5
    assert np.abs(fine - whole).mean() < np.abs(coarse - whole).mean()


def test_a_cell_outside_its_range_is_refused() -> None:
    recipe = find_env("tabletop").recipe
    for cell_m in (-0.001, 0.06, float("nan")):
        with pytest.raises(RecipeError, match=r"mesh_cell_m .* is outside 0 to 0\.05"):
            replace(recipe, mesh_cell_m=cell_m)  # pyright: ignore[reportCallIssue]
