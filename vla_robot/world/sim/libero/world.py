"""Presents a task of LIBERO as a world, by the reference protocol.

Differences from the benchmark's own environment that a user should know:
- Actions are in metres and radians and the gripper is 1 = open, 0 = closed. LIBERO's are fractions of its controller's
  range, and its gripper is -1 = open, +1 = closed.
- Frames are upright. LIBERO's are upside down, and published policies saw them turned by 180 degrees: mirrored.
- Resets are soft: 0.03 s of CPU in the place of 2.4, and the same bits whatever ran before.

An observation is the reference's to the bit. Its state is the position of the grip site and the rotation of the hand,
both in the world's frame, and both fingers. The quaternion is taken as it comes, so that the angle goes from 0 to 2 pi:
the other choice cost published policies 14 to 39 of 100 successes. It shows the scene one physics step (2 ms) before
the end of the control step, when robosuite's observables are sampled; success and privileged values are of the end.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.geometry import half_space_rotvec, quat_from_matrix
from vla_robot.core.messages import Image, Vector
from vla_robot.recipe.env import LiberoRecipe
from vla_robot.world.sim.libero.benchmark import read_task
from vla_robot.world.sim.libero.goal import PlacingTruth
from vla_robot.world.sim.libero.lean_physics import LeanPhysics
from vla_robot.world.sim.libero.moved_objects import ObjectMover, Offsets
from vla_robot.world.sim.render import COLLISION_GEOMS, Renderer, start_mujoco
from vla_robot.world.sim.robosuite_calls import quiet, seeded
from vla_robot.world.sim.sim_embodiment import embodiment_of
from vla_robot.world.sim.sim_world import SimWorld
from vla_robot.world.sim.workspace import reach_m

FIXTURE_SEED = 0
"""Seed of numpy's generator before every reset, which draws the places of cabinets and stoves. No state holds them."""

OTHER_SEEDS = 1000
"""First of the seeds of other states than the benchmark's; 0 is FIXTURE_SEED's."""

UNTURNED = (1.0, 0.0, 0.0, 0.0)

FINGER_M = 0.05
"""Bound of a finger's position [m]; the joints end at 0.04, softly."""

SAMPLED_SUBSTEP = 24
"""Number of the physics step, of 25 in a control step, after which robosuite 1.4.0 samples its observables. Their clock
runs since the reset, in which two forced updates advance it by one physics step each."""

STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
"""The action of the settling steps: no motion, gripper open."""


MOVED_SETTLE_STEPS = 20
"""Control steps after which moved objects must still rest where they were put: one second."""


