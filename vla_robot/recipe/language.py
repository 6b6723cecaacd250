"""LanguageRecipe: variants of a task's instruction, as data."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from vla_robot.core.errors import RecipeError


@dataclass(frozen=True)
class LanguageRecipe:
    """Variants of the instruction, for `vla eval --language`.

    Attributes:
        paraphrases: the instruction in other words, with {target} where the instruction has it.
        targets: values of {target}; with them an instruction can name a wrong object.
        neutral: sentence used for "no instruction", since a policy refuses an empty one.
    """

    paraphrases: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    neutral: str = "do something"

    def __post_init__(self) -> None:
        if len(set(self.targets)) != len(self.targets) or len(self.targets) == 1:
            raise RecipeError(f"language.targets must be different words, two or more, not {list(self.targets)}")
        if not self.neutral.strip():
            raise RecipeError("language.neutral is empty, which policies refuse; leave it out, or say 'do something'")

    def require_fit(self, instruction: str) -> None:
        """Raise RecipeError unless these variants fit the instruction."""
        placeholders = _placeholders(instruction)
        if self.targets and placeholders != {TARGET}:
            raise RecipeError(f"language.targets needs {{{TARGET}}} in the instruction, which is '{instruction}'")
        for paraphrase in self.paraphrases:
            if paraphrase == instruction or _placeholders(paraphrase) != placeholders:
                raise RecipeError(
                    f"language.paraphrases: '{paraphrase}' must say '{instruction}' in other words, "
                    f"with the same words in braces"
                )


TARGET = "target"
"""Placeholder in the instruction of a task that draws its object for each episode."""


def _placeholders(text: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:  # a lone brace
        raise RecipeError(f"'{text}': {error}") from error
