"""The base of the simulated worlds: counts steps, ends episodes and makes observations."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError, WorldError, unknown
from vla_robot.core.messages import Image, Observation, StepResult, Vector
from vla_robot.core.seeds import require_seed
from vla_robot.recipe.env import SimulationRecipe
from vla_robot.world.sim.render import Renderer
from vla_robot.world.sim.sim_embodiment import check_action


class SimWorld[R: SimulationRecipe](ABC):
    """The port World for a MuJoCo simulation. A subclass sets the attributes below in its constructor.

    Attributes:
        embodiment: meaning of actions and state.
        instruction: instruction of the present episode, which some tasks choose by the seed.
        _data: MuJoCo's state, an MjData.
        _renderer: renderer of the model.
    """

    embodiment: Embodiment
    _data: Any
    _renderer: Renderer

    def __init__(self, recipe: R, privileged: bool) -> None:
        self._recipe, self._privileged = recipe, privileged
        self.instruction = recipe.instruction
        self._step = self._held = 0
        self._open = self._renders = True

    def reset(self, seed: int) -> Observation:
        """Begin an episode: arm and objects are placed and at rest. The same seed gives the same state."""
        self._require_open()
        self._renders = True
        self._begin(require_seed(seed, largest=None))
        self._step = self._held = 0
        return self._observe()

    def step(self, action: Vector) -> StepResult:
        return self._stepped(action, renders=True)

    def step_without_frames(self, action: Vector) -> StepResult:
        return self._stepped(action, renders=False)

    def look(self) -> Observation:
        self._require_open()
        self._renders = True
        return self._observe()

    def close(self) -> None:
        self._open = False
        self._renderer.close()

    def _stepped(self, action: Vector, renders: bool) -> StepResult:
        self._require_open()
        self._renders = renders
        values = check_action(action, self.embodiment.action)
        command_ns = time.monotonic_ns()
        self._execute(values)
        self._step += 1
        success = self._succeeds()
        self._held = self._held + 1 if success else 0
        terminated = self._held >= self._recipe.success_hold or self._failed()
        truncated = self._step >= self._recipe.horizon
        self._renders |= terminated or truncated
        return StepResult(
            observation=self._observe(),
            executed=values,
            success=success,
            terminated=terminated,
            truncated=truncated,
            command_ns=command_ns,
        )

    def _require_open(self) -> None:
        if not self._open:
            raise WorldError("this world was closed; build a new one.")

    def _require_cameras(self, model: Any) -> None:
        """Raise RecipeError if the recipe names a camera that the scene does not have."""
        known = [model.cam(i).name for i in range(model.ncam)]
        for camera in self._recipe.cameras:
            if camera.source is not None and camera.source not in known:
                raise RecipeError(unknown(f"source of camera '{camera.name}'", camera.source, known))

    def _observe(self) -> Observation:
        stamp_ns = time.monotonic_ns()
        state = self._state()
        return Observation(
            images=self._frames() if self._renders else {},
            state=state,
            instruction=self.instruction,
            stamp_ns=stamp_ns,
            step=self._step,
            privileged=self._truth(state) if self._privileged else {},
        )

    def _frames(self) -> dict[str, Image]:
        return {camera.name: self._renderer.frame(self._data, camera) for camera in self._recipe.cameras}

    @abstractmethod
    def _begin(self, seed: int) -> None:
        """Set the state in which an episode of this seed begins."""

    @abstractmethod
    def _execute(self, action: Vector) -> None:
        """Execute a valid action for one control step."""

    @abstractmethod
    def _succeeds(self) -> bool:
        """Return whether the task is done now."""

    def _failed(self) -> bool:
        """Return whether the task has failed for good."""
        return False

    @abstractmethod
    def _state(self) -> Vector:
        """Return the state, (7,): tool position [m] and axis-angle [rad] in the base frame, opening [m]."""

    @abstractmethod
    def _truth(self, state: Vector) -> dict[str, Vector]:
        """Return the privileged values: tool, movable objects and the goal, with positions in the base frame [m]."""
