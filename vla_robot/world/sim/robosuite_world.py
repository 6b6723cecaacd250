"""Presents robosuite's single-arm tasks as worlds.

Differences from robosuite that a user should know:
- Actions are in metres and radians in the base frame and the gripper is 1 = open, 0 = closed. robosuite's own action
  is a fraction of its controller's output range, and its gripper is -1 = open, +1 = closed.
- Resets are soft (3 ms instead of 2.6 s) and repeatable: the same seed gives the same state, whatever ran before.
- Images are upright; robosuite's own are upside down.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import RecipeError, unknown
from vla_robot.core.geometry import half_space_rotvec, quat_from_matrix
from vla_robot.core.host.optional import require
from vla_robot.core.language.boxes import Box
from vla_robot.core.messages import Vector
from vla_robot.recipe.env import RobosuiteRecipe
from vla_robot.world.sim.render import COLLISION_GEOMS, Renderer, start_mujoco
from vla_robot.world.sim.robosuite_calls import quiet, seeded
from vla_robot.world.sim.sim_embodiment import MAX_OPENING_M, embodiment_of
from vla_robot.world.sim.sim_world import SimWorld
from vla_robot.world.sim.workspace import reach_m

BUILD_SEED = 0
"""robosuite draws object sizes while it builds the model; a fixed seed makes every process build the same model."""

SETTLE_STEPS = 10
"""Number of control steps after a reset in which the gripper opens; ten take it from closed to open."""

TASKS = ("Lift", "Stack", "NutAssembly", "NutAssemblySquare", "NutAssemblyRound", "PickPlace", "PickPlaceSingle",
         "PickPlaceMilk", "PickPlaceBread", "PickPlaceCereal", "PickPlaceCan", "Door", "ToolHang")  # fmt: skip
"""robosuite's tasks for one arm with a gripper. Each is built by a test."""

ARMS = ("Panda", "UR5e", "IIWA", "Kinova3")
"""robosuite's arms on a fixed base whose gripper has two fingers. Each is built by a test."""

MAX_PADS_M = 0.15
"""Largest distance of the pads of a gripper with turning fingers; Robotiq's 140 opens to 0.125 m."""
FAR_M = 1.0
"""Largest distance of the pads that MuJoCo computes."""

OUR_TASKS = {"LiftColour": "vla_robot.world.sim.lift_colour", "LiftSome": "vla_robot.world.sim.lift_colour"}
"""This project's tasks for robosuite -> the module whose import registers them."""

ACTION_DIM = 7
"""Dimensions of an action of an arm with a gripper: a translation, a rotation and the fingers."""
SLIDE = 2
"""mujoco.mjtJoint.mjJNT_SLIDE; mujoco is imported by `start_mujoco` only."""


