"""Simulates an MJCF scene with an arm, its gripper and some objects as a World.

The scene must name these, and nothing else is assumed:

    body "base"         the frame of actions and state
    site "tool"         the point and frame that actions move; its z axis points out of the gripper
    actuator "gripper"  a position servo whose length is the opening [m] and whose control range is closed .. open
    other actuators     position servos, one for each joint of the arm, between base and tool
    keyframe "home"     state at the start of an episode, objects included

A translation is added to the measured position of the tool, as by robosuite's controller, so that the target does not
move on while the tool pushes against a table. A rotation is added to the last commanded orientation: otherwise the
small lag of the arm would add up to a tilt over steps that only translate.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.core.geometry import half_space_rotvec, matrix_from_quat, quat_from_matrix, rotate
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import MujocoRecipe, PlacementRecipe
from vla_robot.world.real.kinematics.tool_ik import ToolIk
from vla_robot.world.sim.render import Renderer, choose_gl_backend
from vla_robot.world.sim.sim_embodiment import embodiment_of
from vla_robot.world.sim.sim_world import SimWorld
from vla_robot.world.sim.success import TESTS, Placed
from vla_robot.world.sim.workspace import reach_m

GRIPPER = "gripper"
SETTLE_S = 0.2
"""Simulated time after a reset in which placed objects come to rest."""

PLACEMENT_TRIES = 100
"""Number of draws of an object's place before its area counts as too small."""


