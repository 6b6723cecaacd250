"""Every family is trained as OpenVLA is: from nothing, with adapters, in parts, and its folder drives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_robot.core.errors import CheckpointError, RecipeError
from vla_robot.core.messages import Observation
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.vla.codecs.plan import rarest_words
from vla_robot.policy.vla.inputs.prompts import read_tokenizer, train_tokenizer
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.recipe.policy import OpenVLARecipe, VLARecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.finetune import finetune
from vla_robot.train.prepare import _said

NAMES = [name for name in NEW_MODELS if name != "openvla"]
QUICK = ("paligemma", "qwen2_5_vl", "gemma4", "smolvlm", "minivla")
"""One family of each kind of tower, frames and language model; the others are slow tests."""
OTHERS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
OF_TRANSFORMERS = [param for param, name in zip(OTHERS, NAMES, strict=True) if name != "minivla"]


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def of_family(recipe: DemosFinetuneRecipe) -> Callable[..., DemosFinetuneRecipe]:
    """The recipe of a short run for a family."""

    def make(name: str, **more: Any) -> DemosFinetuneRecipe:
        size = 28 if name == "paligemma" else 56
        tiny = replace(recipe.architecture, family=name, image_size=size, tower_depth=3, max_positions=256)
        return replace(recipe, architecture=tiny, **more)

    return make


def seen(light: float) -> Observation:
    return Observation(
        {"front": np.full((28, 28, 3), round(255 * light), np.uint8)}, np.zeros(1), "go to the light", 1, 1
    )


@pytest.mark.parametrize("name", OTHERS)
def test_a_new_model_is_trained_and_its_folder_drives(of_family: Any, tmp_path: Path, name: str) -> None:
    losses: list[float] = []
    trained = finetune(
        of_family(name, steps=30, learning_rate=3e-3, ema=0.0), tmp_path,
        lambda p: losses.append(p.metrics["loss"]) if "loss" in p.metrics else None,
    )  # fmt: skip
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    source = find_policy(trained.policy)
    assert isinstance(source.recipe, OpenVLARecipe if name == "minivla" else VLARecipe)
    check_policy(source.recipe)
    policy: Any = load_policy(source.recipe, None)
    chunks = policy.act([seen(0.1), seen(0.9)])
    assert all(np.isfinite(chunk.actions).all() for chunk in chunks)
    bare = find_policy(tmp_path / "start")  # a folder without a recipe
    assert type(bare.recipe) is type(source.recipe)


@pytest.mark.parametrize("name", OTHERS)
def test_adapters_are_merged_into_the_folder(of_family: Any, tmp_path: Path, name: str) -> None:
    recipe = of_family(name, lora_rank=4, train=("decoder",), steps=3, ema=0.0, learning_rate=0.1)
    finetune(recipe, tmp_path, quiet)
    before, after = (_weights(tmp_path / folder) for folder in ("start", "final"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    decoder = re.compile(r"(language_model|text_model|^llm)(\.model)?\.layers\..*_proj\.weight")
    assert all(decoder.search(key) for key in changed), changed
    assert before.keys() == after.keys()


def test_a_run_resumes_as_if_it_had_not_stopped(of_family: Any, tmp_path: Path) -> None:
    recipe = of_family("qwen2_5_vl", ema=0.0)
    finetune(recipe, tmp_path / "whole", quiet)
    steps = iter(range(100))
    finetune(recipe, tmp_path / "halves", quiet, should_stop=lambda: next(steps) == 2)
    finetune(recipe, tmp_path / "halves", quiet)
    whole, halves = (_weights(tmp_path / run / "final") for run in ("whole", "halves"))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_model_without_action_tokens_becomes_a_policy(of_family: Any, tmp_path: Path, name: str) -> None:
    recipe = of_family(name, steps=1)
    finetune(replace(recipe, architecture=replace(recipe.architecture, text_vocab=700)), tmp_path / "any", quiet)
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(tmp_path / "any" / "start" / file, plain)
    letters = np.random.default_rng(0).integers(97, 123, (400, 6)).astype(np.uint8)
    family: Any = family_of(plain)
    words = [row.tobytes().decode() for row in letters]
    train_tokenizer(words, 700, family.control_tokens).save(str(plain / "tokenizer.json"))
    config = read_json(plain / "config.json")
    write_json(plain / "config.json", {key: value for key, value in config.items() if key != "vla_robot"})
    trained = finetune(of_family(name, policy=plain), tmp_path / "run", quiet)
    policy: Any = load_policy(find_policy(trained.policy).recipe, None)
    assert np.isfinite(policy.act([seen(0.3)])[0].actions).all()
    first, end = policy.codec.ids[0], policy.codec.ids[-1] + 1
    assert end - first == 256
    control = read_tokenizer(plain).get_added_tokens_decoder().keys()
    assert not control & set(range(first, end))


def test_the_rarest_words_end_where_control_tokens_begin() -> None:
    tokenizer = train_tokenizer(["lift the red cube"], 320, ["<unk>", "<eos>"])
    assert rarest_words(tokenizer, 10) == tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<a>", "<b>"])
    assert rarest_words(tokenizer, 10) == tokenizer.get_vocab_size() - 2
    with pytest.raises(CheckpointError, match="no 400 consecutive words"):
        rarest_words(tokenizer, 400)


def test_an_unknown_family_is_told_before_frames_are_read(of_family: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown family 'qwen2vl'"):
        finetune(of_family("qwen2vl"), tmp_path, quiet)


def test_runs_from_before_there_were_families_resume(recipe: DemosFinetuneRecipe, of_family: Any) -> None:
    assert "family" not in _said(recipe)["architecture"]
    assert _said(of_family("gemma4"))["architecture"]["family"] == "gemma4"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(family_of(folder).load(folder).model.named_parameters())