class RobosuiteWorld(SimWorld[RobosuiteRecipe]):
    """The port World for one robosuite task."""

    def __init__(self, recipe: RobosuiteRecipe, privileged: bool = False, warm: bool = True) -> None:
        """
        Args:
            recipe: a recipe of kind "robosuite".
            privileged: whether to put the simulator's state into `Observation.privileged`.
            warm: render a frame now: OpenGL takes a second to start, and may fail. Otherwise the first reset does.

        Raises:
            RecipeError: robosuite has no such task, arm or camera, or it does not fit an arm with a gripper.
            WorldError: OpenGL cannot start.
        """
        super().__init__(recipe, privileged)
        self._env: Any = _make(recipe)
        self._robot: Any = self._env.robots[0]
        self._mujoco: Any = import_module("mujoco")
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._require_cameras(self._model)
        self._renderer = Renderer(self._model, recipe.shadows, COLLISION_GEOMS, recipe.mesh_cell_m)
        self._pads = _pads(self._model, self._robot.gripper[self._arm])
        opening_m = MAX_OPENING_M if self._pads is None else MAX_PADS_M
        self.embodiment = embodiment_of(recipe, recipe.arm.lower(), self._reach_m(), opening_m)
        self._scale = _controller_scale(self._robot)
        self._begin(0)  # the first step compiles code, which takes seconds
        if warm:
            self._observe()

    def _begin(self, seed: int) -> None:
        if hasattr(self._env, "choose_target"):
            self.instruction = self._recipe.instruction.format(target=self._env.choose_target(seed))
        with seeded(seed):
            self._env.reset()
        self._robot.gripper[self._arm].current_action = np.zeros(self._robot.gripper[self._arm].dof)
        self._data.qacc_warmstart[:] = 0
        still = np.zeros(len(self.embodiment.action))
        still[-1] = 1.0
        for _ in range(SETTLE_STEPS):
            self._execute(still)

    def outlines(self) -> dict[str, dict[str, Box]]:
        """Return camera name -> object name -> box; see `OutlinesObjects`."""
        self._require_open()
        roots = self._model.body_rootid[self._model.geom_bodyid]  # of each geom
        bodies = self._movable_bodies()
        found: dict[str, dict[str, Box]] = {}
        for camera in self._recipe.cameras:
            geoms = self._renderer.geoms(self._data, camera)
            seen = np.where(geoms < 0, -1, roots[geoms])
            around = {name: _around(seen == body) for name, body in bodies.items()}
            found[camera.name] = {name: box for name, box in around.items() if box is not None}
        return found

    def close(self) -> None:
        if self._open:
            super().close()
            self._env.close()

    @property
    def _arm(self) -> str:
        return self._robot.arms[0]

    def _failed(self) -> bool:
        return hasattr(self._env, "failed") and self._env.failed()

    def _execute(self, action: Vector) -> None:
        """Execute (7,) metres, radians and 1 = open as fractions of the controller's range and +1 = closed."""
        gripper = 1.0 - 2.0 * action[-1]
        self._env.step(np.append(np.clip(action[:-1] / self._scale, -1, 1), gripper))

    def _succeeds(self) -> bool:
        return bool(self._env._check_success())

    def _state(self) -> Vector:
        position, rotation = self._tool_in_base()
        return np.concatenate([position, half_space_rotvec(quat_from_matrix(rotation)), [self._opening()]])

    def _tool_in_base(self) -> tuple[Vector, np.ndarray]:
        site = self._robot.eef_site_id[self._arm]
        R_base = self._base_rotation()
        position = R_base.T @ (self._data.site_xpos[site] - self._base_position())
        return position, R_base.T @ self._data.site_xmat[site].reshape(3, 3)

    def _opening(self) -> float:
        """Return the gripper's opening [m]: the travel of sliding fingers, or the gap between turning fingers' pads."""
        if self._pads is None:
            joints = self._robot._ref_gripper_joint_pos_indexes[self._arm]
            return float(np.abs(self._data.qpos[joints]).sum())
        # Contacts are soft: pads that are pressed together overlap by some micrometres.
        return max(0.0, float(self._mujoco.mj_geomDistance(self._model, self._data, *self._pads, FAR_M, None)))

    def _reach_m(self) -> float:
        base = self._data.body(self._robot.robot_model.root_body).id
        return reach_m(self._model, base, self._robot.eef_site_id[self._arm])

    def _base_position(self) -> Vector:
        return self._data.body(self._robot.robot_model.root_body).xpos

    def _base_rotation(self) -> np.ndarray:
        return self._data.body(self._robot.robot_model.root_body).xmat.reshape(3, 3)

    def _truth(self, state: Vector) -> dict[str, Vector]:
        truth = {"eef_pos": state[:3], "eef_rot": state[3:6], "gripper_width": state[6:7]}
        R_base, base = self._base_rotation(), self._base_position()
        for name, body in self._movable_bodies().items():
            truth[f"{name}_pos"] = R_base.T @ (self._data.xpos[body] - base)
            truth[f"{name}_mat"] = (R_base.T @ self._data.xmat[body].reshape(3, 3)).ravel()
        for name, point in self._landmarks().items():
            truth[name] = R_base.T @ (point - base)
        for name, joint in self._mechanism().items():
            truth[name] = self._data.qpos[joint : joint + 1].copy()
        return truth

    def _landmarks(self) -> dict[str, Vector]:
        """Return goals and handles by name, (3,) in the world frame [m]."""
        points: dict[str, Vector] = {}
        if hasattr(self._env, "target_bin_placements"):
            points |= {
                f"{o.name}_goal_pos": goal
                for o, goal in zip(self._env.objects, self._env.target_bin_placements, strict=True)
            }
        if hasattr(self._env, "door_handle_site_id"):
            points["handle_pos"] = self._data.site_xpos[self._env.door_handle_site_id]
        return points

    def _mechanism(self) -> dict[str, int]:
        """Return name -> index in qpos of a door's hinge and latch [rad], where the task has them."""
        names = {"hinge_angle": "hinge_qpos_addr", "latch_angle": "handle_qpos_addr"}
        return {name: getattr(self._env, address) for name, address in names.items() if hasattr(self._env, address)}

    def _movable_bodies(self) -> dict[str, int]:
        """Return object name -> body id, for every object of the task that has joints."""
        objects = self._env.model.mujoco_objects
        return {o.name: self._env.sim.model.body_name2id(o.root_body) for o in objects if o.joints}


