"""Launch files: policy, world, number of episodes and first seed. `vla run launch/lift.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.seeds import SeededEpisodes


@dataclass(frozen=True)
class LaunchRecipe(SeededEpisodes):
    """Closed-loop episodes, ready to run.

    Attributes:
        env: the world: a name from envs/ or a path.
        policy: a name from policies/ or a path.
        verb: command that reads this file.
        episodes: number of episodes.
        seed: the first episode's seed; the k-th episode has seed + k.
        rows: how many actions of an answer are used before the policy is asked again; without it, as its recipe says.
        real_time: keep the control rate on the wall clock; if false, a simulation steps as fast as it can.
    """

    env: str
    policy: str
    verb: Literal["run"] = "run"
    episodes: int = 5
    seed: int = 10000
    rows: int | None = None
    real_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"rows must be at least 1, got {self.rows}")
