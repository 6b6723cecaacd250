"""PolicyRecipe: which policy, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError


@dataclass(frozen=True)
class PolicyRecipe:
    """A policy as data.

    Attributes:
        kind: "openvla" loads a checkpoint folder; "hold" keeps the arm where it is; "random" draws uniform actions
            (the baseline that a score is compared with); "expert" is the world's own scripted expert, which sees the
            simulator's truth.
        description: one line for `vla list`.
        checkpoint: folder in the published OpenVLA layout, relative to this file.
        statistics_key: dataset whose statistics un-normalise the actions; needed when the checkpoint has several.
        dtype: precision of the weights while acting.
    """

    kind: Literal["openvla", "hold", "random", "expert"]
    description: str = ""
    checkpoint: Path | None = None
    statistics_key: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if (self.kind == "openvla") != (self.checkpoint is not None):
            raise RecipeError(f"kind '{self.kind}' {'needs' if self.kind == 'openvla' else 'takes no'} checkpoint")
