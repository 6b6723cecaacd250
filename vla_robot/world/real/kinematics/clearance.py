"""Keeps the bodies of a real arm apart: from each other, from its twin's, and from obstacles.

    pairs      bodies that the joints move against each other, except neighbours in the chain
    far        bounding spheres apart by more than the margin: no query          one product for all pairs
    near       MuJoCo's distance of the two shapes

Two bodies of one chain that are closer than the margin where all joints are zero are built so, as neighbours are: such
pairs are left out, and those that the scene excludes from contacts. Where a body has shapes that collide in MuJoCo,
only those count; where it has none, all its shapes do. Joints that are not among the configuration's, such as a
gripper's, stay at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.kinematics.scene import compiled

if TYPE_CHECKING:
    import mujoco  # at run time only after `start_mujoco`, which turns a failure of OpenGL into a WorldError

COLLISION = "collision"
"""Beginning of the cause of a clamp; the two bodies follow."""

NUDGES_M = np.array([[0.0, 0.0, 0.0], [1e-6, 0.0, 0.0], [0.0, 1e-6, 0.0], [0.0, 0.0, 1e-6], [-1e-6, 1e-6, -1e-6]])
"""Displacements of a shape with which a distance is asked again [m]."""

CONSISTENT_M = 1e-5
"""Gap of the two points of a contact that counts as none [m]."""


class Clearance:
    """The bound that keeps pairs of bodies at least a margin apart."""

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str], margin_m: float) -> None:
        """
        Args:
            model: the scene.
            joints: (J,) names of the configuration's joints, all in the scene; the scene's others stay at zero.
            margin_m: smallest distance of two bodies [m].

        Raises:
            RecipeError: the scene lacks a joint, or no two bodies can come near each other.
        """
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._margin_m = margin_m
        # A plane has no bounding sphere: it is never far.
        self._radii_m = np.where(model.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE), np.inf, model.geom_rbound)
        names = [model.joint(j).name for j in range(model.njnt)]
        for name in joints:
            if name not in names:
                raise RecipeError(unknown("joint in the scene", name, names, "See [robot.joints]."))
        self._qpos = np.array([model.joint(name).qposadr[0] for name in joints])
        self._pairs = _moving_pairs(model, [names.index(name) for name in joints])
        zero = self._distances_m(np.zeros(len(joints)))
        chained = [_on_one_chain(model, *model.geom_bodyid[pair]) for pair in self._pairs]
        close = np.flatnonzero((zero < margin_m) & np.array(chained, dtype=np.bool_))
        self.left_out = tuple(dict.fromkeys(self._bodies(i) for i in close))
        """Pairs of bodies of one chain that are closer than the margin at zero, and are not kept apart."""
        kept = [i for i in range(len(self._pairs)) if self._bodies(i) not in self.left_out]
        self._pairs = self._pairs[kept]
        if not len(self._pairs):
            raise RecipeError("clearance_m keeps no two bodies apart: the scene has no shapes that can meet.")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Names of the pairs of bodies that are kept apart."""
        return tuple(dict.fromkeys(self._bodies(i) for i in range(len(self._pairs))))

    def cause(self, which: int) -> str:
        first, second = self._bodies(which)
        return f"{COLLISION} of {first} with {second}"

    def depths_m(self, joints: Vector) -> Vector:
        return self._margin_m - self._distances_m(joints)

    def _distances_m(self, joints: Vector) -> Vector:
        """Return the distance of each pair of shapes [m], (P,); a lower bound above the margin where they are far."""
        self._data.qpos[self._qpos] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        centres = self._data.geom_xpos
        first, second = self._pairs.T
        apart = np.linalg.norm(centres[first] - centres[second], axis=1) - self._radii_m[first] - self._radii_m[second]
        for i in np.flatnonzero(apart < self._margin_m):
            apart[i] = self._distance_m(int(first[i]), int(second[i]))
        return apart

    def _distance_m(self, a: int, b: int) -> float:
        """Return the distance of two shapes [m], at most the margin; negative if they overlap.

        MuJoCo 3.3.7 answers 0 for some shapes that are apart, and then gives points that are not at this distance. The
        answer of shapes that are moved by a micrometre is taken instead; if that fails too, they count as touching.
        """
        ends, place = np.zeros(6), self._data.geom_xpos[a].copy()
        distance_m = 0.0
        for nudge in NUDGES_M:
            self._data.geom_xpos[a] = place + nudge
            # A longer limit than the margin makes false answers more frequent.
            distance_m = self._mujoco.mj_geomDistance(self._model, self._data, a, b, self._margin_m, ends)
            if distance_m != 0.0 or np.linalg.norm(ends[3:] - ends[:3]) < CONSISTENT_M:
                break
        self._data.geom_xpos[a] = place
        return distance_m

    def _bodies(self, which: int) -> tuple[str, str]:
        first, second = (self._model.body(self._model.geom_bodyid[geom]).name for geom in self._pairs[which])
        return first, second


