"""Instruction variants: they show how much of a policy's success depends on the instruction.

plain          the world's instruction                                  lift the red cube
paraphrase     the same in other words                                  pick up the red block
synonym        the same, with another word for the object too           pick up the crimson block
wrong-object   the words name another object than the task is about     lift the blue cube
none           a sentence without content                               do something
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from vla_robot.core.errors import RecipeError
from vla_robot.core.language.placeholders import TARGET, words_in
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.scene import LanguageRecipe

Language = Literal["plain", "none", "paraphrase", "synonym", "wrong-object"]
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
    if language in ("paraphrase", "synonym"):
        return _paraphrased(env, words, {} if language == "paraphrase" else _synonyms(env, words))
    return _misdirected(env, words)


def _paraphrased(env: EnvRecipe, words: LanguageRecipe, synonyms: Mapping[str, Sequence[str]]) -> Words:
    if not words.paraphrases:
        raise _lacks(env, "paraphrases", '["pick up the block"]')

    def rephrase(task: str, seed: int) -> str:
        # Consecutive seeds have different targets; this gives each target each paraphrase, and then each synonym.
        turn, sentence = divmod(seed // max(1, len(words.targets)), len(words.paraphrases))
        found = _found(env, task)
        others = {name: synonyms[word][turn % len(synonyms[word])] for name, word in found.items() if synonyms}
        return words.paraphrases[sentence].format(**{**found, **others})

    return rephrase


def _synonyms(env: EnvRecipe, words: LanguageRecipe) -> Mapping[str, Sequence[str]]:
    if not words.synonyms:
        raise _lacks(env, "synonyms", '{ red = ["crimson"], green = ["emerald"] }')
    return words.synonyms


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
    found = words_in(task, env.instruction)
    if found is None:
        raise RecipeError(f"the world says '{task}', which is not the recipe's instruction, '{env.instruction}'.")
    return found


def _lacks(env: EnvRecipe, key: str, example: str) -> RecipeError:
    return RecipeError(
        f"the world '{env.instruction}' has no {key} in its recipe. Add a table [language] with {key} = {example}; "
        "envs/lift_colour.toml is an example."
    )
