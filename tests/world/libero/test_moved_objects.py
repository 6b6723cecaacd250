"""Loose objects are moved by exactly the stated distance, without collisions and falls, and the same for a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_robot.world.sim.libero.moved_objects import ObjectMover, Offsets

mujoco: Any = pytest.importorskip("mujoco")

DISTANCE_M = 0.03
SCENE = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <geom name="table" type="box" size="0.5 0.5 0.05" pos="0 0 -0.05"/>
    <body name="fixed" pos="0.3 0.3 0.02"><geom type="box" size="0.02 0.02 0.02"/></body>
    {objects}
  </worldbody>
</mujoco>
"""
BOX = '<body name="{name}" pos="{pos}"><freejoint/><geom type="box" size="{size}" mass="0.1"/></body>'
WALLS = "".join(f'<geom type="box" size="{s}" pos="{p}"/>' for s, p in (
    ("0.005 0.05 0.05", "0.03 -0.3 0.05"), ("0.005 0.05 0.05", "-0.03 -0.3 0.05"),
    ("0.05 0.005 0.05", "0 -0.27 0.05"), ("0.05 0.005 0.05", "0 -0.33 0.05"),
))  # fmt: skip
OBJECTS = {
    "alone": ("-0.2 0 0.02", "0.02 0.02 0.02"),
    "lower": ("0.2 0 0.02", "0.04 0.04 0.02"),
    "upper": ("0.2 0 0.06", "0.02 0.02 0.02"),  # stands on the lower one
    "beside": ("0.355 0.3 0.02", "0.02 0.02 0.02"),  # a gap of 15 mm from what is fixed
    "edge": ("0.485 -0.2 0.02", "0.02 0.02 0.02"),  # over the table's edge it falls
    "caged": ("0 -0.3 0.02", "0.02 0.02 0.02"),  # five millimetres between walls
}


class Scene:
    def __init__(self) -> None:
        boxes = "".join(BOX.format(name=n, pos=pos, size=size) for n, (pos, size) in OBJECTS.items())
        self.model = mujoco.MjModel.from_xml_string(SCENE.format(objects=boxes + WALLS))
        self.data = mujoco.MjData(self.model)
        bodies = {name: self.model.body(name).id for name in (*OBJECTS, "fixed")}
        self.mover = ObjectMover(self.model, self.data, bodies)
        self.bodies = bodies

    def place(self) -> None:
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    def settle(self) -> None:
        mujoco.mj_step(self.model, self.data, nstep=250)

    def found(self, seed: int) -> Offsets:
        return self.mover.find(seed, DISTANCE_M, self.place, self.settle)

    def positions(self) -> dict[str, np.ndarray]:
        return {name: self.data.xpos[body].copy() for name, body in self.bodies.items()}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def test_objects_move_by_the_distance_and_rest_there(scene: Scene) -> None:
    turns: set[float] = set()
    for seed in range(12):
        offsets = scene.found(seed)
        assert {"alone", "lower", "upper", "beside"} <= set(offsets)
        np.testing.assert_allclose([np.hypot(*offset) for offset in offsets.values()], DISTANCE_M)
        scene.place()
        begun = scene.positions()
        scene.mover.shift(offsets)
        scene.settle()
        rest = scene.positions()
        for name in OBJECTS:
            wanted = begun[name] + [*offsets.get(name, (0.0, 0.0)), 0.0]
            np.testing.assert_allclose(rest[name], wanted, atol=0.01, err_msg=f"{name}, seed {seed}")
        turns.add(round(np.arctan2(*offsets["alone"]), 6))
    assert len(turns) == 12, "each seed draws its own directions"


def test_a_stack_moves_as_one_and_what_has_no_room_stays(scene: Scene) -> None:
    for seed in range(6):
        offsets = scene.found(seed)
        assert offsets["upper"] == offsets["lower"]
        assert "caged" not in offsets and "fixed" not in offsets


def test_what_would_fall_stays(scene: Scene) -> None:
    """Directions over the edge are found out by settling."""
    stayed = [seed for seed in range(12) if "edge" not in scene.found(seed)]
    assert 0 < len(stayed) < 12


def test_a_seed_gives_the_same_whatever_ran_before(scene: Scene) -> None:
    first = scene.found(5)
    scene.found(8)
    assert scene.found(5) == first