def clearance_of(recipe: RealArmRecipe, joints: Sequence[str]) -> Clearance | None:
    """Return the clearance that a recipe asks for; None where it asks for none.

    Args:
        recipe: the arm's recipe.
        joints: (J,) names of the configuration's joints.

    Raises:
        RecipeError: the scene cannot be used.
    """
    if recipe.limits.clearance_m is None:
        return None
    return Clearance(compiled(recipe), joints, recipe.limits.clearance_m)


def _moving_pairs(model: mujoco.MjModel, joints: Sequence[int]) -> NDArray[np.int64]:
    """Return the pairs of shapes of bodies that the joints move against each other and are no neighbours, (P, 2)."""
    group = _rigid_groups(model, joints)
    shapes = [geom for geom in range(model.ngeom) if _collides(model, geom)]
    pairs = [
        (a, b)
        for i, a in enumerate(shapes)
        for b in shapes[i + 1 :]
        if _may_meet(model, group, int(model.geom_bodyid[a]), int(model.geom_bodyid[b]))
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _rigid_groups(model: mujoco.MjModel, joints: Sequence[int]) -> NDArray[np.int64]:
    """Return for each body the first one that moves with it, (nbody,); 0 for one that no joint moves."""
    moved = set(model.jnt_bodyid[list(joints)].tolist())
    group = np.zeros(model.nbody, dtype=np.int64)
    for body in range(1, model.nbody):  # parents come first
        group[body] = body if body in moved else group[model.body_parentid[body]]
    return group


def _may_meet(model: mujoco.MjModel, group: NDArray[np.int64], a: int, b: int) -> bool:
    """Return whether two bodies move against each other and are neither neighbours nor excluded by the scene."""
    if group[a] == group[b] or _excluded(model, a, b):
        return False
    return not (_is_neighbour(model, group, a, b) or _is_neighbour(model, group, b, a))


def _is_neighbour(model: mujoco.MjModel, group: NDArray[np.int64], body: int, below: int) -> bool:
    """Return whether a body hangs on the rigid group of `below`; of what does not move, only on its own ancestors."""
    parent = int(model.body_parentid[group[body]])
    is_next = bool(group[body] and group[parent] == group[below])
    return is_next and (bool(group[below]) or _is_above(model, below, body))


def _is_above(model: mujoco.MjModel, ancestor: int, body: int) -> bool:
    while body not in (ancestor, 0):
        body = int(model.body_parentid[body])
    return body == ancestor


def _on_one_chain(model: mujoco.MjModel, a: int, b: int) -> bool:
    return _is_above(model, a, b) or _is_above(model, b, a)


def _collides(model: mujoco.MjModel, geom: int) -> bool:
    """Return whether a shape counts: one that collides in MuJoCo, or any of a body without such shapes."""
    body = int(model.geom_bodyid[geom])
    geoms = range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
    solid = [g for g in geoms if model.geom_contype[g] or model.geom_conaffinity[g]]
    return geom in solid if solid else True


def _excluded(model: mujoco.MjModel, a: int, b: int) -> bool:
    """Return whether the scene excludes two bodies from contacts."""
    low, high = min(a, b), max(a, b)
    return bool(((low << 16) + high in model.exclude_signature) or ((high << 16) + low in model.exclude_signature))
