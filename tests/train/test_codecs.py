"""Policies of every codec are trained by `vla finetune`, and their folders act as plain greedy decoding would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from vla_robot.cli.main import main
from vla_robot.core.errors import CheckpointError, ContractError, PolicyError, RecipeError
from vla_robot.core.messages import Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.kinds import check_policy, load_policy
from vla_robot.policy.vla.codecs.fast_files import train_fast
from vla_robot.policy.vla.inputs.prompts import train_tokenizer
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.policy.vla.loading import Loading
from vla_robot.recipe.finetune import CodecRecipe, DemosFinetuneRecipe
from vla_robot.recipe.policy_source import find_policy
from vla_robot.train.finetune import finetune

CHUNK = 3


@pytest.fixture(scope="module")
def fast_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(200, CHUNK, 2)) * 0.3, axis=1).clip(-1, 1)
    path = tmp_path_factory.mktemp("fast") / "fast.json"
    write_json(path, train_fast(smooth, 160).to_dict())
    return path


@pytest.fixture(scope="module")
def asked(fast_file: Path) -> dict[str, CodecRecipe]:
    return {
        "equal": CodecRecipe(scale="equal"),
        "by dimension": CodecRecipe(scale="equal", by_dimension=True),
        "words": CodecRecipe(kind="words"),
        "fast": CodecRecipe(kind="fast", tokenizer=fast_file),
    }


@pytest.fixture(scope="module")
def new(recipe: DemosFinetuneRecipe, asked: dict[str, CodecRecipe]) -> Callable[..., DemosFinetuneRecipe]:
    def make(family: str, codec: str, **more: Any) -> DemosFinetuneRecipe:
        tiny = replace(recipe.architecture, family=family, image_size=28, tower_depth=3, max_positions=256)
        tiny = replace(tiny, **more.pop("sizes", {}))
        return replace(recipe, architecture=tiny, chunk=CHUNK, codec=asked[codec], steps=3, ema=0.0, **more)

    return make


@pytest.fixture(scope="module")
def trained(new: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Family and codec -> the folder of a short run, made once, which no test changes."""

    @cache
    def run(family: str, codec: str) -> Path:
        losses: list[float] = []
        out = tmp_path_factory.mktemp("run")
        done = finetune(
            new(family, codec), out, lambda p: losses.append(p.metrics["loss"]) if "loss" in p.metrics else None
        )
        assert len(losses) == 3 and np.isfinite(losses).all()
        return done.policy

    return run


@pytest.fixture
def copied(trained: Callable[[str, str], Path], tmp_path: Path) -> Callable[[str, str], Path]:
    """The same, as a copy of the test's own."""
    return lambda family, codec: Path(shutil.copytree(trained(family, codec), tmp_path / "copied"))


def seen(light: float) -> Observation:
    frame = np.full((28, 28, 3), round(255 * light), np.uint8)
    return Observation({"front": frame}, np.zeros(1), "go to the light", 1, 1)


@torch.inference_mode()
def greedy(policy: Any, observation: Observation) -> list[int]:
    """One token after another, each the best of those that the grammar allows."""
    rows, reasoner, codec = policy.model.prompt(policy.read([observation])), policy.reasoner, policy.codec
    padded, count = rows.padded_left(), codec.tokens(2)
    cache = reasoner.start(padded, padded.embeds.shape[1] + count)
    embeds, state, said = padded.embeds, 0, list[int]()
    for _ in range(count):
        logits = policy.generator.logits(reasoner.read(embeds, cache, keep=1))[0, 0].clone()
        if codec.grammar is not None:
            if state == codec.grammar.done:
                break
            logits[~torch.from_numpy(codec.grammar.allowed[state])] = -torch.inf
        said.append(int(logits.argmax()))
        cache.filled += embeds.shape[1]
        embeds = policy.generator.look_up(torch.tensor([[said[-1]]]))
        state = 0 if codec.grammar is None else int(codec.grammar.following[state, said[-1]])
    return codec.ids[said].tolist()


