"""The episodes of a recipe by their seeds."""

from __future__ import annotations

from vla_robot.core.errors import RecipeError
from vla_robot.core.seeds import seed_problem


class SeededEpisodes:
    """Base of recipes of `episodes` episodes; the first has the seed `seed`, the k-th seed + k."""

    episodes: int
    seed: int

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise RecipeError(f"episodes is {self.episodes}; at least 1 is needed")
        if problem := seed_problem(self.seed, self.episodes):
            raise RecipeError(problem)

    @property
    def seeds(self) -> range:
        """The seed of each episode."""
        return range(self.seed, self.seed + self.episodes)
