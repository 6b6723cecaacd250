"""The parts of a recipe of kind "lerobot" that describe the numbers of a policy that lerobot trained."""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.peer import require_linear


@dataclass(frozen=True)
class LeRobotNumbersRecipe:
    """The numbers of one feature and their conversion: `arm = policy * scale + offset`.

    Attributes:
        names: the arm's dimensions, in the policy's order.
        scale: one for each dimension; 1 by default. From degrees to radians: 0.017453292519943295.
        offset: one for each dimension; 0 by default.
    """

    names: tuple[str, ...]
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise RecipeError(f"names holds a dimension twice: {', '.join(self.names)}")
        require_linear("it", self.names, self.scale, self.offset)
