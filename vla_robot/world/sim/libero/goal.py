"""What a scripted expert needs to know of a task that puts one object somewhere: which, how large, and where to.

The task's scene file says its goal as predicates, e.g. (In alphabet_soup_1 basket_1_contain_region).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_robot.core.messages import Vector
from vla_robot.world.sim.render import COLLISION_GEOMS

PLACING = ("in", "on")
RIM_ANGLES = np.radians([0, 15, -15, 30, -30, 45, -45])
"""Where on a round rim a hand may hold it, from +y towards +x; the first of equals is taken."""

FINGER_HALF_M, ENOUGH_ROOM_M = 0.012, 0.035
"""Half of a finger's width along x, and the room beyond a rim above which more does not count."""

CORNERS = np.array(np.meshgrid(*[(-1.0, 1.0)] * 3)).reshape(3, 8).T
"""(8, 3) corners of a cube."""


@dataclass(frozen=True)
class Placing:
    """The goal of a task that puts one object in or on another.

    Attributes:
        target: id of the body of the object to move.
        place: id of the body that it comes to.
    """

    target: int
    place: int


def placing_of(env: Any) -> Placing | None:
    """Return the goal of the benchmark's environment if it is one placing of a movable object, else None."""
    goals = env.parsed_problem["goal_state"]
    if len(goals) != 1 or len(goals[0]) != 3 or goals[0][0].lower() not in PLACING:
        return None
    _, target, place = goals[0]
    place = getattr(env.object_sites_dict.get(place), "parent_name", place)
    bodies = env.obj_body_id
    return Placing(bodies[target], bodies[place]) if target in bodies and place in bodies else None


def shapes_of(model: Any, body: int) -> tuple[int, ...]:
    """Return the ids of an object's collision shapes."""
    roots = model.body_rootid
    return tuple(g for g in range(model.ngeom) if roots[model.geom_bodyid[g]] == roots[body] and model.geom_contype[g])


def bounds_of(model: Any, data: Any, shapes: Iterable[int]) -> tuple[Vector, Vector]:
    """Return the lowest and the highest (3,) corner of shapes, along the world's axes [m]."""
    points = np.concatenate([_corners(model, data, g) for g in shapes])
    return points.min(axis=0), points.max(axis=0)


def _corners(model: Any, data: Any, geom: int) -> np.ndarray:
    centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
    return (centre + CORNERS * half) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]


def freest_rim(model: Any, data: Any, shapes: Iterable[int]) -> Vector:
    """Return the point of a round object's rim beside which a finger has room.

    Args:
        model: MuJoCo's model.
        data: its state, with every body where it is.
        shapes: the object's collision shapes.

    Returns:
        (3,) offset from the middle of the object's box [m].
    """
    low, high = bounds_of(model, data, shapes)
    radius = (high[1] - low[1]) / 2
    outwards = [np.array([np.sin(a), np.cos(a), 0.0]) for a in RIM_ANGLES]
    middle = np.array([*(low + high)[:2] / 2, high[2] - 0.01])
    rooms = [_room(model, data, middle + (radius + 0.005) * out, out) for out in outwards]
    return radius * outwards[int(np.argmax(rooms))] + [0, 0, (high[2] - low[2]) / 2]


def _room(model: Any, data: Any, start: Vector, along: Vector) -> float:
    """Return the free length from a point along a level (3,) direction [m], for a finger, at most ENOUGH_ROOM_M."""
    import mujoco  # at run time only after `start_mujoco`, which turns a failure of OpenGL into a WorldError

    aside, solid = np.array([along[1], -along[0], 0.0]), np.eye(6, dtype=np.uint8)[COLLISION_GEOMS]
    hits = [
        mujoco.mj_ray(model, data, start + by * aside, along, solid, 1, -1, np.array([-1], np.int32))
        for by in (-FINGER_HALF_M, 0.0, FINGER_HALF_M)
    ]
    return min([hit for hit in hits if hit >= 0] + [ENOUGH_ROOM_M])
