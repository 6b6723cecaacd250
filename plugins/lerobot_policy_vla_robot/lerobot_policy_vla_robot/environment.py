"""Worlds of vla_robot as environments of lerobot: `--env.type=vla_robot --env.task=lift`.

    gym.vector.VectorEnv of lerobot
      FreezeAfterEpisodeEnd (lerobot's): an episode that ended costs nothing while others go on
        WorldEnv: guard, then one step of the world
          the world, in a process of its own, as in `vla run` and `vla eval`

The reward is 1 at the step that ends an episode with success, and 0 otherwise; `is_success` is the outcome that
`vla eval` counts. An episode of seed k begins in the state of seed k, and ends as it does there.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.processor import ObservationProcessorStep, PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray

from lerobot_policy_vla_robot.features import EMBODIMENT_KEY, image_key
from vla_robot.cli.build import build_guard, open_world
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.messages import Observation, Vector
from vla_robot.core.ports import World
from vla_robot.recipe.env_source import find_env

STATE = "agent_pos"
"""Gymnasium's key of the state, which lerobot knows."""

BLACK = (64, 64, 3)
"""Shape of the picture of a world without a camera; lerobot writes videos in any case."""

SEEDS = 2**31
"""Number of seeds to draw from where lerobot gives none."""


class WorldEnv(gym.Env[dict[str, Any], Vector]):
    """One world of vla_robot as a Gymnasium environment.

    Observations are {"pixels": {camera: (H, W, 3) uint8}, "agent_pos": (S,) float64}; actions are (D,) float64. Both
    have the units and the order of `embodiment`.

    Attributes:
        embodiment: meaning of actions, state and cameras.
        task: name of the recipe.
        task_description: the instruction.
    """

    def __init__(self, env: str) -> None:
        """
        Args:
            env: name or path of the world's recipe.

        Raises:
            VlaError: the recipe is wrong, or the world cannot start.
        """
        source = find_env(env)
        self._opened = contextlib.ExitStack()
        self._world: World = self._opened.enter_context(open_world(source.recipe))
        self.embodiment = self._world.embodiment
        self.task = source.name
        self.task_description = self._world.instruction
        self._max_episode_steps = source.recipe.horizon  # lerobot asks for it by this name
        self._guard = build_guard(self.embodiment.action)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": _whole(self.embodiment.rate_hz)}
        self.render_mode = "rgb_array"
        self.observation_space = _observation_space(self.embodiment)
        low, high = self.embodiment.action.low, self.embodiment.action.high
        self.action_space = gym.spaces.Box(low, high, dtype=np.float64)
        self._observation: Observation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode of a seed; without one, of a seed that is drawn."""
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(SEEDS)) if seed is None else seed
        self._observation = self._world.reset(chosen)
        self.task_description = self._observation.instruction
        return _entries(self._observation), {"is_success": False}

    def step(self, action: Vector) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action, cut to the limits of the action space.

        Raises:
            PolicyError: a number is not finite; nothing moved.
        """
        commanded, _ = self._guard.check(np.asarray(action, np.float64))
        result = self._world.step(commanded)
        self._observation = result.observation
        succeeded = result.terminated and result.success
        info = {"is_success": succeeded}
        return _entries(result.observation), float(succeeded), result.terminated, result.truncated, info

    def render(self) -> NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the newest frames of the cameras of the first one's height, side by side; black without a camera."""
        assert self._observation is not None, "reset() comes before render()"
        images = list(self._observation.images.values()) or [np.zeros(BLACK, np.uint8)]
        return np.concatenate([image for image in images if image.shape[0] == images[0].shape[0]], axis=1)

    def close(self) -> None:
        """End the world's process. May be called twice."""
        self._opened.close()


@EnvConfig.register_subclass("vla_robot")
@dataclass
class VlaRobotEnvConfig(EnvConfig):
    """A world of vla_robot, by the name or path of its recipe; its features are known when it is open.

    Attributes:
        task: name or path of the recipe, as `vla run --env` takes it.
    """

    task: str | None = "lift"

    def __post_init__(self) -> None:
        self._embodiment: Embodiment | None = None

    @property
    def embodiment(self) -> Embodiment | None:
        """Meaning of actions, state and cameras; None before `create_envs`."""
        return self._embodiment

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Open `n_envs` worlds, each in a process of its own.

        Args:
            n_envs: number of worlds.
            use_async_envs: step them at the same time, each from a further process.

        Raises:
            VlaError: the recipe is wrong, or a world cannot start.
        """
        if self.task is None:
            raise ValueError("no world is named: --env.task=NAME; `vla list envs` shows them.")
        first = WorldEnv(self.task)
        try:
            self._describe(first)
        finally:
            if use_async_envs and n_envs > 1:
                first.close()
        if use_async_envs and n_envs > 1:
            makers = [freeze_after_episode_end(partial(WorldEnv, self.task))] * n_envs
            vector = AsyncVectorEnv(makers, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP)
        else:
            opened = [lambda: first, *[partial(WorldEnv, self.task)] * (n_envs - 1)]
            vector = SyncVectorEnv(
                [freeze_after_episode_end(make) for make in opened], autoreset_mode=AutoresetMode.NEXT_STEP
            )
        return {self.type: {0: vector}}

    def get_env_processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """Return a step that tells a policy of vla_robot which world it drives; other policies ignore the key."""
        return PolicyProcessorPipeline(steps=[AddEmbodiment(self)]), PolicyProcessorPipeline(steps=[])

    def _describe(self, env: WorldEnv) -> None:
        self._embodiment = env.embodiment
        self.fps = env.metadata["render_fps"]
        cameras = {
            image_key(camera.name): PolicyFeature(FeatureType.VISUAL, (camera.height, camera.width, 3))
            for camera in env.embodiment.cameras
        }
        self.features = cameras | {
            STATE: PolicyFeature(FeatureType.STATE, (len(env.embodiment.state),)),
            ACTION: PolicyFeature(FeatureType.ACTION, (len(env.embodiment.action),)),
        }
        self.features_map = {key: key for key in cameras} | {STATE: OBS_STATE, ACTION: ACTION}


@dataclass
class AddEmbodiment(ObservationProcessorStep):
    """Adds the embodiment of the open world to a batch.

    Attributes:
        env: the environment's configuration, which is complete when its worlds are open.
    """

    env: VlaRobotEnvConfig

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return observation if self.env.embodiment is None else observation | {EMBODIMENT_KEY: self.env.embodiment}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


def _entries(observation: Observation) -> dict[str, Any]:
    return {"pixels": dict(observation.images), STATE: observation.state}


def _observation_space(embodiment: Embodiment) -> gym.spaces.Dict:
    frames: dict[str, gym.Space[Any]] = {
        c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in embodiment.cameras
    }
    # A measured state may lie a little outside of its nominal range.
    state = gym.spaces.Box(-np.inf, np.inf, (len(embodiment.state),), np.float64)
    return gym.spaces.Dict({"pixels": gym.spaces.Dict(frames), STATE: state})


def _whole(rate_hz: float) -> float | int:
    """Return a rate as a whole number if it is one, as video writers want it."""
    return int(rate_hz) if rate_hz.is_integer() else rate_hz
