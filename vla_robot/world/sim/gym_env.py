"""Presents worlds as gymnasium environments.

    import gymnasium
    import vla_robot.world.sim.gym_env            # registers every recipe of envs/

    env = gymnasium.make("vla_robot/Lift-v0")

gymnasium 1.x loads no plug-ins by itself; `gymnasium.make("vla_robot.world.sim.gym_env:vla_robot/Lift-v0")` needs no
second import.

    envs/lift.toml            vla_robot/Lift-v0
    envs/pick_place_can.toml  vla_robot/PickPlaceCan-v0
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import WorldError, unknown
from vla_robot.core.messages import Image, Observation, StepResult
from vla_robot.core.ports import World
from vla_robot.recipe import available, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.world.kinds import build_world

NAMESPACE = "vla_robot"
SEEDS = 2**31

GymObservation = dict[str, Any]
"""{"state": (S,) float64, "images": {camera: (H, W, 3) uint8}}; no images where the world has no cameras."""


class WorldEnv(gymnasium.Env[GymObservation, np.ndarray]):
    """A gymnasium environment of a world.

    The action is the embodiment's, (D,) in metres and radians; one outside of its space raises ContractError and is not
    clipped (wrap the environment in gymnasium.wrappers.ClipAction for that). The reward is 1 while the task's success
    test holds, else 0. `info` holds "success", "executed" (the action that was sent to the arm), "clamps" and
    "instruction". After `reset`, "executed" is NaN: vector environments stack infos, so that it must be an array.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, gymnasium's own way

    def __init__(self, world: World, render_mode: str | None = None) -> None:
        """
        Args:
            world: the world; `close` closes it.
            render_mode: "rgb_array" makes `render` return the first camera's frame.

        Raises:
            WorldError: the render mode is unknown.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise WorldError(unknown("render mode", render_mode, self.metadata["render_modes"]))
        self._world = world
        self._latest: Observation | None = None
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": world.embodiment.rate_hz}
        self.observation_space = observation_space(world.embodiment)
        self.action_space = action_space(world.embodiment)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Begin an episode; without a seed, draw one from the generator that the last given seed initialised."""
        super().reset(seed=seed)
        observation = self._world.reset(int(self.np_random.integers(SEEDS)) if seed is None else seed)
        return self._show(observation), {
            "success": False,
            "executed": np.full(self.action_space.shape or (), np.nan),
            "clamps": [],
            "instruction": observation.instruction,
        }

    def step(self, action: np.ndarray) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        result = self._world.step(np.asarray(action, dtype=np.float64))
        observation = self._show(result.observation)
        return observation, float(result.success), result.terminated, result.truncated, _info(result)

    def render(self) -> Image | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the first camera's latest frame, (H, W, 3) uint8, in mode "rgb_array"; None without a mode.

        Raises:
            WorldError: `reset` was not called, or the world has no camera.
        """
        if self.render_mode is None:
            return None
        if self._latest is None:
            raise WorldError("there is nothing to render before reset().")
        if not self._latest.images:
            raise WorldError("this world has no camera to render; add a [[cameras]] table to its recipe.")
        return next(iter(self._latest.images.values())).copy()

    def close(self) -> None:
        self._world.close()

    def _show(self, observation: Observation) -> GymObservation:
        self._latest = observation
        shown: GymObservation = {"state": observation.state}
        if observation.images:  # gymnasium refuses an empty dictionary
            shown["images"] = dict(observation.images)
        return shown


def observation_space(embodiment: Embodiment) -> spaces.Dict:
    """Return the space of observations: the arm's state in its units, and frames by camera name if there are any."""
    frames = [(c.name, spaces.Box(0, 255, (c.height, c.width, 3), np.uint8)) for c in embodiment.cameras]
    low, high = (np.array([getattr(d, end) for d in embodiment.state]) for end in ("low", "high"))
    state = spaces.Box(low, high, dtype=np.float64)
    return spaces.Dict({"state": state, "images": spaces.Dict(frames)} if frames else {"state": state})


def action_space(embodiment: Embodiment) -> spaces.Box:
    """Return the space of actions, with their limits in their units."""
    return spaces.Box(embodiment.action.low, embodiment.action.high, dtype=np.float64)


def make_env(recipe: str, render_mode: str | None = None) -> WorldEnv:
    """Build the environment of a recipe in envs/, by name or path.

    OpenGL starts with the first reset: an AsyncVectorEnv builds an environment to read its spaces, and then forks.
    """
    return WorldEnv(build_world(read(EnvRecipe, recipe), warm=False), render_mode)


def env_id(name: str) -> str:
    """Return the id under which gymnasium knows the recipe of that name.

    >>> env_id("pick_place_can")
    'vla_robot/PickPlaceCan-v0'
    """
    return f"{NAMESPACE}/{''.join(part.capitalize() for part in name.split('_'))}-v0"


def register_all() -> None:
    """Register every recipe of envs/ itself with gymnasium; may be called again when there are new ones.

    Suites lie in folders below: they stand for many tasks, and run in another environment.
    """
    for name in available("envs"):
        if "/" not in name and env_id(name) not in gymnasium.registry:
            gymnasium.register(id=env_id(name), entry_point=f"{__name__}:make_env", kwargs={"recipe": name})


def _info(result: StepResult) -> dict[str, Any]:
    """Return the info of a step, without stamps: gymnasium expects equal infos from equal seeds and actions."""
    assert result.executed is not None, "a world that stepped has executed an action"
    return {
        "success": result.success,
        "executed": result.executed.copy(),
        "clamps": [asdict(clamp) for clamp in result.clamps],
        "instruction": result.observation.instruction,
    }


register_all()
