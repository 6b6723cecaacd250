"""Instructions in other words: drawn by sample number, the same answers behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import DataError, RecipeError
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.model import IGNORE
from vla_robot.recipe import parse, read
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, WordingsRecipe
from vla_robot.train.batches.wordings import Wordings, every_wording
from vla_robot.train.finetune import finetune
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.prepare import prepare

LIGHT = WordingsRecipe("go to the {target}", ("find the {target}", "the {target}, please"), {"light": ("lamp",)}, 0.25)
LAUNCH = sorted((Path(__file__).parents[3] / "launch").glob("*.toml"))


def test_a_sample_is_said_alike_each_time_and_all_sentences_are_said_as_often_as_they_should() -> None:
    said = Wordings((LIGHT,), seed=3)
    drawn = [said("go to the light", number) for number in range(4000)]
    assert drawn == [Wordings((LIGHT,), seed=3)("go to the light", number) for number in range(4000)]
    assert drawn != [Wordings((LIGHT,), seed=4)("go to the light", number) for number in range(4000)]
    counts = Counter(drawn)
    assert set(counts) == {"go to the light", *every_wording((LIGHT,), ["go to the light"])}
    shares = {"go to the light": 0.25} | dict.fromkeys(every_wording((LIGHT,), ["go to the light"]), 0.75 / 4)
    for sentence, share in shares.items():
        assert abs(counts[sentence] / 4000 - share) < 5 * np.sqrt(share * (1 - share) / 4000)


def test_other_instructions_stay_as_they_are() -> None:
    said = Wordings((LIGHT,), seed=0)
    assert {said("open the door", number) for number in range(50)} == {"open the door"}
    assert "go to the dark" in {said("go to the dark", number) for number in range(50)}, "a word without synonyms"


def test_synonyms_alone_keep_the_sentence() -> None:
    only = WordingsRecipe("go to the {target}", (), {"light": ("lamp",)}, plain=0)
    assert {Wordings((only,), 0)("go to the light", n) for n in range(50)} == {"go to the light", "go to the lamp"}


def test_a_wording_of_no_instruction_of_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"no instruction of the data is 'close the {target}'; they are a, b"):
        every_wording((LIGHT, replace(LIGHT, instruction="close the {target}")), ["b", "a", "go to the light"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sentences": ["find it"]}, "'find it' must have the same names in braces"),
        ({"instruction": "go to {place}"}, "the only name in braces is {target}"),
        ({"instruction": "go", "sentences": ["walk"], "synonyms": {"light": ["lamp"]}}, "which 'go' does not have"),
        ({"sentences": []}, "would change nothing"),
        ({"plain": 1.0}, r"must lie in \[0, 1\)"),
        ({"sentences": ["find { it"]}, "find { it"),
    ],
)
def test_wordings_that_cannot_be_are_refused(more: dict[str, Any], message: str) -> None:
    table = {"instruction": "go to the {target}", "sentences": ["find the {target}"], **more}
    with pytest.raises(RecipeError, match=message):
        parse(FinetuneRecipe, {"verb": "finetune", "data": ["d"], "wordings": [table]}, "test")


def test_a_batch_has_other_prompts_before_the_same_answers(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    plain = replace(recipe, wordings=(), shift_px=0)
    other = replace(plain, wordings=(replace(LIGHT, plain=0.0),))
    prepared = prepare(other, tmp_path / "other", Ranks(), lambda _: None)
    start = prepared.start
    batch, held_out = prepared.data.batch(0), next(iter(prepared.data.held_out()))
    words = family_of(start).load(start).tokenizer
    said = {tuple(words(text)) for text in every_wording(other.wordings, ["go to the light"])}
    prompts = {
        tuple(ids[: (labels != IGNORE).argmax()].tolist())
        for ids, labels in zip(batch.input_ids.numpy(), batch.labels.numpy(), strict=True)
    }
    assert prompts <= said and len(prompts) > 1
    told = tuple(words("go to the light"))
    assert {tuple(ids[: len(told)].tolist()) for ids in held_out.input_ids.numpy()} == {told}
    answers = [labels[labels != IGNORE].tolist() for labels in batch.labels.numpy()]
    same = prepare(replace(plain, policy=start), tmp_path / "plain", Ranks(), lambda _: None).data.batch(0)
    assert answers == [labels[labels != IGNORE].tolist() for labels in same.labels.numpy()]
    assert (batch.pixels == same.pixels).all()


def test_a_run_with_wordings_goes_on_exactly(recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    other = replace(recipe, wordings=(LIGHT,))
    whole = finetune(other, tmp_path / "whole", lambda _: None)
    stops = iter([False, False, True])
    finetune(other, tmp_path / "parts", lambda _: None, lambda: next(stops))
    parts = finetune(other, tmp_path / "parts", lambda _: None)
    weights = [(done.policy / "model.safetensors").read_bytes() for done in (whole, parts)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("path", [p for p in LAUNCH if "[[wordings]]" in p.read_text()], ids=lambda p: p.stem)
def test_no_training_says_what_an_evaluation_asks(path: Path) -> None:
    """The sentences and words of `vla eval --language paraphrase synonym` are never trained on."""
    worlds = [read(EnvRecipe, name) for name in ("lift_colour", "stack", "pick_place_can", "door")]
    told = [text for world in worlds for text in _for_every_target(world, world.instruction)]
    said = set(every_wording(read(FinetuneRecipe, path).wordings, told))
    words = {word for sentence in said for word in sentence.split()}
    for world in worlds:
        assert world.language is not None and world.language.paraphrases
        assert not said & {text for asked in world.language.paraphrases for text in _for_every_target(world, asked)}
        assert not words & {word for synonyms in world.language.synonyms.values() for word in synonyms}


def _for_every_target(world: EnvRecipe, sentence: str) -> list[str]:
    assert world.language is not None
    return [sentence.format(target=target) for target in world.language.targets] or [sentence]
