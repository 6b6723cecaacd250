"""Source of a world: a recipe's file, or one task of a suite's, given as one name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import EnvRecipe, SuiteRecipe
from vla_robot.recipe.reading.find import find
from vla_robot.recipe.reading.load import read

MOVED = "_moved"
"""Ending of a suite's name whose loose objects are moved."""


@dataclass(frozen=True)
class EnvSource:
    """A world's recipe, and where its name led.

    Attributes:
        recipe: the world's recipe, with the task that the name chose.
        path: the recipe's file.
        chosen: the task that the name chose of a suite; empty without one.
        variant: ending of the suite's name where the recipe differs from the file's, e.g. "_moved".
    """

    recipe: EnvRecipe
    path: Path
    chosen: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """Name in tables and reports, e.g. "lift" or "libero_spatial/3"."""
        suite = self.path.stem + self.variant
        return f"{suite}/{self.chosen}" if self.chosen else suite

    def tasks(self) -> tuple[EnvSource, ...]:
        """Return a suite's tasks, in its order; of one world, the world itself."""
        if not isinstance(self.recipe, SuiteRecipe) or self.recipe.task is not None:
            return (self,)
        return tuple(replace(self, recipe=self.recipe.of_task(task), chosen=task) for task in self.recipe.tasks())

    def moved(self, distance_m: float) -> EnvSource:
        """Return the suite with its loose objects moved. Raises RecipeError for a world that is no suite."""
        if not isinstance(self.recipe, SuiteRecipe):
            raise RecipeError(f"'{self.name}' is no benchmark's suite, whose objects could be moved")
        return replace(self, recipe=replace(self.recipe, move_objects_m=distance_m), variant=MOVED)


def find_env(name: str | Path) -> EnvSource:
    """Find a world by name or path; "SUITE/TASK" is one task of a suite.

    Raises:
        RecipeError: there is no such recipe or task, or the recipe is not valid.
    """
    suite, task = Path(name).parent, Path(name).name
    try:
        path = find("envs", name)
    except RecipeError as error:
        if (path := _suite_at(suite)) is None:
            if task.isdigit() and suite != Path():
                find("envs", suite)  # its message names the nearest suite; a number is near to no recipe
            raise error
        recipe = read(EnvRecipe, path)
        if not isinstance(recipe, SuiteRecipe):
            raise RecipeError(
                f"'{name}' names task '{task}' of '{suite}', which is one world and no suite: name '{suite}'."
            ) from error
        return EnvSource(_of_task(recipe, task, path), path, task)
    return EnvSource(read(EnvRecipe, path), path)


def _suite_at(name: Path) -> Path | None:
    try:
        return find("envs", name) if name != Path() else None
    except RecipeError:
        return None


def _of_task(recipe: SuiteRecipe, task: str, path: Path) -> SuiteRecipe:
    try:
        return recipe.of_task(task)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
