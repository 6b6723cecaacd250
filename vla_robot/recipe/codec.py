"""How a new policy says its actions, a table of a training's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_robot.core.errors import RecipeError

RAREST, ADDED, PI0_FAST = "rarest", "added", "pi0_fast"
"""Choices of rows that have a name."""


@dataclass(frozen=True)
class CodecRecipe:
    """How a new policy says its actions as tokens. Its folder keeps it; a policy that acts already has its own.

    Attributes:
        kind: "bins", one token for each number; "words", whole numbers in the model's own words; "fast", the
            coefficients of a cosine transform, packed.
        scale: of bins: "openvla", 255 bins in falling order; "equal", 256 bins in rising order.
        by_dimension: of bins: rows of its own for each number of an action, 7 x 256.
        rows: of bins and fast: "rarest", the last words before control tokens; "added", new rows behind the vocabulary;
            "pi0_fast", openpi's layout; or a file of `vla data rarest`. A new model's are always added ones.
        largest: of words: the number that says +1; 0 says -1.
        tokenizer: of fast: a file of `vla data fast`, or a folder with the published tokenizer.json and
            processor_config.json.
    """

    kind: Literal["bins", "words", "fast"] = "bins"
    scale: Literal["openvla", "equal"] = "openvla"
    by_dimension: bool = False
    rows: str = RAREST
    largest: int = 1000
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if (self.kind == "fast") != (self.tokenizer is not None):
            raise RecipeError(
                'tokenizer names FAST\'s tokens, so [codec] has it with kind = "fast" and only then; '
                "`vla data fast` makes one"
            )
        if self.kind != "bins" and (self.by_dimension or self.scale != "openvla"):
            raise RecipeError(f'scale and by_dimension are of kind = "bins", and kind is "{self.kind}"')
        if not 1 <= self.largest <= 9999:
            raise RecipeError(f"largest is {self.largest}; must lie in [1, 9999]")
