"""Teleoperator kind "metronome": moves the tool up and down to a beat, as a person would with a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.recipe import Plugin
from vla_robot.recipe.teleoperator import TeleoperatorRecipe
from vla_robot.teleop.motion import TeleopDevice
from vla_robot.teleop.sticks import DeviceState, StickMotion


@dataclass(frozen=True, kw_only=True)
class MetronomeRecipe(TeleoperatorRecipe):
    """Moves the tool up and down to a beat.

    Attributes:
        bpm: beats per minute; the direction changes with each.
    """

    kind: Literal["metronome"] = "metronome"
    bpm: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.bpm <= 600:
            raise RecipeError(f"bpm is {self.bpm:g}; it must lie between 1 and 600")


class Beat:
    """Implements the port Sticks: six axes from -1 to 1, read once in each period of the control."""

    help = (("metronome", "moves the tool up and down"),)

    def __init__(self, ticks_per_beat: float) -> None:
        self._ticks_per_beat, self._ticks = ticks_per_beat, 0

    def read(self) -> DeviceState:
        up = int(self._ticks / self._ticks_per_beat) % 2 == 0
        self._ticks += 1
        return DeviceState((0.0, 0.0, 0.2 if up else -0.2, 0.0, 0.0, 0.0))

    def close(self) -> None:
        """Nothing to let go of."""


def build(recipe: MetronomeRecipe, embodiment: Embodiment) -> TeleopDevice:
    """Raises ContractError for an arm whose tool is not moved by deltas."""
    return StickMotion(Beat(embodiment.rate_hz * 60 / recipe.bpm), embodiment)


PLUGIN = Plugin(MetronomeRecipe, "moves the tool up and down to a beat", build)