def _around(pixels: NDArray[np.bool_]) -> Box | None:
    """Return the box around the pixels that are True of (H, W); None if there is none."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    H, W = pixels.shape
    return Box(rows[0] / H, columns[0] / W, (rows[-1] + 1) / H, (columns[-1] + 1) / W)


def _make(recipe: RobosuiteRecipe) -> Any:
    require("robosuite", "sim", "a robosuite world")
    start_mujoco()
    with quiet():
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.robots import ROBOT_CLASS_MAPPING

        if recipe.task in OUR_TASKS:
            import_module(OUR_TASKS[recipe.task])
        else:
            _require_offered("task", recipe.task, TASKS, robosuite.ALL_ENVIRONMENTS, OUR_TASKS)
        _require_offered("arm", recipe.arm, ARMS, ROBOT_CLASS_MAPPING)
        config: Any = load_composite_controller_config(controller="BASIC")
        limits = [recipe.max_step_m] * 3 + [recipe.max_step_rad] * 3
        for part in config["body_parts"].values():
            if part.get("type") == "OSC_POSE":
                part |= {"output_max": limits, "output_min": [-limit for limit in limits]}
        with seeded(BUILD_SEED), _told_by_robosuite(recipe):
            env = robosuite.make(
                recipe.task,
                robots=recipe.arm,
                controller_configs=config,
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=recipe.rate_hz,
                ignore_done=True,
                hard_reset=False,
            )
    _require_one_arm(recipe, env)
    # robosuite updates some forty observables in every physics step, which nothing here reads.
    # The dictionary itself stays, since PickPlace switches its entries at every reset.
    env._update_observables = lambda force=False: None
    env._get_observations = lambda force_update=False: OrderedDict()
    return env


def _require_offered(
    what: str, name: str, offered: Sequence[str], known: Iterable[str], more: Iterable[str] = ()
) -> None:
    """Raise RecipeError unless robosuite's task or arm is in `offered`: those that a test builds."""
    if name in offered:
        return
    available = [*offered, *more]
    if name in known:
        raise RecipeError(
            f"robosuite's {what} '{name}' is not supported: a world has one arm on a fixed base with a gripper of two "
            f"fingers. Available: {', '.join(sorted(available))}."
        )
    raise RecipeError(unknown(f"robosuite {what}", name, available))


@contextlib.contextmanager
def _told_by_robosuite(recipe: RobosuiteRecipe) -> Iterator[None]:
    """Turn any exception that robosuite raises while it builds into a RecipeError of one line."""
    try:
        yield
    except Exception as error:  # robosuite has no error types: it raises assertions, key errors and MuJoCo's errors
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"robosuite cannot build task '{recipe.task}' with arm '{recipe.arm}': {said}.") from error


def _require_one_arm(recipe: RobosuiteRecipe, env: Any) -> None:
    """Raise RecipeError unless the task takes this world's actions: six numbers for the tool, one for the fingers."""
    arms = [arm for robot in env.robots for arm in robot.arms]
    if len(arms) == 1 and env.action_dim == ACTION_DIM:
        return
    env.close()
    raise RecipeError(
        f"robosuite's task '{recipe.task}' with arm '{recipe.arm}' has {len(arms)} arm(s) and takes {env.action_dim} "
        f"numbers an action; a world has one arm with a gripper, which is {ACTION_DIM}."
    )


def _pads(model: Any, gripper: Any) -> tuple[int, int] | None:
    """Return the ids of the pads, whose gap is the opening; None for fingers that slide."""
    if all(model.joint(name).type[0] == SLIDE for name in gripper.joints):
        return None
    left, right = (model.geom(gripper.important_geoms[f"{side}_fingerpad"][0]).id for side in ("left", "right"))
    return left, right


def _controller_scale(robot: Any) -> Vector:
    """Return the controller's largest step, (6,) [m] and [rad]."""
    return np.asarray(robot.part_controllers[robot.arms[0]].output_max, dtype=np.float64)
