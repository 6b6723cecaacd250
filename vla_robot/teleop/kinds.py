"""Maps each kind of teleoperator recipe to the function that opens the device. It is the only such list.

The functions are named and not imported, so that the keyboard needs neither lerobot nor MuJoCo.
"""

from __future__ import annotations

from vla_robot.core.clock import Clock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.host.optional import attribute
from vla_robot.recipe.teleoperator import AxesDeviceRecipe, LeaderArmRecipe, TeleoperatorRecipe
from vla_robot.teleop.motion import TeleopDevice

DEVICES: dict[type[TeleoperatorRecipe], str] = {
    LeaderArmRecipe: "vla_robot.teleop.teleoperator:open_leader",
    AxesDeviceRecipe: "vla_robot.teleop.teleoperator:open_axes",
}
"""Recipe's dataclass -> "module:function" of a function (recipe, embodiment, clock) -> TeleopDevice."""


def open_teleoperator(recipe: TeleoperatorRecipe, embodiment: Embodiment, clock: Clock | None = None) -> TeleopDevice:
    """Connect to the device of a recipe, also of a plugin's kind.

    Args:
        recipe: the teleoperator's recipe.
        embodiment: the embodiment of the arm that is driven.
        clock: measures pauses between commands; the monotonic clock when None.

    Raises:
        RecipeError: the recipe names something that lerobot, the device or the scene lacks.
        ContractError: the arm's actions are no motions of its tool.
        TeleopError: no such port, no permission, no answer, or not calibrated.
        MissingDependencyError: the extra [arm] is not installed.
    """
    if path := DEVICES.get(type(recipe)):
        return attribute(path)(recipe, embodiment, clock)
    return TeleoperatorRecipe.kinds.plugin(recipe.kind).build(recipe, embodiment)