class LiberoWorld(SimWorld[LiberoRecipe]):
    """The port World for one task."""

    def __init__(self, recipe: LiberoRecipe, privileged: bool = False, warm: bool = True) -> None:
        """
        Args:
            recipe: a recipe of kind "libero" that names a task.
            privileged: whether to put the simulator's state into `Observation.privileged`.
            warm: render a frame now: OpenGL takes a second to start, and may fail. Otherwise the first reset does.

        Raises:
            RecipeError: the recipe stands for a whole suite, or names a camera that the scene does not have.
            WorldError: OpenGL cannot start, or the benchmark's package is incomplete.
        """
        super().__init__(recipe, privileged)
        recipe.require_one()
        start_mujoco()
        self._task = read_task(recipe)
        self.instruction = recipe.instruction or self._task.instruction
        self._env: Any = _make(str(self._task.scene), recipe)
        self._robot: Any = self._env.robots[0]
        self._mujoco: Any = import_module("mujoco")
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._require_cameras(self._model)
        self._physics = LeanPhysics(self._env.sim)
        self._renderer = Renderer(self._model, recipe.shadows, COLLISION_GEOMS, recipe.mesh_cell_m)
        self._base = self._model.body(self._robot.robot_model.root_body).id
        self._hand = self._model.body(self._robot.robot_model.eef_name).id
        self._scale = np.asarray(self._robot.controller.output_max, dtype=np.float64)
        self._placings = PlacingTruth(self._env, self._model, self._data)
        self._mover = ObjectMover(self._model, self._data, self._env.obj_body_id)
        self.embodiment = self._embodiment()
        self._substep, self._is_seen = 0, False
        self._seen: tuple[Vector, dict[str, Image]] = np.zeros(0), {}
        self._env._update_observables = self._after_substep
        self._env._get_observations = lambda force_update=False: OrderedDict()
        self._place(0)
        self._act(STILL, is_seen=False)  # the first step compiles code, which takes seconds
        if warm:
            self._sample()

    def close(self) -> None:
        if self._open:
            super().close()
            self._env.close()

    def _begin(self, seed: int) -> None:
        offsets = self._moves(seed)
        self._place(seed)
        if offsets:  # a further forward pass would change the last bits
            self._mover.shift(offsets)
        for _ in range(self._recipe.settle_steps - 1):
            self._act(STILL, is_seen=False)
        self._placings.begin()
        if self._recipe.settle_steps:
            self._execute(STILL)
        else:
            self._seen = self._sample()

    def _moves(self, seed: int) -> Offsets:
        """Return the recipe's shifts of objects for a seed; the world is left in another state."""
        if not self._recipe.move_objects_m:
            return {}

        def settle() -> None:
            for _ in range(max(self._recipe.settle_steps, MOVED_SETTLE_STEPS)):
                self._act(STILL, is_seen=False)

        return self._mover.find(seed, self._recipe.move_objects_m, lambda: self._place(seed), settle)

    def _place(self, seed: int) -> None:
        """Set the initial state of a seed, or draw one, with the same bits whatever ran before.

        robosuite's soft reset leaves the gripper's running action, and MuJoCo's warm start, control and accelerations,
        as the last episode left them.
        """
        if self._recipe.states == "others":
            self._draw(seed)
        else:
            self._reset(FIXTURE_SEED)
            self._env.sim.set_state_from_flattened(self._task.state(seed))
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        for kept in (self._data.qacc_warmstart, self._data.ctrl, self._data.qacc):
            kept[:] = 0
        self._env.sim.forward()
        self._env._post_process()

    def _draw(self, seed: int) -> None:
        """Let the benchmark draw a state as those of its files: the arm near its home, things in their regions."""
        # A thing on a fixture is drawn relative to where that is before it is placed: the origin, in a new simulation.
        for fixture in self._env.fixtures_dict.values():
            body = self._model.body(fixture.root_body).id
            self._model.body_pos[body], self._model.body_quat[body] = 0.0, UNTURNED
        self._reset(OTHER_SEEDS + seed)

    def _reset(self, seed: int) -> None:
        self._mujoco.mj_resetData(self._model, self._data)
        with seeded(seed):
            self._env.reset()

    def _execute(self, action: Vector) -> None:
        self._act(action, is_seen=True)

    def _act(self, action: Vector, is_seen: bool) -> None:
        """Execute (7,) metres, radians and 1 = open as fractions of the controller's range and +1 = closed.

        Args:
            action: a valid action.
            is_seen: whether the observation of this step is needed; settling needs one frame and not ten.
        """
        self._substep, self._is_seen = 0, is_seen
        with self._physics.control_step():
            self._env.step(np.append(action[:-1] / self._scale, 1.0 - 2.0 * action[-1]))

    def _after_substep(self, force: bool = False) -> None:
        """Take the place of robosuite's update of some forty observables after every physics step."""
        self._substep += 1
        if self._is_seen and self._substep == SAMPLED_SUBSTEP:
            self._seen = self._sample()

    def _succeeds(self) -> bool:
        return bool(self._env._check_success())

    def _sample(self) -> tuple[Vector, dict[str, Image]]:
        """Return the state, (8,), and the frames at this physics step."""
        fingers = self._data.qpos[self._robot._ref_gripper_joint_pos_indexes]
        state = np.concatenate([self._grip_site(), raw_rotvec(self._data.xquat[self._hand]), fingers])
        return state, super()._frames() if self._renders else {}

    def _state(self) -> Vector:
        return self._seen[0].copy()

    def _frames(self) -> dict[str, Image]:
        if not self._seen[1]:  # the step left its frames out
            return super()._frames()
        return {name: image.copy() for name, image in self._seen[1].items()}

    def _grip_site(self) -> Vector:
        return self._data.site_xpos[self._robot.eef_site_id]

    def _truth(self, state: Vector) -> dict[str, Vector]:
        left, right = self._robot._ref_gripper_joint_pos_indexes
        R_base, base = self._data.xmat[self._base].reshape(3, 3), self._data.xpos[self._base]
        rotation = R_base.T @ self._data.site_xmat[self._robot.eef_site_id].reshape(3, 3)
        truth = {
            "eef_pos": R_base.T @ (self._grip_site() - base),
            "eef_rot": half_space_rotvec(quat_from_matrix(rotation)),
            "gripper_width": np.array([self._data.qpos[left] - self._data.qpos[right]]),
            "finger_speed": np.abs(self._data.qvel[self._robot._ref_gripper_joint_vel_indexes]).max(keepdims=True),
        }
        for name, body in self._env.obj_body_id.items():
            truth[f"{name}_pos"] = R_base.T @ (self._data.xpos[body] - base)
            truth[f"{name}_mat"] = (R_base.T @ self._data.xmat[body].reshape(3, 3)).ravel()
        return truth | self._placings.now(self._data.xpos[self._base])

    def _embodiment(self) -> Embodiment:
        """Return the arm's embodiment with the reference's state."""
        reach = reach_m(self._model, self._base, self._robot.eef_site_id)
        base = self._data.xpos[self._base]
        places = zip(("world_x", "world_y", "world_z"), base, strict=True)
        state = (
            *(Dim(name, "m", float(at) - reach, float(at) + reach) for name, at in places),
            *(Dim(name, "rad", -2 * math.pi, 2 * math.pi) for name in ("hand_rx", "hand_ry", "hand_rz")),
            *(Dim(name, "m", -FINGER_M, FINGER_M) for name in ("finger_left", "finger_right")),
        )
        return replace(embodiment_of(self._recipe, "panda", reach), state=state)


def raw_rotvec(quat: Vector) -> Vector:
    """Convert a (4,) quaternion w, x, y, z as it comes to a (3,) rotation vector [rad], angle from 0 to 2 pi.

    q and -q give different vectors. Source: robosuite 1.4.0, utils/transform_utils.py, quat2axisangle.
    """
    w = min(1.0, max(-1.0, float(quat[0])))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return quat[1:] * 2.0 * math.acos(w) / sine


def _make(scene: str, recipe: LiberoRecipe) -> Any:
    """Build the benchmark's environment, without a renderer of its own."""
    with quiet():
        robosuite: Any = import_module("robosuite")
        envs: Any = import_module("libero.libero.envs")
        problem = import_module("libero.libero.envs.bddl_utils").get_problem_info(scene)["problem_name"]
    with quiet(), seeded(FIXTURE_SEED):
        env = envs.TASK_MAPPING[problem](
            scene,
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            initialization_noise="default" if recipe.states == "others" else None,  # 0.02 rad of each joint
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=recipe.rate_hz,
            ignore_done=True,
            hard_reset=False,
        )
    return env