class MujocoWorld(SimWorld[MujocoRecipe]):
    """The port World for one MJCF scene."""

    def __init__(self, recipe: MujocoRecipe, privileged: bool = False, warm: bool = True) -> None:
        """
        Args:
            recipe: a recipe of kind "mujoco".
            privileged: whether to put the poses of tool and objects into `Observation.privileged`.
            warm: render a frame now: OpenGL takes a second to start, and may fail. Otherwise the first reset does.

        Raises:
            RecipeError: the scene cannot be read, or lacks something that it or the recipe must name.
            WorldError: OpenGL cannot start.
        """
        super().__init__(recipe, privileged)
        choose_gl_backend()
        self._model = _load(recipe)
        self._data = mujoco.MjData(self._model)
        self._rig = _find_rig(self._model, recipe)
        self._ik = ToolIk(self._model, self._rig.tool, self._rig.joints)
        self._objects = _free_bodies(self._model)
        self.embodiment = embodiment_of(
            recipe, recipe.arm.lower(), reach_m(self._model, self._rig.base, self._rig.tool)
        )
        self._renderer = Renderer(self._model, recipe.shadows, mesh_cell_m=recipe.mesh_cell_m)
        self._goal_quat = np.empty(4)
        self._start: dict[str, Vector] = {}
        self._begin(0)
        if warm:
            self._frames()

    def _begin(self, seed: int) -> None:
        mujoco.mj_resetDataKeyframe(self._model, self._data, self._rig.home)
        self._place_objects(np.random.default_rng(seed))
        self._advance(SETTLE_S)
        self._goal_quat = quat_from_matrix(self._data.site_xmat[self._rig.tool])
        self._start = {name: self._box(name)[0] for name in self._success_bodies()}

    def _place_objects(self, rng: np.random.Generator) -> None:
        """Draw each object's place; draw again while it overlaps an object that was placed before."""
        taken: list[tuple[Vector, float]] = []
        for placement in self._recipe.placements:
            body = self._objects[placement.body]
            radius = float(np.linalg.norm(self._box_in_body(placement.body)[1][:2]))
            spot = _free_spot(placement, radius, taken, rng)
            yaw = np.radians(rng.uniform(*placement.yaw_deg))
            pose = self._data.qpos[body.qpos : body.qpos + 7]
            pose[:2] = spot
            pose[3:] = rotate(pose[3:], np.array([0.0, 0.0, yaw]))
            taken.append((spot, radius))

    def _execute(self, action: Vector) -> None:
        """Execute an action, (7,) [m] and [rad] in the base frame, and 1 = open, for one control step."""
        R_base = self._base_rotation()
        position = self._data.site_xpos[self._rig.tool] + R_base @ action[:3]
        self._goal_quat = rotate(self._goal_quat, R_base @ action[3:6])
        self._data.ctrl[self._rig.actuators] = self._ik.solve(self._data.qpos, position, self._goal_quat)
        closed, opened = self._model.actuator_ctrlrange[self._rig.gripper]
        self._data.ctrl[self._rig.gripper] = closed + action[-1] * (opened - closed)
        self._advance(1 / self._recipe.rate_hz)

    def _advance(self, duration_s: float) -> None:
        """Simulate for that long, and update all values that MuJoCo derives from the state."""
        mujoco.mj_step(self._model, self._data, nstep=round(duration_s / self._model.opt.timestep))
        mujoco.mj_forward(self._model, self._data)

    def _succeeds(self) -> bool:
        success = self._recipe.success
        other = success.other or success.body
        return TESTS[success.test](self._placed(success.body), self._placed(other), success.threshold)

    def _success_bodies(self) -> set[str]:
        success = self._recipe.success
        return {success.body, success.other or success.body}

    def _placed(self, name: str) -> Placed:
        centre, half_size = self._box(name)
        return Placed(centre, half_size, self._start[name])

    def _box(self, name: str) -> tuple[Vector, Vector]:
        """Return centre and half edges of a body's bounding box along the world's axes, (3,) each [m]."""
        centre, half_size = self._box_in_body(name)
        body = self._data.body(name)
        R = body.xmat.reshape(3, 3)
        return body.xpos + R @ centre, np.abs(R) @ half_size

    def _box_in_body(self, name: str) -> tuple[Vector, Vector]:
        """Return centre and half edges of a body's bounding box in its own frame, where they are constant."""
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        model = self._model
        for geom in np.flatnonzero(model.geom_bodyid == model.body(name).id):
            R = matrix_from_quat(model.geom_quat[geom])
            aabb = model.geom_aabb[geom]
            centre = model.geom_pos[geom] + R @ aabb[:3]
            half_size = np.abs(R) @ aabb[3:]
            low, high = np.minimum(low, centre - half_size), np.maximum(high, centre + half_size)
        return (low + high) / 2, (high - low) / 2

    def _state(self) -> Vector:
        R_base = self._base_rotation()
        position = R_base.T @ (self._data.site_xpos[self._rig.tool] - self._data.xpos[self._rig.base])
        rotation = R_base.T @ self._data.site_xmat[self._rig.tool].reshape(3, 3)
        # Contacts are soft: fingers that are pressed together overlap by some micrometres.
        opening = max(0.0, float(self._data.actuator_length[self._rig.gripper]))
        return np.concatenate([position, half_space_rotvec(quat_from_matrix(rotation)), [opening]])

    def _base_rotation(self) -> np.ndarray:
        return self._data.xmat[self._rig.base].reshape(3, 3)

    def _truth(self, state: Vector) -> dict[str, Vector]:
        """Return tool pose, gripper width and pose of every free body, in the base frame, with robosuite's keys."""
        truth = {"eef_pos": state[:3].copy(), "eef_rot": state[3:6].copy(), "gripper_width": state[6:7].copy()}
        R_base, base = self._base_rotation(), self._data.xpos[self._rig.base]
        for name, body in self._objects.items():
            truth[f"{name}_pos"] = R_base.T @ (self._data.xpos[body.id] - base)
            truth[f"{name}_mat"] = (R_base.T @ self._data.xmat[body.id].reshape(3, 3)).ravel()
        return truth


@dataclass(frozen=True)
class _Rig:
    """Ids in the model of the elements that the world moves and reads.

    Attributes:
        base: id of the body that is the base frame.
        tool: id of the site that actions move.
        home: id of the keyframe of the start.
        gripper: id of the fingers' actuator.
        actuators: ids of the actuators of the arm's joints.
        joints: ids of those joints, in the same order.
    """

    base: int
    tool: int
    home: int
    gripper: int
    actuators: list[int]
    joints: list[int]


@dataclass(frozen=True)
class _FreeBody:
    """A body with a free joint: its id, and the index in qpos at which its pose begins."""

    id: int
    qpos: int


