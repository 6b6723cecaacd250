"""Robot kind "phantom": an arm that does not wait for its next action, as a real one does not; it has no motors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_example.point import REACH_M, embodiment_of
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, RecipeError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector, clamps_of
from vla_robot.core.ports import Arm
from vla_robot.recipe import Plugin
from vla_robot.recipe.env import CameraRecipe, EnvRecipe


@dataclass(frozen=True, kw_only=True)
class PhantomRecipe(EnvRecipe):
    """An arm without motors, whose tool reaches each goal within one control step.

    Attributes:
        home_m: where an episode begins, on the x axis of the base [m].
    """

    kind: Literal["phantom"] = "phantom"
    home_m: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.home_m) > REACH_M:
            raise RecipeError(f"home_m is {self.home_m:g}; it must lie between {-REACH_M:g} and {REACH_M:g}")

    def _require_camera(self, camera: CameraRecipe) -> None:
        raise RecipeError(f"camera '{camera.name}': a robot of kind 'phantom' has no cameras")


class Phantom:
    """Implements the port Arm. A driver of a real arm talks to its motors where this one adds up numbers."""

    def __init__(
        self, recipe: PhantomRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None
    ) -> None:
        self._recipe, self._interrupted, self._show = recipe, interrupted, show
        self._position, self._opening, self._step, self._is_closed = np.zeros(3), 1.0, 0, False

    @property
    def embodiment(self) -> Embodiment:
        return embodiment_of(self._recipe, "phantom")

    @property
    def instruction(self) -> str:
        return self._recipe.instruction

    @property
    def can_wait(self) -> bool:
        return False

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return {}

    def reset(self, seed: int) -> Observation:
        """Go home in steps of the largest size; hold where an interruption comes. A real arm draws nothing by seed."""
        home = np.array([self._recipe.home_m, 0.0, 0.0])
        while not self._interrupted() and not np.array_equal(self._position, home):
            largest = self._recipe.max_step_m
            self._move(np.clip(home - self._position, -largest, largest))
            if self._show is not None:
                break
        self._step, self._opening = 0, 1.0
        return self.look()

    def command(self, action: Vector) -> StepResult:
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ContractError(f"an action has 7 finite numbers, got {action.tolist()}.")
        executed = np.array([*self._move(action[:3]), *action[3:]])
        self._opening = float(action[6])
        clamps = clamps_of(self.embodiment.action.names, "position", action, executed)
        return replace(self._tick(executed), clamps=clamps)

    def hold(self) -> StepResult:
        return self._tick(np.array([*np.zeros(6), self._opening]))

    def look(self) -> Observation:
        if self._is_closed:
            raise WorldError("this arm was let go; connect again.")
        return Observation({}, self._position.copy(), self.instruction, time.monotonic_ns(), self._step)

    def stop(self) -> None:
        """It rests whenever nothing is sent."""

    def close(self) -> None:
        """Stop; from now on it takes no command."""
        self._is_closed = True

    def _move(self, wanted: Vector) -> Vector:
        """Send one goal, or only say it in a dry run: (3,) the change that the reach allows [m]."""
        change = np.clip(wanted, -REACH_M - self._position, REACH_M - self._position)
        goal = self._position + change
        if self._show is not None:
            self._show(f"would go to {np.round(goal, 4).tolist()} m")
        else:
            self._position = goal
        return change

    def _tick(self, executed: Vector) -> StepResult:
        """What a dry run was told is not executed, and a robot does not know whether its task is done."""
        self._step += 1
        return StepResult(
            observation=self.look(),
            executed=None if self._show is not None else executed,
            success=False,
            terminated=False,
            truncated=self._step >= self._recipe.horizon,
        )


def build(recipe: PhantomRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None) -> Arm:
    """Nothing moves before `reset`."""
    return Phantom(recipe, interrupted, show)


PLUGIN = Plugin(PhantomRecipe, "an arm without motors, for vla bridge", build)
