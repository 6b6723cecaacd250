"""Instruction variants: they show how much of a policy's success depends on the instruction.

plain          the world's instruction                                  lift the red cube
paraphrase     the same in other words                                  pick up the red block
wrong-object   the words name another object than the task is about     lift the blue cube
none           a sentence without content                               do something
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

from vla_robot.core.errors import RecipeError
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.scene import TARGET, LanguageRecipe

Language = Literal["plain", "none", "paraphrase", "wrong-object"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

Words = Callable[[str, int], str]
"""Maps the world's instruction and the episode's seed to the policy's instruction, deterministically."""


def words_for(env: EnvRecipe, language: Language) -> Words:
    """Return the function that changes a world's instructions.

    Args:
        env: recipe of the world; its table [language] has the words.
        language: the variant.

    Raises:
        RecipeError: the recipe lacks the words; the message says which.
    """
    words = env.language or LanguageRecipe()
    if language == "plain":
        return lambda task, seed: task
    if language == "none":
        return lambda task, seed: words.neutral
    if language == "paraphrase":
        return _paraphrased(env, words)
    return _misdirected(env, words)


def _paraphrased(env: EnvRecipe, words: LanguageRecipe) -> Words:
    if not words.paraphrases:
        raise _lacks(env, "paraphrases", '["pick up the block"]')

    def rephrase(task: str, seed: int) -> str:
        # Consecutive seeds have different targets; this gives each target each paraphrase.
        turn = seed // max(1, len(words.targets))
        return words.paraphrases[turn % len(words.paraphrases)].format(**_found(env, task))

    return rephrase


def _misdirected(env: EnvRecipe, words: LanguageRecipe) -> Words:
    if not words.targets:
        raise _lacks(env, "targets", '["red", "green"], and {target} in the instruction')

    def rephrase(task: str, seed: int) -> str:
        asked = _found(env, task)[TARGET]
        others = [target for target in words.targets if target != asked]
        return env.instruction.format(target=others[seed // len(words.targets) % len(others)])

    return rephrase


def _found(env: EnvRecipe, task: str) -> dict[str, str]:
    """Return the text of {target} in the world's instruction; empty if the recipe has no braces."""
    pattern = re.escape(env.instruction).replace(re.escape(f"{{{TARGET}}}"), f"(?P<{TARGET}>.+)")
    found = re.fullmatch(pattern, task)
    if found is None:
        raise RecipeError(f"the world says '{task}', which is not the recipe's instruction, '{env.instruction}'.")
    return found.groupdict()


def _lacks(env: EnvRecipe, key: str, example: str) -> RecipeError:
    return RecipeError(
        f"the world '{env.instruction}' has no {key} in its recipe. Add a table [language] with {key} = {example}; "
        "envs/lift_colour.toml is an example."
    )
