"""World kind "point": a tool without an arm, which goes exactly where it is told, and a target to be reached."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_robot.core.embodiment import ActionSpace, Dim, Embodiment
from vla_robot.core.errors import ContractError, RecipeError, WorldError
from vla_robot.core.messages import Observation, StepResult, Vector
from vla_robot.core.ports import VisibleWorld
from vla_robot.core.seeds import require_seed
from vla_robot.recipe import Plugin
from vla_robot.recipe.env import CameraRecipe, EnvRecipe

REACH_M = 1.0


@dataclass(frozen=True, kw_only=True)
class PointRecipe(EnvRecipe):
    """A tool that goes exactly where it is told; an episode succeeds when it is near a target on the x axis.

    Attributes:
        target_m: where the target is, from where the tool begins [m].
        near_m: how near is near enough [m].
    """

    kind: Literal["point"] = "point"
    target_m: float = 0.06
    near_m: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_m <= 0:
            raise RecipeError(f"near_m is {self.near_m:g}; it must be above 0")

    def _require_camera(self, camera: CameraRecipe) -> None:
        raise RecipeError(f"camera '{camera.name}': a world of kind 'point' has nothing to see")


def embodiment_of(recipe: EnvRecipe, name: str) -> Embodiment:
    """A tool that is moved by changes of its pose, without a camera; its state is the position in metres."""
    moves = [Dim(axis, "m", -recipe.max_step_m, recipe.max_step_m) for axis in ("dx", "dy", "dz")]
    turns = [Dim(axis, "rad", -recipe.max_step_rad, recipe.max_step_rad) for axis in ("droll", "dpitch", "dyaw")]
    return Embodiment(
        name=name,
        action=ActionSpace("eef_delta", "base", (*moves, *turns, Dim("gripper", "1", 0.0, 1.0))),
        state=tuple(Dim(axis, "m", -REACH_M, REACH_M) for axis in ("x", "y", "z")),
        cameras=(),
        rate_hz=recipe.rate_hz,
    )


class PointWorld:
    """Implements the port VisibleWorld. Time moves only in `step`."""

    def __init__(self, recipe: PointRecipe, privileged: bool) -> None:
        self._recipe, self._privileged = recipe, privileged
        self._position, self._step, self._is_closed = np.zeros(3), 0, False

    @property
    def embodiment(self) -> Embodiment:
        return embodiment_of(self._recipe, "point")

    @property
    def instruction(self) -> str:
        return self._recipe.instruction

    def reset(self, seed: int) -> Observation:
        """The same seed gives the same start, whatever ran before."""
        self._require_open()
        require_seed(seed)
        self._position, self._step = np.random.default_rng(seed).uniform(-0.01, 0.01, 3), 0
        return self.look()

    def step(self, action: Vector) -> StepResult:
        self._require_open()
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ContractError(f"an action has 7 finite numbers, got {action.tolist()}.")
        self._position = np.clip(self._position + action[:3], -REACH_M, REACH_M)
        self._step += 1
        success = abs(self._position[0] - self._recipe.target_m) <= self._recipe.near_m
        return StepResult(
            observation=self.look(),
            executed=action.copy(),
            success=bool(success),
            terminated=bool(success),
            truncated=self._step >= self._recipe.horizon,
        )

    def look(self) -> Observation:
        truth = {"target": np.array([self._recipe.target_m, 0.0, 0.0])} if self._privileged else {}
        return Observation({}, self._position.copy(), self.instruction, time.monotonic_ns(), self._step, truth)

    def close(self) -> None:
        """Nothing to release; from now on it takes no command."""
        self._is_closed = True

    def _require_open(self) -> None:
        if self._is_closed:
            raise WorldError("this world is closed; build another one.")


def build(recipe: PointRecipe, privileged: bool, warm: bool) -> VisibleWorld:
    """There is no renderer to warm."""
    return PointWorld(recipe, privileged)


PLUGIN = Plugin(PointRecipe, "a tool that goes exactly where it is told", build)
