"""Drives an arm's joints at random, and asks MuJoCo after each command whether its bodies keep their distance.

    python tests/shared/check_clearance.py so101 100000
    python tests/shared/check_clearance.py panda 100000 1       # another seed

It asks for every pair of shapes, without the bounding spheres that the limit itself asks first. A cut must be due: a
little further on the way, the margin is broken.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_robot.recipe.env import RealArmRecipe
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.recipe.robot import ObstacleRecipe, RobotRecipe
from vla_robot.world.real.kinematics.bounds import HALVINGS, WAY_RAD, last_allowed
from vla_robot.world.real.kinematics.clearance import Clearance
from vla_robot.world.real.kinematics.scene import compiled, joint_ranges_of

MARGIN_M = 0.01
STEP_RAD = 0.05
"""What a joint turns in a tick: 1.5 rad/s at 30 Hz."""
TICKS_TO_A_TARGET = 25
TOLERANCE_M = 2e-6
"""Distances are iterated, and 1e-6 m of a depth counts as none."""

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
PANDA = tuple(f"joint{i}" for i in range(1, 8))
STARTS = {"so101": (0.0, -0.52, 0.35, 1.2, 0.0), "panda": (0.0, 0.3, 0.0, -2.0, 0.0, 2.3, 0.8)}
TABLE = ObstacleRecipe((-1.0, -1.0, -0.1), (1.0, 1.0, -0.03))
POST = ObstacleRecipe((0.25, 0.12, -0.03), (0.29, 0.16, 0.6))


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        commands: how many were sent.
        cuts: how many of them were cut.
        nearest_m: smallest distance of two bodies after any of them [m], at most the margin.
        early: cuts where the way beyond was free.
        query_ms: time of the limit for a command, mean and longest 1 percent [ms of this process].
    """

    commands: int
    cuts: int
    nearest_m: float
    early: int
    query_ms: tuple[float, float]


def scene_of(arm: str) -> tuple[Any, tuple[str, ...]]:
    """The model of an arm on a table beside a post, and its joints."""
    if arm == "so101":
        scene, joints = Path(__file__).parents[2] / "envs" / "so101.xml", SO101
    else:
        import robosuite

        folder = Path(robosuite.__file__).parent / "models" / "assets" / "robots" / "panda"
        scene, joints = folder / "robot.xml", PANDA
    recipe = RealArmRecipe(
        instruction="keep apart",
        scene=scene,
        limits=LimitsRecipe(max_speed_rad_s=1.5, clearance_m=MARGIN_M),
        robot=RobotRecipe(driver="lerobot", type="any", id="any", actions="joints"),
        obstacles={"table": TABLE, "post": POST},
    )
    return compiled(recipe), joints


class Asked:
    """Distances of all pairs of shapes that a limit keeps apart, by MuJoCo alone."""

    def __init__(self, model: Any, joints: tuple[str, ...], pairs: set[frozenset[str]]) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._qpos = [model.joint(name).qposadr[0] for name in joints]
        bodies = [model.body(model.geom_bodyid[geom]).name for geom in range(model.ngeom)]
        solid = {b for b, c in zip(bodies, model.geom_contype | model.geom_conaffinity, strict=True) if c}
        counts = [b not in solid or c for b, c in zip(bodies, model.geom_contype | model.geom_conaffinity, strict=True)]
        shapes = np.flatnonzero(counts).tolist()
        self._pairs = [(a, b) for a in shapes for b in shapes if a < b and {bodies[a], bodies[b]} in pairs]

    def nearest_m(self, joints: np.ndarray) -> float:
        """Smallest distance [m], at most the margin.

        MuJoCo sometimes says 0 of shapes that are apart, but hardly ever again when they are moved by a hair.
        """
        nearest_m = self._nearest_m(joints)
        for shift in (3e-7, -5e-7, 7e-7) if nearest_m < MARGIN_M - TOLERANCE_M else ():
            nearest_m = max(nearest_m, self._nearest_m(joints + shift))
        return nearest_m

    def _nearest_m(self, joints: np.ndarray) -> float:
        self._data.qpos[self._qpos] = joints
        mujoco.mj_forward(self._model, self._data)
        return min(mujoco.mj_geomDistance(self._model, self._data, a, b, MARGIN_M, None) for a, b in self._pairs)


def drive(arm: str, commands: int, seed: int = 0) -> Outcome:
    """Send random commands, and look at each."""
    model, joints = scene_of(arm)
    limit = Clearance(model, joints, MARGIN_M)
    asked = Asked(model, joints, {frozenset(pair) for pair in limit.pairs})
    rng, (low, high) = np.random.default_rng(seed), joint_ranges_of(model, joints)
    at = np.array(STARTS[arm])
    assert asked.nearest_m(at) == MARGIN_M, "the start is not free"
    target, cuts, early, nearest_m, times = at, 0, 0, np.inf, []
    for command in range(commands):
        if command % TICKS_TO_A_TARGET == 0:
            target = rng.uniform(low, high)
        wanted = at + np.clip(target - at, -STEP_RAD, STEP_RAD)
        begun_s = time.process_time()
        allowed, cause = last_allowed(at, wanted, [limit])
        times.append(1000 * (time.process_time() - begun_s))
        nearest_m = min(nearest_m, asked.nearest_m(allowed))
        if cause:
            cuts += 1
            way = wanted - allowed
            further = allowed + way * min(1.0, 1.01 * WAY_RAD / 2**HALVINGS / max(np.abs(way).max(), 1e-12))
            early += asked.nearest_m(further) >= MARGIN_M
        at = allowed
    slow = np.sort(times)[-max(commands // 100, 1) :]
    return Outcome(commands, cuts, float(nearest_m), int(early), (float(np.mean(times)), float(np.mean(slow))))


def main() -> None:
    arm, commands, *seed = sys.argv[1], *map(int, sys.argv[2:])
    limit = Clearance(*scene_of(arm), MARGIN_M)
    print(f"{arm}: {len(limit.pairs)} pairs of bodies; left out: {limit.left_out or 'none'}")
    print(drive(arm, commands, *seed))


if __name__ == "__main__":
    main()
