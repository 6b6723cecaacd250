"""Our decoder against transformers' own forward pass on the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_llama import END_OF_ACTIONS, FIRST_ACTION, tiny_llama
from transformers import LlamaForCausalLM

from vla_robot.core.errors import CheckpointError, ContractError, PolicyError
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.reason.generate import Draft, Generator
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import PaddedSequence, RaggedSequence


def hidden_by_transformers(model: LlamaForCausalLM, embeds: torch.Tensor) -> torch.Tensor:
    return model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state


def read_in_parts(decoder: Decoder, embeds: torch.Tensor, lengths: list[int], parts: list[torch.Tensor]) -> list[Any]:
    """The last hidden state of a prompt padded at the right, and all of those after it, part by part."""
    prompt = RaggedSequence(embeds, torch.tensor(lengths)).padded_left()
    cache = decoder.start(prompt, embeds.shape[1] + sum(part.shape[1] for part in parts))
    hidden = [decoder.read(prompt.embeds, cache, keep=1)]
    cache.filled += embeds.shape[1]
    for part in parts:
        hidden.append(decoder.read(part, cache, keep=part.shape[1]))
        cache.filled += part.shape[1]
    return hidden


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[9], [6, 1, 1, 1], [6, 3], [5, 2, 2]])
def test_reading_in_parts_equals_one_full_pass(kv_heads: int, sizes: list[int]) -> None:
    model = tiny_llama(kv_heads)
    prompt, *parts = torch.randn(2, 9, 64).split(sizes, dim=1)
    expected = hidden_by_transformers(model, torch.cat([prompt, *parts], dim=1))
    hidden = read_in_parts(Decoder(model), prompt, [prompt.shape[1]] * 2, parts)
    torch.testing.assert_close(torch.cat(hidden, dim=1), expected[:, sizes[0] - 1 :], atol=1e-5, rtol=1e-5)


def test_a_draft_leaves_no_trace() -> None:
    model = tiny_llama()
    decoder = Decoder(model)
    prompt, wrong, right = torch.randn(3, 2, 6, 64)
    cache = decoder.start(PaddedSequence(prompt), 12)
    decoder.read(prompt, cache, keep=6)
    cache.filled += 6
    decoder.read(wrong, cache, keep=6)
    hidden = decoder.read(right, cache, keep=2)
    expected = hidden_by_transformers(model, torch.cat([prompt, right], dim=1))
    torch.testing.assert_close(hidden, expected[:, -2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[9, 9], [9, 4]])
def test_whether_rows_are_padded_is_decided_without_the_device(lengths: list[int]) -> None:
    """Numbers on the meta device cannot be read."""
    embeds = torch.empty(2, 9, 64, device="meta")
    moved = RaggedSequence(embeds, torch.tensor(lengths)).padded_left()
    assert moved.embeds.shape == embeds.shape
    assert (moved.padding is None) == (lengths == [9, 9])
    assert moved.padding is None or moved.padding.is_meta
    hidden = Decoder(tiny_llama().to("meta")).bidirectional(embeds, torch.tensor(lengths, device="meta"))
    assert hidden.shape == embeds.shape


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(2, 12), min_size=1, max_size=6), st.integers(0, 2**16))
def test_each_row_of_a_ragged_batch_equals_itself_alone(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), 64, generator=generator)
    more = list(torch.randn(len(lengths), 4, 64, generator=generator).split([1, 3], dim=1))
    decoder = Decoder(tiny_llama())
    together = read_in_parts(decoder, embeds, lengths, more)
    for row, length in enumerate(lengths):
        this = slice(row, row + 1)
        alone = read_in_parts(decoder, embeds[this, :length], [length], [part[this] for part in more])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many[this], one, atol=1e-5, rtol=1e-5)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ContractError, match="65 tokens, but the language model has 64 positions"):
        Decoder(tiny_llama()).start(PaddedSequence(torch.zeros(1, 60, 64)), 65)


def test_fused_weights_are_the_models_own_memory() -> None:
    model = tiny_llama()
    Decoder(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.k_proj.weight.untyped_storage().data_ptr()


def generator_of(model: LlamaForCausalLM, chunk: int = 1) -> Generator:
    weights = model.model.embed_tokens.weight, model.lm_head.weight
    embedding, head = (weight[FIRST_ACTION:END_OF_ACTIONS] for weight in weights)
    return Generator(
        Decoder(model), embedding, head, openvla_bins(END_OF_ACTIONS, END_OF_ACTIONS - FIRST_ACTION, chunk)
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    count=st.integers(1, 14),
    chunk=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_guessing_gives_the_tokens_of_greedy_decoding_one_by_one(
    by_transformers: Callable[..., tuple[list[int], float]], lengths: list[int], count: int, chunk: int, seed: int
) -> None:
    """Whatever is guessed, for every row, and in no more passes than tokens."""
    model = tiny_llama()
    embeds = torch.randn(len(lengths), max(lengths), 64, generator=torch.Generator().manual_seed(seed))
    expected = [
        by_transformers(model, embeds[row, :length], count, FIRST_ACTION, END_OF_ACTIONS)
        for row, length in enumerate(lengths)
    ]
    assume(min(lead for _, lead in expected) > 1e-5)  # nearer ones are decided by the order of a sum
    stages = StageTimer()
    said = generator_of(model, chunk).answer(RaggedSequence(embeds, torch.tensor(lengths)), count, stages).ids
    assert said.tolist() == [tokens for tokens, _ in expected]
    assert stages.passes < count


def test_what_repeats_itself_is_not_read_token_by_token() -> None:
    """A model whose answers do not hang on what it said before needs one pass to correct its guess, and one to see that
    nothing changes; the same action again costs one."""
    model = tiny_llama()
    model.model.embed_tokens.weight[100:356] = 0.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:] = 0.0  # each token sees itself alone
    stages = StageTimer()
    said = generator_of(model, chunk=3).answer(RaggedSequence(torch.ones(1, 5, 64), torch.tensor([5])), 21, stages).ids
    assert said.shape == (1, 21)
    assert stages.passes <= 4


def test_a_device_that_rounds_differently_each_time_cannot_keep_an_answer_from_ending() -> None:
    generator = generator_of(tiny_llama())
    stages = StageTimer()
    draft = generator.begin(PaddedSequence(torch.randn(1, 5, 64)), 7, 7)
    never = itertools.count()

    def flickering(draft: Draft) -> Draft:
        corrected = generator.correct(draft)
        return replace(corrected, said=(corrected.said + next(never)) % 256)

    assert generator.complete(draft, 7, 7, stages, flickering).ids.shape == (1, 7)
    assert stages.passes == 6


def test_only_action_tokens_can_be_said() -> None:
    model = tiny_llama()
    model.lm_head.weight[:100] += 100.0  # words that would win everywhere
    tokens = generator_of(model).answer(RaggedSequence(torch.randn(8, 5, 64), torch.full((8,), 5)), 7).ids
    assert tokens.shape == (8, 7)
    assert ((tokens >= 100) & (tokens < 356)).all()


def test_logits_that_are_not_finite_never_become_an_action() -> None:
    model = tiny_llama()
    embeds = torch.full((1, 4, 64), np.nan)
    with pytest.raises(PolicyError, match="logits are not finite"):
        generator_of(model).answer(RaggedSequence(embeds, torch.tensor([4])), 7)


def test_an_unknown_rope_is_refused() -> None:
    model = tiny_llama()
    model.config.rope_parameters["rope_type"] = "yarn"
    with pytest.raises(CheckpointError, match="rope_type 'yarn' is not supported"):
        Decoder(model)
