"""Presents a task of Meta-World as a world.

Differences from the benchmark's own environment that a user should know:
- Actions are in metres and the gripper is 1 = open, 0 = closed; Meta-World's are fractions of 1 cm and an effort from
  -1 = open to +1 = close.
- A seed chooses the task's parameter set, where `reset(seed=)` of the package ignores it.
- The state is the package's first four numbers: the hand's position and the fingers' distance as a share of 10 cm. Its
  further numbers (objects and the goal) are privileged here, with the action of the package's own scripted policy.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.messages import Vector
from vla_robot.recipe.benchmarks.metaworld import METAWORLD_STATES, METAWORLD_WORDS
from vla_robot.recipe.env import MetaWorldRecipe
from vla_robot.world.sim.render import Renderer, start_mujoco
from vla_robot.world.sim.robosuite_calls import quiet
from vla_robot.world.sim.sim_world import SimWorld

PARAMETER_SEED = 42
"""Seed with which the package draws a task's fifty parameter sets."""

OTHER_SEEDS = 1000
"""First of the seeds with which other parameter sets are drawn, fifty with each."""

GOAL = slice(-3, None)
OBJECT = slice(4, 7)
"""Numbers of the package's observation of 39: the goal's and the first object's position [m]."""


class MetaWorldWorld(SimWorld[MetaWorldRecipe]):
    """The port World for one task."""

    def __init__(self, recipe: MetaWorldRecipe, privileged: bool = False, warm: bool = True) -> None:
        """
        Args:
            recipe: a recipe of kind "metaworld" that names a task.
            privileged: whether to put the simulator's state into `Observation.privileged`.
            warm: render a frame now: OpenGL takes a second to start, and may fail. Otherwise the first reset does.

        Raises:
            RecipeError: the recipe stands for a whole set, or names a camera that the scene does not have.
            WorldError: OpenGL cannot start.
        """
        super().__init__(recipe, privileged)
        task = recipe.require_one()
        start_mujoco()
        self.instruction = recipe.instruction or METAWORLD_WORDS[task]
        with quiet():
            self._name = f"{task}-v3"
            self._package: Any = import_module("metaworld")
            self._sets: tuple[int, list[Any]] = (0, [])
            self._env: Any = import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS[self._name]()
            self._expert: Any = import_module("metaworld.policies").ENV_POLICY_MAP[self._name]()
        self._mujoco: Any = import_module("mujoco")
        self._model, self._data = self._env.model, self._env.data
        self._seen, self._success = np.zeros(0), False
        self._require_cameras(self._model)
        self._renderer = Renderer(self._model, recipe.shadows, mesh_cell_m=recipe.mesh_cell_m)
        self.embodiment = self._embodiment()
        self._begin(0)
        if warm:
            self._frames()

    def close(self) -> None:
        if self._open:
            super().close()
            self._env.close()

    def _begin(self, seed: int) -> None:
        self._mujoco.mj_resetData(self._model, self._data)  # a reset alone leaves MuJoCo's warm start
        self._env.set_task(self._parameter_sets(seed)[seed % METAWORLD_STATES])
        self._seen, _ = self._env.reset()
        self._success = False

    def _parameter_sets(self, seed: int) -> list[Any]:
        """Return the fifty sets of a seed; those that were drawn last are kept."""
        others = OTHER_SEEDS + seed // METAWORLD_STATES
        drawn_with = PARAMETER_SEED if self._recipe.parameters == "benchmark" else others
        if self._sets[0] != drawn_with:
            with quiet():  # it pickles its tasks in memory, and `set_task` reads them back
                self._sets = drawn_with, self._package.MT1(self._name, seed=drawn_with).train_tasks
        return self._sets[1]

    def _execute(self, action: Vector) -> None:
        """Execute (4,) metres and 1 = open as fractions of a centimetre and an effort, +1 to close."""
        fractions = np.append(action[:-1] / self._env.action_scale, 1.0 - 2.0 * action[-1])
        self._seen, _, _, _, info = self._env.step(fractions.clip(-1.0, 1.0))
        self._success = bool(info["success"])

    def _succeeds(self) -> bool:
        return self._success

    def _state(self) -> Vector:
        return self._seen[:4].copy()

    def _truth(self, state: Vector) -> dict[str, Vector]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its own action will be clipped
            fractions = np.clip(self._expert.get_action(self._seen), -1.0, 1.0).astype(np.float64)
        action = np.append(fractions[:3] * self._env.action_scale, (1.0 - fractions[3]) / 2.0)
        return {
            "eef_pos": state[:3].copy(),
            "object_pos": self._seen[OBJECT].copy(),
            "goal_pos": self._seen[GOAL].copy(),
            "expert_action": action,
        }

    def _embodiment(self) -> Embodiment:
        """Return the arm's embodiment. Its base is the world's origin; the hand always points down."""
        reach = self._env._HAND_SPACE
        places = zip(("x", "y", "z"), reach.low, reach.high, strict=True)
        moves = tuple(Dim(n, "m", -self._recipe.max_step_m, self._recipe.max_step_m) for n in ("dx", "dy", "dz"))
        return Embodiment(
            name="sawyer",
            action=ActionSpace("eef_delta", "base", (*moves, Dim("gripper", "1", 0.0, 1.0))),
            state=(*(Dim(n, "m", float(low), float(high)) for n, low, high in places), Dim("fingers", "1", 0.0, 1.0)),
            cameras=tuple(CameraSpec(c.name, c.height, c.width) for c in self._recipe.cameras),
            rate_hz=self._recipe.rate_hz,
        )