@pytest.mark.parametrize("family", ["paligemma", "openvla"])
@pytest.mark.parametrize("codec", ["equal", "by dimension", "words", "fast"])
def test_a_new_policy_of_each_codec_is_trained_and_acts(trained: Any, family: str, codec: str) -> None:
    folder = trained(family, codec)
    source = find_policy(folder)
    check_policy(source.recipe)
    policy: Any = load_policy(source.recipe, None)
    torch.manual_seed(0)
    for parameter in policy.model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)  # lest all answers are alike
    rows = [seen(light) for light in (0.1, 0.5, 0.9)]
    chunks = policy.act(rows)
    assert all(chunk.actions.shape == (CHUNK, 2) and np.isfinite(chunk.actions).all() for chunk in chunks)
    tokens = policy.generate(policy.read(rows), policy.codec.tokens(2))
    for row, observation in zip(tokens, rows, strict=True):
        assert row[row >= 0].tolist() == greedy(policy, observation)
    assert len({tuple(row) for row in tokens.tolist()}) > 1
    assert read_json(folder / "config.json")["vla_robot"]["codec"] == policy.codec.kind


def test_a_dimension_says_only_its_own_rows_in_a_batch(trained: Any) -> None:
    policy: Any = load_policy(find_policy(trained("paligemma", "by dimension")).recipe, None)
    rows = policy.codec.rows(policy.generate(policy.read([seen(0.2), seen(0.8)]), 2 * CHUNK))
    np.testing.assert_array_equal(rows // 256, np.tile([0, 1], (2, CHUNK)))
    committed = replace(seen(0.2), committed=np.zeros((2, 2)))
    (chunk,) = policy.act([committed])
    assert chunk.conditioned
    np.testing.assert_allclose(chunk.actions[:2], np.zeros((2, 2)), atol=0.05)


@pytest.mark.parametrize("more", [{"lora_rank": 4}, {"train": ("vision", "projector")}])
def test_rows_that_would_never_be_learned_are_refused(new: Any, more: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="would never be learned"):
        new("paligemma", "equal", **more)
    assert new("paligemma", "words", **more).codec.kind == "words"


def test_a_codec_with_a_grammar_is_not_compiled(trained: Any) -> None:
    folder = trained("openvla", "fast")
    with pytest.raises(PolicyError, match="codec 'fast' limits each token"):
        family_of(folder).load(folder, Loading(compiled=True))


def test_fast_is_not_told_how_to_begin_and_refuses_another_horizon(copied: Any) -> None:
    folder = copied("paligemma", "fast")
    policy: Any = load_policy(find_policy(folder).recipe, None)
    (chunk,) = policy.act([replace(seen(0.2), committed=np.zeros((1, 2)))])
    assert not chunk.conditioned
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"vla_robot": config["vla_robot"] | {"chunk": CHUNK + 1}})
    with pytest.raises(CheckpointError, match=f"for chunks of {CHUNK} actions, but the policy's have {CHUNK + 1}"):
        family_of(folder).check(folder)


