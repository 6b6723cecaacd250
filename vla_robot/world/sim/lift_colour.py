"""LiftColour: robosuite's Lift with a red, a green and a blue cube, of which the arm must lift one and no other.

The seed modulo three chooses the cube, so that consecutive seeds ask for each colour equally often. Each reset draws
the cubes' places: on a strip of 10 x 26 cm, far enough apart for open fingers between them, turned by at most 20
degrees, so that fingers which close along the base's y axis meet their sides.

LiftSome is the same task with one, two or all three cubes in turn; the cube to be lifted is always there.

Importing this module registers the tasks with robosuite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from robosuite.environments.manipulation.lift import Lift
from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import CustomMaterial

from vla_robot.core.geometry import quat_from_rotvec

COLOURS = ("red", "green", "blue")
HALF_EDGE_M = 0.021
HALF_STRIP_M = (0.05, 0.13)
"""Half edges of the strip around the table's middle, x and y."""

APART_M = 0.09
"""Smallest distance of two cubes' centres: half a cube, a finger, and 2 cm of clearance for the finger."""

MAX_YAW_RAD = np.deg2rad(20.0)
LIFTED_M = 0.04
"""robosuite's Lift counts a cube as lifted when its centre is this far above the table."""

TABLE_M = np.array([0.0, 0.0, 0.8])
AWAY_M = np.array([3.0, 0.0, HALF_EDGE_M])
"""Position of a cube that is not part of a scene: on the floor, behind the cameras, world frame."""


class LiftColour(Lift):
    """The robosuite task, which `RobosuiteWorld` presents as a World."""

    target = COLOURS[0]
    sim: Any  # robosuite's type says None until it is built

    def choose_target(self, seed: int) -> str:
        """Choose the cube of the next episode. Return its colour, which replaces {target} in the instruction."""
        self.target = COLOURS[seed % len(COLOURS)]
        return self.target

    def failed(self) -> bool:
        """Return whether a cube other than the target is lifted."""
        return any(self._is_lifted(colour) for colour in COLOURS if colour != self.target)

    def _check_success(self) -> bool:
        return self._is_lifted(self.target) and not self.failed()

    def _is_lifted(self, colour: str) -> bool:
        body = self.sim.model.body_name2id(self.cubes[colour].root_body)
        return bool(self.sim.data.body_xpos[body][2] > TABLE_M[2] + LIFTED_M)

    def _load_model(self) -> None:
        ManipulationEnv._load_model(self)
        robot: Any = self.robots[0].robot_model
        robot.set_base_xpos(robot.base_xpos_offset["table"](self.table_full_size[0]))
        arena = TableArena(
            table_full_size=self.table_full_size, table_friction=self.table_friction, table_offset=TABLE_M
        )
        arena.set_origin([0, 0, 0])
        self.cubes = {colour: _cube(colour) for colour in COLOURS}
        self.cube = self.cubes[COLOURS[0]]  # needed by Lift's own observables, which nothing here reads
        self.model = ManipulationTask(
            mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=list(self.cubes.values())
        )

    def _reset_internal(self) -> None:
        ManipulationEnv._reset_internal(self)
        for (x, y, yaw), colour in zip(_places(), COLOURS, strict=True):
            self._put(colour, TABLE_M + (x, y, HALF_EDGE_M + 0.01), yaw)

    def _put(self, colour: str, position_m: np.ndarray, yaw_rad: float = 0.0) -> None:
        turn = quat_from_rotvec(np.array([0.0, 0.0, yaw_rad]))
        self.sim.data.set_joint_qpos(self.cubes[colour].joints[0], np.concatenate([position_m, turn]))


class LiftSome(LiftColour):
    """LiftColour with one to three cubes: nine consecutive seeds have each target with each number of cubes."""

    count = len(COLOURS)

    def choose_target(self, seed: int) -> str:
        self.count = 1 + seed // len(COLOURS) % len(COLOURS)
        return super().choose_target(seed)

    def _reset_internal(self) -> None:
        super()._reset_internal()
        others = np.random.permutation([colour for colour in COLOURS if colour != self.target])
        for number, colour in enumerate(others[self.count - 1 :]):
            self._put(colour, AWAY_M + (0.0, 10 * HALF_EDGE_M * number, 0.0))


def _cube(colour: str) -> BoxObject:
    material = CustomMaterial(
        texture=f"Wood{colour.capitalize()}",
        tex_name=f"{colour}wood",
        mat_name=f"{colour}wood_mat",
        tex_attrib={"type": "cube"},
        mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
    )
    return BoxObject(name=colour, size=[HALF_EDGE_M] * 3, rgba=[1, 1, 1, 1], material=material)


def _places() -> list[tuple[float, float, float]]:
    """Draw x, y [m] and yaw [rad] of each cube, from numpy's global generator as robosuite's own tasks do."""
    half = np.array(HALF_STRIP_M)
    while True:
        points = np.random.uniform(-half, half, (len(COLOURS), 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(COLOURS), 1)]
        if gaps.min() >= APART_M:
            yaws = np.random.uniform(-MAX_YAW_RAD, MAX_YAW_RAD, len(COLOURS))
            return [(x, y, yaw) for (x, y), yaw in zip(points, yaws, strict=True)]
