"""What a scripted expert needs to know of a task that puts objects somewhere: which, how large, and where to.

The task's scene file says its goal as predicates, e.g. (In alphabet_soup_1 basket_1_contain_region).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """One goal of a task: an object comes in or on something.

    Attributes:
        goal: the benchmark's predicate: name, object, place.
        target: name of the movable object.
        place: name of the movable object or container that it comes to; None if it is a part of a fixture.
        region: name of the fixture's part; None for a movable place.
    """

    goal: tuple[str, str, str]
    target: str
    place: str | None = None
    region: str | None = None


def placings_of(env: Any) -> tuple[Placing, ...]:
    """Return the goals of the benchmark's environment if each is a placing of a movable object, else none."""
    found = [_placing_of(env, goal) for goal in env.parsed_problem["goal_state"]]
    placings = tuple(placing for placing in found if placing)
    return placings if len(placings) == len(found) else ()


def _placing_of(env: Any, goal: Sequence[str]) -> Placing | None:
    if len(goal) != 3 or goal[0].lower() not in PLACING or goal[1] not in env.objects_dict:
        return None
    predicate, target, place = goal
    region = env.object_sites_dict.get(place)
    container = place if region is None else region.parent_name
    if container in env.objects_dict:
        return Placing((predicate, target, place), target, place=container)
    return Placing((predicate, target, place), target, region=place) if region is not None else None


class PlacingTruth:
    """Tells a scripted expert which object to move now, where it is, and where it shall be."""

    def __init__(self, env: Any, model: Any, data: Any) -> None:
        """
        Args:
            env: the benchmark's environment.
            model: its model in MuJoCo.
            data: its state.
        """
        self._env, self._model, self._data = env, model, data
        self._placings = placings_of(env)
        names = {name for p in self._placings for name in (p.target, p.place) if name}
        self._shapes = {name: shapes_of(model, env.obj_body_id[name]) for name in names}
        self._rims: dict[str, Vector] = {}

    def begin(self) -> None:
        """Find where the objects can be held, at the start of an episode with the hand far away."""
        targets = {placing.target for placing in self._placings}
        self._rims = {name: freest_rim(self._model, self._data, self._shapes[name]) for name in targets}

    def now(self, base: Vector) -> dict[str, Vector]:
        """Return boxes around the object to move now and its place, and a point of its rim [m].

        Args:
            base: (3,) position of the base, which stands upright and unturned in every scene, so that its axes are
                the world's.

        Returns:
            (3,) corners and point in the base frame; nothing if the task has other goals than placings.
        """
        if not self._placings:
            return {}
        left = [p for p in self._placings if not self._env._eval_predicate(list(p.goal))] or self._placings
        low, high = bounds_of(self._model, self._data, self._shapes[left[0].target])
        place_low, place_high = self._bounds(left[0])
        return {
            "target_low": low - base,
            "target_high": high - base,
            "target_rim": (low + high) / 2 + self._rims[left[0].target] - base,
            "place_low": place_low - base,
            "place_high": place_high - base,
        }

    def _bounds(self, placing: Placing) -> tuple[Vector, Vector]:
        if placing.place:
            return bounds_of(self._model, self._data, self._shapes[placing.place])
        assert placing.region
        site = self._model.site(placing.region).id
        half = np.abs(self._data.site_xmat[site].reshape(3, 3)) @ self._model.site_size[site]
        return self._data.site_xpos[site] - half, self._data.site_xpos[site] + half


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
