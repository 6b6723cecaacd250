"""Geoms that a camera cannot see are not drawn, and no pixel tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_robot.recipe.scene import CameraRecipe
from vla_robot.world.sim import render
from vla_robot.world.sim.culling import out_of_sight
from vla_robot.world.sim.render import Renderer

mujoco: Any = pytest.importorskip("mujoco")


def scene(rng: np.random.Generator) -> str:
    """Sixty bodies of three shapes around five cameras that look anywhere, over a floor."""
    places, turns = rng.uniform(-2, 2, (60, 3)), rng.uniform(-180, 180, (60, 3))
    kinds = [f'type="{kind}" size="{a:.3f} {b:.3f} {c:.3f}"' for kind in ("box", "ellipsoid", "capsule")
             for a, b, c in rng.uniform(0.03, 0.4, (20, 3))]  # fmt: skip
    colours = rng.uniform(0.2, 1, (60, 3))
    geoms = "".join(
        f'<geom {kind} pos="{_words(place)}" euler="{_words(turn)}" rgba="{_words(colour)} 1"/>'
        for kind, place, turn, colour in zip(kinds, places, turns, colours, strict=True)
    )
    cameras = "".join(
        f'<camera name="camera{k}" pos="{_words(rng.uniform(-1, 1, 3))}" euler="{_words(rng.uniform(-180, 180, 3))}" '
        f'fovy="{fovy}"/>'
        for k, fovy in enumerate((20, 45, 60, 90, 120))
    )
    floor = '<geom type="plane" size="0 0 0.1" pos="0 0 -2"/><light pos="0 0 4"/>'
    return f"<mujoco><worldbody>{floor}{geoms}{cameras}</worldbody></mujoco>"


def _words(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)


@pytest.mark.sim
def test_a_frame_is_the_same_to_the_bit_without_what_is_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mujoco.MjModel.from_xml_string(scene(np.random.default_rng(3)))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    cameras = [CameraRecipe("front", source=f"camera{k}", height=48, width=80) for k in range(5)]
    renderer = Renderer(model, shadows=False)
    culled = [renderer.frame(data, camera) for camera in cameras]
    left_out = [out_of_sight(model, data, k, 80 / 48).sum() for k in range(5)]
    assert min(left_out) > 10, "each camera looks past many bodies"
    assert min(np.unique(frame).size for frame in culled) > 10, "each camera sees some"
    assert (model.geom_group == 0).all()
    monkeypatch.setattr(render, "only_in_sight", lambda *_: render.contextlib.nullcontext())
    for frame, camera in zip(culled, cameras, strict=True):
        np.testing.assert_array_equal(renderer.frame(data, camera), frame)
    renderer.close()


def test_a_plane_and_a_camera_without_perspective_keep_everything() -> None:
    geoms = '<geom type="plane" size="1 1 1" pos="0 0 9"/><geom type="sphere" size="0.1" pos="0 0 9"/>'
    cameras = '<camera name="seen"/><camera name="flat" orthographic="true"/>'
    text = f"<mujoco><worldbody>{geoms}{cameras}</worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert out_of_sight(model, data, 0, 1.0).tolist() == [False, True]
    assert out_of_sight(model, data, 1, 1.0).tolist() == [False, False]
