"""Other sentences for the instructions of the data, drawn anew for each frame of a step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from vla_robot.core.errors import DataError
from vla_robot.core.language.placeholders import words_in
from vla_robot.recipe.finetune import WordingsRecipe

WORDING = 21
"""Part of a seed that separates the choice of sentences from other random streams of the same seed."""


@dataclass(frozen=True)
class Wordings:
    """Chooses the sentence that a sample is trained with.

    Attributes:
        recipes: what is said in other words, the first one that matches an instruction; others stay as they are.
        seed: seed of the choices; a sample's depends on it and the sample's number, so that runs resume exactly.
    """

    recipes: tuple[WordingsRecipe, ...]
    seed: int

    def __call__(self, instruction: str, number: int) -> str:
        """Return the sentence for an instruction in the sample of this number."""
        for recipe in self.recipes:
            if (found := words_in(instruction, recipe.instruction)) is not None:
                rng = np.random.default_rng([self.seed, WORDING, number])
                return instruction if rng.random() < recipe.plain else _drawn(recipe, found, rng)
        return instruction


def require_known(recipes: Sequence[WordingsRecipe], instructions: Collection[str]) -> None:
    """Raise DataError if a recipe matches none of the data's instructions."""
    for recipe in recipes:
        if all(words_in(instruction, recipe.instruction) is None for instruction in instructions):
            told = ", ".join(sorted(instructions))
            raise DataError(f"wordings: no instruction of the data is '{recipe.instruction}'; they are {told}.")


def every_wording(recipes: Sequence[WordingsRecipe], instructions: Collection[str]) -> list[str]:
    """Return all sentences that training may say for these instructions, for a new tokenizer.

    Raises:
        DataError: as `require_known`.
    """
    require_known(recipes, instructions)
    return [said for recipe in recipes for instruction in instructions for said in _all(recipe, instruction)]


def _drawn(recipe: WordingsRecipe, found: Mapping[str, str], rng: np.random.Generator) -> str:
    """Return one of the sentences with one of the words for its target, all equally likely."""
    sentences, words = _choices(recipe, found)
    sentence = sentences[rng.integers(len(sentences))]
    return sentence.format(**{name: others[rng.integers(len(others))] for name, others in words.items()})


def _all(recipe: WordingsRecipe, instruction: str) -> Iterator[str]:
    if (found := words_in(instruction, recipe.instruction)) is None:
        return
    sentences, words = _choices(recipe, found)
    for sentence in sentences:
        for chosen in product(*words.values()):
            yield sentence.format(**dict(zip(words, chosen, strict=True)))


def _choices(recipe: WordingsRecipe, found: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the sentences, and the words for each name in braces, the data's own first."""
    words = {name: (word, *recipe.synonyms.get(word, ())) for name, word in found.items()}
    return recipe.sentences or (recipe.instruction,), words