def _load(recipe: MujocoRecipe) -> mujoco.MjModel:
    if not recipe.scene.is_file():
        raise RecipeError(f"the scene '{recipe.scene}' does not exist. Paths are relative to the recipe's folder.")
    try:
        return mujoco.MjModel.from_xml_path(str(recipe.scene))
    except ValueError as error:
        raise RecipeError(f"the scene '{recipe.scene}' is not valid MJCF: {error}.") from error


def _find_rig(model: mujoco.MjModel, recipe: MujocoRecipe) -> _Rig:
    """Return the ids of the elements that the scene must have.

    Raises:
        RecipeError: the scene lacks elements that it or the recipe must name; the message lists all of them.
    """
    kinds = mujoco.mjtObj
    wanted = [("body", kinds.mjOBJ_BODY, "base"), ("site", kinds.mjOBJ_SITE, "tool")]
    wanted += [("keyframe", kinds.mjOBJ_KEY, "home"), ("actuator", kinds.mjOBJ_ACTUATOR, GRIPPER)]
    success = recipe.success
    names = [success.body, success.other]
    wanted += [("body", kinds.mjOBJ_BODY, name) for name in names if name is not None]
    wanted += [("camera", kinds.mjOBJ_CAMERA, c.source) for c in recipe.cameras if c.source is not None]
    problems = [
        unknown(noun, name, _names(model, kind)) for noun, kind, name in wanted if name not in _names(model, kind)
    ]
    loose = _free_bodies(model)
    problems += [unknown("body with a free joint", p.body, loose) for p in recipe.placements if p.body not in loose]
    problems += _rate_problems(recipe.rate_hz, model.opt.timestep)
    if problems:
        raise RecipeError(f"{recipe.scene}: " + " ".join(problems))
    actuators = [a for a in range(model.nu) if model.actuator(a).name != GRIPPER]
    return _Rig(
        base=model.body("base").id,
        tool=model.site("tool").id,
        home=model.key("home").id,
        gripper=model.actuator(GRIPPER).id,
        actuators=actuators,
        joints=[int(model.actuator_trnid[a, 0]) for a in actuators],
    )


def _rate_problems(rate_hz: float, timestep_s: float) -> list[str]:
    steps = 1 / (rate_hz * timestep_s)
    if round(steps) >= 1 and abs(steps - round(steps)) < 1e-6:
        return []
    return [f"rate_hz {rate_hz:g} is not a whole number of the scene's physics steps of {timestep_s:g} s."]


def _free_bodies(model: mujoco.MjModel) -> dict[str, _FreeBody]:
    """Return name -> body, for every body with a free joint."""
    free = np.flatnonzero(model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE))
    bodies = [_FreeBody(int(model.jnt_bodyid[j]), int(model.jnt_qposadr[j])) for j in free]
    return {model.body(body.id).name: body for body in bodies}


def _names(model: mujoco.MjModel, kind: mujoco.mjtObj) -> list[str]:
    counts = {
        mujoco.mjtObj.mjOBJ_BODY: model.nbody,
        mujoco.mjtObj.mjOBJ_SITE: model.nsite,
        mujoco.mjtObj.mjOBJ_KEY: model.nkey,
        mujoco.mjtObj.mjOBJ_ACTUATOR: model.nu,
        mujoco.mjtObj.mjOBJ_CAMERA: model.ncam,
    }
    names = [mujoco.mj_id2name(model, kind, i) for i in range(counts[kind])]
    return [name for name in names if name]


def _free_spot(
    placement: PlacementRecipe, radius: float, taken: list[tuple[Vector, float]], rng: np.random.Generator
) -> Vector:
    """Draw a place in the world frame, (2,) [m], at which a round object of that radius overlaps no placed object."""
    low, high = np.transpose([placement.x, placement.y])
    for _ in range(PLACEMENT_TRIES):
        spot = rng.uniform(low, high)
        if all(np.linalg.norm(spot - other) > radius + reach for other, reach in taken):
            return spot
    raise WorldError(
        f"no free place for '{placement.body}' in x {low[0]:g} to {high[0]:g} m, y {low[1]:g} to {high[1]:g} m after "
        f"{PLACEMENT_TRIES} draws. Make its area in the recipe larger."
    )