def plain_model(of: Path, folder: Path, words: int = 700) -> Path:
    """A vision-language model without actions, of a policy's folder."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(of / file, folder)
    letters = np.random.default_rng(0).integers(97, 123, (400, 6)).astype(np.uint8)
    family: Any = family_of(of)
    tokenizer = train_tokenizer([row.tobytes().decode() for row in letters], words, family.control_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "vla_robot"})
    return folder


@pytest.mark.parametrize("family", ["paligemma", "gemma4"])
def test_a_vocabulary_grows_and_old_logits_stay_bit_by_bit(
    new: Any, recipe: DemosFinetuneRecipe, tmp_path: Path, family: str
) -> None:
    sizes = {"text_vocab": 700, "image_size": 56}
    finetune(replace(new(family, "equal", sizes=sizes), codec=None, steps=1), tmp_path / "any", quiet)
    plain = plain_model(tmp_path / "any" / "start", tmp_path / "plain")
    grown = replace(recipe, policy=plain, chunk=CHUNK, codec=CodecRecipe(scale="equal", rows="added"), steps=1)
    finetune(grown, tmp_path / "run", quiet)
    new_one = family_of(plain).load_model(tmp_path / "run" / "start", torch.float32, torch.device("cpu"))
    before: Any = AutoModelForImageTextToText.from_pretrained(str(plain), local_files_only=True).eval()
    rows = before.lm_head.weight.shape[0]
    assert len(new_one.head) == rows + 256
    assert new_one.config.codec.ids.tolist() == list(range(rows, rows + 256))
    hidden = torch.randn(3, before.lm_head.weight.shape[1])
    assert torch.equal(new_one.head[:rows], before.lm_head.weight)
    assert torch.equal((hidden @ new_one.head.T)[:, :rows], hidden @ before.lm_head.weight.T)
    ids = torch.arange(rows)
    assert torch.equal(new_one.look_up(ids)[..., : hidden.shape[1]], before.get_input_embeddings()(ids))
    policy: Any = load_policy(find_policy(tmp_path / "run" / "final").recipe, None)
    assert np.isfinite(policy.act([seen(0.3)])[0].actions).all()


def quiet(*_: object) -> None:
    pass


def test_what_a_folder_says_of_its_codec_must_be_what_its_weights_know(copied: Any) -> None:
    folder = copied("paligemma", "equal")
    config, codec = read_json(folder / "config.json"), read_json(folder / "codec.json")
    check = family_of(folder).check

    def saying(block: dict[str, Any] | None, described: dict[str, Any] | None) -> None:
        if block is not None:
            write_json(folder / "config.json", config | {"vla_robot": block})
        (folder / "codec.json").unlink(missing_ok=True)
        if described is not None:
            (folder / "codec.json").write_text(json.dumps(described))

    block = config["vla_robot"]
    saying(block, None)
    with pytest.raises(CheckpointError, match=r"names the codec 'bins', but codec\.json is missing"):
        check(folder)
    saying(block | {"codec": "fast"}, codec)
    with pytest.raises(CheckpointError, match=r"names the codec 'fast', but .* describes 'bins'"):
        check(folder)
    saying({key: value for key, value in block.items() if key != "codec"}, codec)
    with pytest.raises(CheckpointError, match="names no codec; one of the two is of another policy"):
        check(folder)
    saying({key: value for key, value in block.items() if key != "codec"}, None)
    with pytest.raises(CheckpointError, match="names no codec: its block"):
        check(folder)
    saying(block, codec | {"ids": [each + 1000 for each in codec["ids"]]})
    with pytest.raises(CheckpointError, match="but the model's vocabulary has"):
        check(folder)
    saying(block, codec | {"scale": "openvla"})
    with pytest.raises(CheckpointError, match="were trained for another action codec"):
        check(folder)
    with pytest.raises(CheckpointError, match="were trained for another action codec"):
        family_of(folder).load(folder)
    saying(block | {"codec": "signs"}, codec | {"kind": "signs"})
    with pytest.raises(CheckpointError, match="unknown codec 'signs'"):
        check(folder)


def test_a_policy_that_acts_keeps_its_codec(trained: Any, recipe: DemosFinetuneRecipe, tmp_path: Path) -> None:
    folder = trained("paligemma", "words")
    again = finetune(replace(recipe, policy=folder, steps=1), tmp_path / "second", quiet).policy
    assert read_json(again / "codec.json") == read_json(folder / "codec.json")
    with pytest.raises(RecipeError, match="says actions already"):
        finetune(replace(recipe, policy=folder, codec=CodecRecipe(kind="words")), tmp_path / "third", quiet)
    policy: Any = load_policy(find_policy(again).recipe, None)
    with pytest.raises(ContractError, match="for actions of 2 numbers, but 3 are asked for"):
        policy.codec.tokens(3)


def test_a_launch_file_trains_on_tokens_of_its_own_data(
    demos_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "fast.json"
    told = ["data", "fast", str(demos_folder), "--chunk", "4", "--tokens", "200", "--out", str(tokens)]
    assert main([*told, "--json", str(tmp_path / "told.json")]) == 0
    row = read_json(tmp_path / "told.json")["rows"][0]
    assert row["chunks"] == 96 and row["tokens"] <= 200 and row["tokens_max"] <= 8
    assert 0 < row["error_max"] <= 0.5 / 10 * 4**0.5
    assert "96 chunks of 4 actions of 2 numbers" in capsys.readouterr().out
    launch = tmp_path / "launch.toml"
    launch.write_text(
        f"""
verb = "finetune"
data = ["{demos_folder}"]
chunk = 4
steps = 2
batch_size = 4
[architecture]
family = "paligemma"
image_size = 28
tower_dim = 24
tower_depth = 3
tower_heads = 2
llm_dim = 32
llm_layers = 2
llm_heads = 2
llm_ff_dim = 48
text_vocab = 320
[codec]
kind = "fast"
tokenizer = "{tokens}"
"""
    )
    assert main(["finetune", str(launch), "--out", str(tmp_path / "run")]) == 0
    policy: Any = load_policy(find_policy(tmp_path / "run" / "final").recipe, None)
    assert policy.codec.kind == "fast" and policy.act([seen(0.4)])[0].actions.shape == (4, 2)
