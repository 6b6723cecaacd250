"""Other words for the same task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.evaluate.instruction_variants import LANGUAGES, Language, words_for
from vla_robot.recipe import parse, read
from vla_robot.recipe.env import EnvRecipe

COLOURS = ("red", "green", "blue")
SEEDS = range(20_000, 20_018)


@pytest.fixture(scope="module")
def env() -> EnvRecipe:
    return read(EnvRecipe, "lift_colour")


def task(seed: int) -> str:
    return f"lift the {COLOURS[seed % 3]} cube"


def test_plain_words_are_the_worlds(env: EnvRecipe) -> None:
    rephrase = words_for(env, "plain")
    assert [rephrase(task(seed), seed) for seed in SEEDS] == [task(seed) for seed in SEEDS]


def test_a_wrong_object_is_another_one_of_the_scene_and_each_in_turn(env: EnvRecipe) -> None:
    rephrase = words_for(env, "wrong-object")
    pairs = {(task(seed), rephrase(task(seed), seed)) for seed in SEEDS}
    assert pairs == {(f"lift the {a} cube", f"lift the {b} cube") for a in COLOURS for b in COLOURS if a != b}


def test_a_paraphrase_names_the_same_object_and_each_object_meets_each_paraphrase(env: EnvRecipe) -> None:
    rephrase = words_for(env, "paraphrase")
    assert env.language is not None
    for colour in COLOURS:
        said = {rephrase(task(seed), seed) for seed in SEEDS if COLOURS[seed % 3] == colour}
        assert said == {paraphrase.format(target=colour) for paraphrase in env.language.paraphrases}


def test_a_synonym_names_the_same_object_by_another_word_in_the_sentences_of_paraphrase(env: EnvRecipe) -> None:
    assert env.language is not None
    synonyms = {**env.language.synonyms, "red": ("crimson", "ruby")}
    richer = replace(env, language=replace(env.language, synonyms=synonyms))
    rephrase = words_for(richer, "synonym")
    for colour in COLOURS:
        said = {rephrase(task(seed), seed) for seed in SEEDS if COLOURS[seed % 3] == colour}
        assert said == {p.format(target=other) for p in env.language.paraphrases for other in synonyms[colour]}


def test_no_instruction_says_nothing_of_the_scene(env: EnvRecipe) -> None:
    rephrase = words_for(env, "none")
    assert {rephrase(task(seed), seed) for seed in SEEDS} == {"do something"}


def test_the_same_seed_is_told_the_same(env: EnvRecipe) -> None:
    for language in LANGUAGES:
        assert words_for(env, language)(task(7), 7) == words_for(env, language)(task(7), 7)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("paraphrase", r"has no paraphrases.*\[language\]"),
        ("synonym", "has no synonyms"),
        ("wrong-object", "has no targets"),
    ],
)
def test_a_world_without_the_words_says_what_to_add(language: Language, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        words_for(read(EnvRecipe, "lift"), language)


def test_an_instruction_that_is_not_the_recipes_is_refused(env: EnvRecipe) -> None:
    with pytest.raises(
        RecipeError, match=r"'open the door', which is not the recipe's instruction, 'lift the \{target"
    ):
        words_for(env, "paraphrase")("open the door", 1)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ({"targets": ["red", "red"]}, "must be different words, two or more, not \\['red', 'red'\\]"),
        ({"targets": ["red"]}, "two or more"),
        ({"targets": ["red", "green"]}, r"needs \{target\} in the instruction, which is 'lift it'"),
        ({"paraphrases": ["raise the {target}"]}, "'raise the {target}' must say 'lift it' in other words"),
        ({"paraphrases": ["lift it"]}, "'lift it' must say 'lift it' in other words"),
        ({"paraphrases": ["raise { it"]}, "raise { it"),
        ({"synonyms": {"red": ["ruby"]}}, "other words for each of the targets"),
        ({"neutral": " "}, "language.neutral is empty"),
        ({"paraphrase": ["raise it"]}, "did you mean 'paraphrases'"),
    ],
)
def test_words_that_do_not_fit_the_instruction_are_refused(language: dict[str, object], message: str) -> None:
    table = {"kind": "robosuite", "task": "Lift", "instruction": "lift it", "language": language}
    with pytest.raises(RecipeError, match=message):
        parse(EnvRecipe, table, "mine")
