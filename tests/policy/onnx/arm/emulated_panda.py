"""Robot kind "emulated_panda": the demo's arm without motors, found as an installed package; it needs no simulator."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.ports import Arm
from vla_robot.recipe import Plugin
from vla_robot.recipe.env import EnvRecipe
from vla_robot.testing import ToyArm


@dataclass(frozen=True, kw_only=True)
class EmulatedPandaRecipe(EnvRecipe):
    """An arm that sums up its commands, and sees colours.

    Attributes:
        embodiment: file that describes the arm.
    """

    kind: Literal["emulated_panda"] = "emulated_panda"
    embodiment: Path


def build(recipe: EmulatedPandaRecipe, interrupted: Callable[[], bool], show: Callable[[str], None] | None) -> Arm:
    arm = Embodiment.from_dict(json.loads(recipe.embodiment.read_text()))
    return ToyArm(embodiment=arm, instruction=recipe.instruction, can_wait=False, horizon=recipe.horizon)


PLUGIN = Plugin(EmulatedPandaRecipe, "an arm without motors", build)
