"""Our decoder against transformers' own forward pass on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from vla_robot.core.errors import CheckpointError, PolicyError
from vla_robot.policy.openvla.generate import Generator
from vla_robot.policy.openvla.reason import Decoder


def llama(kv_heads: int = 4) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def hidden_by_transformers(model: LlamaForCausalLM, embeds: torch.Tensor) -> torch.Tensor:
    return model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_prefill_and_steps_equal_one_full_pass(kv_heads: int) -> None:
    model = llama(kv_heads)
    embeds = torch.randn(2, 9, 64)
    expected = hidden_by_transformers(model, embeds)
    decoder = Decoder(model)
    hidden, cache = decoder.prefill(embeds[:, :6], torch.tensor([6, 6]), 3)
    torch.testing.assert_close(hidden, expected[:, 5], atol=1e-5, rtol=1e-5)
    for position in range(6, 9):
        hidden = decoder.step(embeds[:, position], cache)
        torch.testing.assert_close(hidden, expected[:, position], atol=1e-5, rtol=1e-5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), st.integers(0, 2**16))
def test_each_row_of_a_ragged_batch_equals_itself_alone(lengths: list[int], seed: int) -> None:
    model = llama()
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), 64, generator=generator)
    more = torch.randn(len(lengths), 2, 64, generator=generator)
    decoder = Decoder(model)
    hidden, cache = decoder.prefill(embeds, torch.tensor(lengths), 2)
    together = [hidden, decoder.step(more[:, 0], cache), decoder.step(more[:, 1], cache)]
    for row, length in enumerate(lengths):
        alone, cache = decoder.prefill(embeds[row : row + 1, :length], torch.tensor([length]), 2)
        steps = [alone, decoder.step(more[row : row + 1, 0], cache), decoder.step(more[row : row + 1, 1], cache)]
        for one, many in zip(steps, together, strict=True):
            torch.testing.assert_close(many[row : row + 1], one, atol=1e-5, rtol=1e-5)


def test_fused_weights_are_the_models_own_memory() -> None:
    model = llama()
    Decoder(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.k_proj.weight.untyped_storage().data_ptr()


def generator_of(model: LlamaForCausalLM) -> Generator:
    weights = model.model.embed_tokens.weight, model.lm_head.weight
    return Generator(Decoder(model), *weights, first_id=100, vocab_end=356)


def test_only_action_tokens_can_be_said() -> None:
    model = llama()
    model.lm_head.weight[:100] += 100.0  # words that would win everywhere
    tokens = generator_of(model).tokens(torch.randn(8, 5, 64), torch.full((8,), 5), 7)
    assert tokens.shape == (8, 7)
    assert ((tokens >= 100) & (tokens < 356)).all()


def test_logits_that_are_not_finite_never_become_an_action() -> None:
    model = llama()
    embeds = torch.full((1, 4, 64), np.nan)
    with pytest.raises(PolicyError, match="logits are not finite"):
        generator_of(model).tokens(embeds, torch.tensor([4]), 7)


def test_an_unknown_rope_is_refused() -> None:
    model = llama()
    model.config.rope_parameters["rope_type"] = "yarn"
    with pytest.raises(CheckpointError, match="rope_type 'yarn' is not supported"):
        Decoder(model)
