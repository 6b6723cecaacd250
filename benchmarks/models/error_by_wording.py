"""How far a policy's actions are from the labels of a recording, by the words that it is told.

    python -m benchmarks.models.error_by_wording --policy data/nano_wordings/final --launch launch/nano_wordings.toml

A policy that has learned other sentences errs with them as with the data's own; one that has not errs as without an
instruction. The recording's frames may be those of the training: whether words are learned shows there first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.models.recorded import frames
from benchmarks.models.scores import error_to
from vla_robot.cli.common.cli_common import option
from vla_robot.core.errors import RecipeError
from vla_robot.core.language.placeholders import TARGET, words_in
from vla_robot.evaluate.instruction_variants import words_for
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe import read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, WordingsRecipe

Said = Callable[[str, int], str]
"""The data's instruction, and the frame's number -> what the policy is told."""


def wordings(recipe: WordingsRecipe, env: EnvRecipe) -> dict[str, Said]:
    """Return what the policy is told, from the data's own words to none."""

    def of(sentence: Callable[[int], str], word: Callable[[str, int], str]) -> Said:
        def say(told: str, number: int) -> str:
            found = words_in(told, recipe.instruction) or {}
            return sentence(number).format(**{TARGET: word(found[TARGET], number)})

        return say

    def plain(_: int) -> str:
        return recipe.instruction

    def trained(number: int) -> str:
        return recipe.sentences[number % len(recipe.sentences)]

    def synonym(word: str, number: int) -> str:
        return recipe.synonyms[word][number % len(recipe.synonyms[word])]

    return {
        "the data's own words": of(plain, lambda word, _: word),
        "its sentence, trained synonyms": of(plain, synonym),
        "trained sentences, its word": of(trained, lambda word, _: word),
        "trained sentences and synonyms": of(trained, synonym),
        "paraphrase (not trained)": words_for(env, "paraphrase"),
        "synonym (not trained)": words_for(env, "synonym"),
        "wrong-object": words_for(env, "wrong-object"),
        "none": words_for(env, "none"),
    }


@dataclass(frozen=True)
class ErrorByWordingArgs:
    """Compare a policy's actions with the labels of a recording, told in the data's words and in others."""

    policy: Annotated[Path, option("FOLDER")]
    """folder of a trained policy"""
    launch: Annotated[Path, option("FILE.toml")]
    """the training, in the words of whose first [[wordings]] the policy is asked"""
    data: Annotated[Path, option("FOLDER")] = Path("data/colour_three_ways")
    """a recording of the world"""
    env: Annotated[str, option("ENV")] = "lift_colour"
    """the world, whose [language] has words that are not trained"""
    frames: Annotated[int, option("N")] = 200
    """frames that are asked about"""


def main(args: ErrorByWordingArgs) -> int:
    """Print the mean absolute error, in halves of an action's range, for each kind of words.

    Raises:
        VlaError: the policy, the launch file or the recording cannot be read, or they do not fit.
    """
    recipe = read(FinetuneRecipe, args.launch)
    if not isinstance(recipe, DemosFinetuneRecipe) or not recipe.wordings:
        raise RecipeError(f"--launch {args.launch}: it has no [[wordings]] of demonstrations.")
    policy = family_of(args.policy).load(args.policy, Loading(statistics_key=recipe.dataset_name))
    seen, labels = frames(args.data, policy, args.frames)
    for name, say in wordings(recipe.wordings[0], read(EnvRecipe, args.env)).items():
        told = [replace(o, instruction=say(o.instruction, number)) for number, o in enumerate(seen)]
        print(f"{name:32} {error_to(policy, told, labels):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ErrorByWordingArgs)))
