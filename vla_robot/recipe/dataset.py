"""Dataset recipes: how a dataset is recorded, so that anyone can make it again. `vla record datasets/mine.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.seeds import SeededEpisodes

SMALLEST_PX, LARGEST_PX = 16, 640


@dataclass(frozen=True)
class Recording(SeededEpisodes):
    """Episodes that are recorded in one way.

    Attributes:
        source: what gives the label that a policy learns: a name from policies/ or a path.
        driver: what moves the arm meanwhile (DAgger), a name or a path; without it, `source` itself.
        noise: how strongly the driver is disturbed, 0 to 1, so that mistakes and their correction are seen (DART).
        episodes: how many episodes are made.
        seed: the first episode's seed; the k-th episode has seed + k.
        save: which episodes are stored; without it all when there is a driver, and successful ones otherwise.
        also_ask: other instructions. Each frame gets a label for every one of them too, as episodes of their own: the
            same picture with other words and another action is what teaches a policy to heed the words.
    """

    source: str = "expert"
    driver: str | None = None
    noise: float = 0.0
    episodes: int = 50
    seed: int = 0
    save: Literal["all", "success"] | None = None
    also_ask: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise <= 1:
            raise RecipeError(f"noise is {self.noise:g}; it must lie between 0 and 1")

    @property
    def kept(self) -> Literal["all", "success"]:
        """A learner's failures are what it has to learn from; an expert's are not."""
        return self.save or ("success" if self.driver is None else "all")


@dataclass(frozen=True)
class DatasetRecipe:
    """A dataset as data.

    Attributes:
        env: the world: a name from envs/ or a path.
        recordings: what is recorded in it, one after the other.
        description: one line for `vla list`.
        image_size: edge in pixels at which frames are stored; without it they keep the world's size. Take the input
            size of the policy that will learn: a frame that is resized twice is not the frame that the policy sees.
    """

    env: str
    recordings: tuple[Recording, ...]
    description: str = ""
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not self.recordings:
            raise RecipeError("there is no [[recordings]] table; one is needed")
        if self.image_size is not None and not SMALLEST_PX <= self.image_size <= LARGEST_PX:
            raise RecipeError(f"image_size is {self.image_size}; it must lie between {SMALLEST_PX} and {LARGEST_PX}")
