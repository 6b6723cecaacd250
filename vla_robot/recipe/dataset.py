"""Dataset recipes: how a dataset is recorded, reproducibly. `vla record datasets/mine.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.seeds import SeededEpisodes

SMALLEST_PX, LARGEST_PX = 16, 640


@dataclass(frozen=True)
class Recording(SeededEpisodes):
    """Episodes of a dataset that are recorded with the same settings.

    Attributes:
        source: policy that gives the labels to learn: a name from policies/ or a path.
        driver: policy that moves the arm meanwhile (DAgger), a name or a path; without it, `source` itself.
        noise: strength of the driver's noise, 0 to 1, so that mistakes and their correction are recorded (DART).
        episodes: number of episodes.
        seed: the first episode's seed; the k-th episode has seed + k.
        save: which episodes are stored; by default all when there is a driver, and successful ones otherwise.
        also_ask: other instructions. Each frame also gets a label for each of them, as episodes of their own: the same
            picture with other instructions and actions teaches a policy to follow the instruction.
        tasks: of a suite, the tasks that are recorded; without it, all of them.
    """

    source: str = "expert"
    driver: str | None = None
    noise: float = 0.0
    episodes: int = 50
    seed: int = 0
    save: Literal["all", "success"] | None = None
    also_ask: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise <= 1:
            raise RecipeError(f"noise is {self.noise:g}; it must lie between 0 and 1")

    @property
    def kept(self) -> Literal["all", "success"]:
        """Which episodes are stored: a learner's failures are to be learned from, an expert's are not."""
        return self.save or ("success" if self.driver is None else "all")


@dataclass(frozen=True)
class DatasetRecipe:
    """A dataset to record.

    Attributes:
        env: the world: a name from envs/ or a path.
        recordings: what is recorded in it, one after the other.
        description: one line for `vla list`.
        image_size: edge at which frames are stored [px]; without it they keep the world's size. Use the input
            size of the policy that will learn, so that frames are resized once only.
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
