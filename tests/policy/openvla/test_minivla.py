"""MiniVLA: OpenVLA's towers and projector with Qwen2, against transformers' own Qwen2 on the same embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LogitsProcessorList
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

from benchmarks.models.plain_vlm import OnlyRows
from vla_robot.core.errors import CheckpointError
from vla_robot.policy.families import family_of
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.reason import build_text
from vla_robot.policy.openvla.oft import load_oft
from vla_robot.policy.openvla.policy import OpenVLAPolicy, check, load
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import IGNORE
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.train.batches.frames import answers_of, labelled

from .tiny_policies import OFT, TINY, create_policy, observation

TOKENS = 7
ROWS = [observation(), observation("open the door", seed=1), observation("put the cup on the plate", seed=2)]
PUBLISHED = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896,
    "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
"""text_config of a published folder with "qwen25-0_5b-extra" in this layout (VLA-Adapter's)."""


@dataclass(frozen=True)
class Sample:
    """A tiny folder, and transformers' own Qwen2 with the language model's tensors of its file."""

    folder: Path
    policy: OpenVLAPolicy
    library: Any

    def rows(self) -> RaggedSequence:
        with torch.no_grad():
            return self.policy.model.prompt(self.policy.read(ROWS))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Without norms of ones and biases of zeros, and with layers that change much: a tied head repeats its input."""
    folder = create_policy(tmp_path_factory.mktemp("minivla"), replace(TINY, max_positions=384), "qwen2")
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        spread = 0.5 if "language_model.model.layers" in name or "projector" in name else 0.1
        tensors[name] = tensor + spread * torch.randn(tensor.shape, generator=generator)
    tensors["language_model.model.norm.weight"] *= 10  # logits lie far apart
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())["text_config"]
    library = Qwen2ForCausalLM(Qwen2Config(**text)).eval()
    prefix = "language_model."
    theirs = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    missing, unexpected = library.load_state_dict(theirs, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied: one tensor in the file
    return Sample(folder, load(folder), library)


@torch.inference_mode()
def test_a_ragged_batch_says_the_librarys_tokens(sample: Sample) -> None:
    policy, rows = sample.policy, sample.rows()
    first, end = policy.codec.ids[0], policy.codec.ids[-1] + 1
    tokens = policy.generate(policy.read(ROWS), TOKENS)
    logits = policy._first_logits(policy.read(ROWS))
    assert len({tuple(row) for row in tokens.tolist()}) == len(ROWS)
    assert len(set(rows.lengths.tolist())) > 1
    for index, length in enumerate(rows.lengths.tolist()):
        out = sample.library.generate(
            inputs_embeds=rows.embeds[index : index + 1, :length], max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            logits_processor=LogitsProcessorList([OnlyRows(slice(first, end))]),
        )  # fmt: skip
        assert out.sequences[0, -TOKENS:].tolist() == tokens[index].tolist()
        torch.testing.assert_close(logits[index], out.logits[0][0, first:end], atol=1e-4, rtol=1e-5)
        alone = policy._first_logits(policy.read(ROWS[index : index + 1]))[0]
        torch.testing.assert_close(alone, logits[index], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_librarys(sample: Sample) -> None:
    policy, model = sample.policy, sample.policy.model
    answers = answers_of(np.random.default_rng(0).uniform(-1, 1, (3, 1, 7)), policy.codec, policy.tokenizer)
    batch = policy.read(ROWS)
    ids, labels = labelled(batch.prompts, answers, model.config.pad_token_id)
    ours = model(batch.pixels, torch.from_numpy(ids), torch.from_numpy(labels), batch.state).loss
    rows = sample.rows()
    theirs: list[float] = []
    for index, length in enumerate(rows.lengths.tolist()):
        answer = torch.from_numpy(answers[index])
        embeds = torch.cat([rows.embeds[index, :length], model.look_up(answer)])[None]
        wanted = torch.cat([torch.full((length,), IGNORE), answer])[None]
        theirs.append(float(sample.library(inputs_embeds=embeds, labels=wanted).loss))
    assert float(ours) == pytest.approx(float(np.mean(theirs)), abs=1e-5, rel=1e-6)


def test_images_follow_the_first_token_of_the_chat(sample: Sample) -> None:
    policy, model, rows = sample.policy, sample.policy.model, sample.rows()
    batch = policy.read(ROWS)
    first = policy.tokenizer.id_of("<|im_start|>")
    assert {int(prompt[0]) for prompt in batch.prompts} == {first}
    assert torch.equal(rows.embeds[0, 0], model.look_up(torch.tensor(first)))
    with torch.no_grad():
        patches = model.projector(model.perceive(batch.pixels))
    torch.testing.assert_close(rows.embeds[:, 1 : 1 + patches.shape[1]], patches, atol=1e-5, rtol=1e-5)
    assert policy.tokenizer.text("Lift it") == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat action should the robot take to lift it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert policy.tokenizer.eos == policy.tokenizer.id_of("<|im_end|>")


def test_the_head_stays_the_table_of_embeddings(sample: Sample, tmp_path: Path) -> None:
    family = family_of(sample.folder)
    policy: Any = family.load(sample.folder, Loading(trainable=True))
    text = policy.model.language_model
    assert text.lm_head.weight is text.model.embed_tokens.weight
    family.save_model(policy.model, tmp_path, sample.folder)
    saved, before = load_file(tmp_path / "model.safetensors"), load_file(sample.folder / "model.safetensors")
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)
    for name, _ in policy.model.named_parameters():
        assert sum(name.startswith(prefixes) for prefixes in policy.model.PARTS.values()) == 1, name


def _config(text: Mapping[str, Any] = {}, **more: Any) -> OpenVLAConfig:
    data: dict[str, Any] = {
        "model_type": "openvla", "timm_model_ids": ["vit_small_patch14_dinov2"], "image_sizes": [224],
        "llm_backbone_id": "qwen25-0_5b-extra", "pad_to_multiple_of": 64, "text_config": {**PUBLISHED, **text},
    }  # fmt: skip
    return OpenVLAConfig.from_dict({**data, **more}, "config.json")


def test_the_published_sizes() -> None:
    config = _config()
    assert (config.action_vocab_end - config.n_action_bins, config.action_vocab_end) == (151_665, 151_921)
    assert _config(llm_backbone_id="qwen25-7b-pure").action_vocab_end == 151_643  # the last of Qwen2.5's words
    with torch.device("meta"):
        model = build_text(config)
    assert sum(p.numel() for p in model.parameters()) == 494_032_768
    assert set(model.config.layer_types) == {"full_attention"}
    assert model.config.rope_parameters["rope_theta"] == 1_000_000


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ({}, {"llm_backbone_id": "phi-2-3b"}, "llm_backbone_id is 'phi-2-3b', so that it is unknown which ids"),
        ({"vocab_size": 151_700}, {}, "end at id 151921, but vocab_size is 151700"),
        ({"use_sliding_window": True}, {}, "use_sliding_window is True; only False is computed"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, {}, "layers with a window"),
        ({"model_type": "qwen3"}, {}, "model_type is 'qwen3'; supported: llama, qwen2"),
        ({"rope_parameters": {"rope_type": "yarn"}}, {}, "only rope_type 'default' is computed"),
    ],
)
def test_what_a_config_must_not_say(text: Mapping[str, Any], more: Mapping[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        _config(text, **more)


def test_it_is_compiled_as_a_llama_is(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced whole, and not compiled, which takes a minute each."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda work, **others: compiler(work, dynamic=False, fullgraph=True, backend="eager")
    )
    eager, compiled = load(sample.folder), load(sample.folder, Loading(compiled=True))
    batch = eager.read([observation(), observation(seed=1)])
    np.testing.assert_array_equal(compiled.generate(batch, 7), eager.generate(batch, 7))


def test_its_matrices_take_fewer_bits(sample: Sample) -> None:
    plain, small = load(sample.folder), load(sample.folder, Loading(quantise="fp8"))  # of which a CPU knows the formula
    assert small.memory_bytes() < plain.memory_bytes()
    assert small.generate(small.read([observation()]), 7).shape == (1, 7)


def test_regression_needs_a_llama(sample: Sample) -> None:
    check(sample.folder)
    with pytest.raises(CheckpointError, match="the language model is qwen2; OpenVLA-OFT's is a Llama"):
        load_oft(sample.folder, OFT)


def test_a_run_of_the_reference_code_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-qwen25-extra-dinosiglip-224px+0_5b"}}))
    with pytest.raises(CheckpointError, match="weights are pickled and not read"):
        family_of(tmp_path)
