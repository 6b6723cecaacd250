"""Moves the loose objects of a scene by a stated distance, so that a policy that sees is told from one that remembers.

Each object, or stack of objects that touch, is shifted level by the distance in a drawn direction. A direction that
leads through something is drawn again. What then falls, slides or finds no direction stays where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from vla_robot.core.messages import Vector

DIRECTIONS = 30
"""Directions that are tried for an object."""

STEP_M = 0.005
"""Length [m] of the steps in which the way of an object is searched for collisions."""

PENETRATION_M = 0.002
"""Deeper contact [m] is a collision: objects at rest overlap by less than 1 mm."""

FALL_M = 0.01
"""An object has fallen or slid if it settles further than this from where it should [m]."""

type Offsets = dict[str, tuple[float, float]]
"""Name of an object -> its shift along x and y of the world [m]; those that stay are left out."""


@dataclass(frozen=True)
class LooseObject:
    """An object with a free joint.

    Attributes:
        body: id of its body.
        address: index of its position in qpos.
    """

    body: int
    address: int


class ObjectMover:
    """Finds shifts of a scene's loose objects."""

    def __init__(self, model: Any, data: Any, bodies: Mapping[str, int]) -> None:
        """
        Args:
            model: MuJoCo's model.
            data: its data.
            bodies: name of an object -> id of its body; those without a free joint are left out.
        """
        self._mujoco: Any = import_module("mujoco")
        self._model, self._data = model, data
        self._objects = {name: loose for name, body in bodies.items() if (loose := self._loose(body)) is not None}
        self._owner = self._owners()

    def find(self, seed: int, distance_m: float, place: Callable[[], None], settle: Callable[[], None]) -> Offsets:
        """Return a shift for each object that can be moved, the same for the same seed.

        Args:
            seed: of the directions.
            distance_m: the shift's length.
            place: sets the initial state.
            settle: advances the simulation until objects rest.
        """
        place()
        settle()
        groups, rest = self._groups(), self._positions()
        place()
        offsets = self._without_collisions(groups, np.random.default_rng(seed), distance_m)
        while True:
            place()
            self.shift(offsets)
            settle()
            fallen = [group for group in groups if group[0] in offsets and self._has_fallen(group, rest, offsets)]
            if not fallen:
                return offsets
            for name in (name for group in fallen for name in group):
                del offsets[name]

    def shift(self, offsets: Offsets) -> None:
        """Shift the objects in the present state."""
        for name, (dx, dy) in offsets.items():
            address = self._objects[name].address
            self._data.qpos[address : address + 2] += (dx, dy)
        self._mujoco.mj_forward(self._model, self._data)

    def _without_collisions(
        self, groups: Sequence[Sequence[str]], rng: np.random.Generator, distance_m: float
    ) -> Offsets:
        """Return a shift for each group that finds a direction without a collision. Changes the present state."""
        offsets: Offsets = {}
        sunk = set(self._deep())  # the benchmark's states of suite object lie some millimetres in the floor
        for group in groups:
            for angle in rng.uniform(0.0, 2 * np.pi, DIRECTIONS):
                shift = float(distance_m * np.cos(angle)), float(distance_m * np.sin(angle))
                if self._has_way(group, shift, sunk):
                    self.shift(dict.fromkeys(group, shift))
                    offsets |= dict.fromkeys(group, shift)
                    break
        return offsets

    def _has_way(self, group: Sequence[str], shift: tuple[float, float], sunk: set[tuple[str, int]]) -> bool:
        """Return whether a group can be shifted without touching anything on the way but what it is `sunk` in.

        The way counts, since MuJoCo finds no contact of a box with a thin wall deep inside it, and since an object
        in a drawer should stay there. The present state is as before when this returns.
        """
        steps = max(1, round(float(np.hypot(*shift)) / STEP_M))
        part = shift[0] / steps, shift[1] / steps
        done, is_free = 0, True
        while is_free and done < steps:
            self.shift(dict.fromkeys(group, part))
            done, is_free = done + 1, not self._collides(group, sunk)
        self.shift(dict.fromkeys(group, (-done * part[0], -done * part[1])))
        return is_free

    def _collides(self, group: Sequence[str], sunk: set[tuple[str, int]]) -> bool:
        """Return whether something outside of a group is deep in it that was not before the shift."""
        return any(
            pair not in sunk and len({pair[0], self._owner.get(pair[1])} & set(group)) == 1 for pair in self._deep()
        )

    def _deep(self) -> Iterator[tuple[str, int]]:
        """Yield an object and the other geom of each contact that is a collision, from both sides."""
        for contact in self._data.contact[: self._data.ncon]:
            if contact.dist < -PENETRATION_M:
                geoms = int(contact.geom1), int(contact.geom2)
                for one, other in (geoms, geoms[::-1]):
                    if (owner := self._owner.get(one)) is not None:
                        yield owner, other

    def _has_fallen(self, group: Sequence[str], rest: Mapping[str, Vector], offsets: Offsets) -> bool:
        now = self._positions()
        apart = (now[name] - rest[name] - np.array([*offsets[name], 0.0]) for name in group)
        return any(float(np.linalg.norm(difference)) > FALL_M for difference in apart)

    def _groups(self) -> list[list[str]]:
        """Return the objects, those that touch each other together, in the order of their names."""
        group_of = {name: {name} for name in self._objects}
        for contact in self._data.contact[: self._data.ncon]:
            first, second = self._owner.get(int(contact.geom1)), self._owner.get(int(contact.geom2))
            if first is not None and second is not None and group_of[first] is not group_of[second]:
                joined = group_of[first] | group_of[second]
                group_of |= dict.fromkeys(joined, joined)
        return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())

    def _positions(self) -> dict[str, Vector]:
        return {name: self._data.xpos[loose.body].copy() for name, loose in self._objects.items()}

    def _loose(self, body: int) -> LooseObject | None:
        free = int(self._mujoco.mjtJoint.mjJNT_FREE)
        joint = int(self._model.body_jntadr[body])
        if joint < 0 or int(self._model.jnt_type[joint]) != free:
            return None
        return LooseObject(body, int(self._model.jnt_qposadr[joint]))

    def _owners(self) -> dict[int, str]:
        """Return id of a geom -> name of the object whose body, or a body below it, has it."""
        names = {loose.body: name for name, loose in self._objects.items()}
        roots = self._model.body_rootid
        return {
            geom: names[root]
            for geom in range(self._model.ngeom)
            if (root := int(roots[self._model.geom_bodyid[geom]])) in names
        }
