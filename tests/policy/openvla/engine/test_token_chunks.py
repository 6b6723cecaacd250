"""Chunks of several actions as tokens, and what the arm has committed to as a forced beginning of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_llama import END_OF_ACTIONS as END
from tiny_llama import FIRST_ACTION as FIRST
from tiny_llama import tiny_llama
from transformers import LlamaForCausalLM

from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.reason.generate import Generator
from vla_robot.policy.vla.sequence.ragged import RaggedSequence

K, D = 4, 7
TOKENS = 12


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return tiny_llama(kv_heads=2, seed=1, sharpness=30)


@pytest.fixture(scope="module")
def generator(llama: LlamaForCausalLM) -> Generator:
    embeddings, head = llama.model.embed_tokens.weight[FIRST:END], llama.lm_head.weight[FIRST:END]
    return Generator(Decoder(llama), embeddings, head, openvla_bins(END, END - FIRST))


def prompts(lengths: Sequence[int]) -> RaggedSequence:
    seeded = torch.Generator().manual_seed(len(lengths))
    return RaggedSequence(torch.randn(len(lengths), max(lengths), 64, generator=seeded), torch.tensor(lengths))


@pytest.mark.parametrize("lengths", [[6], [6, 9, 4]])
def test_what_follows_a_prefix_is_what_transformers_says_after_it(
    llama: LlamaForCausalLM,
    generator: Generator,
    by_transformers: Callable[..., tuple[list[int], float]],
    lengths: list[int],
) -> None:
    prompt = prompts(lengths)
    prefixes = [[200, 131, 355], [100], []][: len(lengths)]
    said = generator.answer(prompt, TOKENS, prefixes=[torch.tensor(p, dtype=torch.int64) for p in prefixes]).ids
    for row, prefix in enumerate(prefixes):
        expected, _ = by_transformers(llama, prompt.embeds[row, : lengths[row]], TOKENS, FIRST, END, prefix)
        assert said[row].tolist() == expected
        assert expected[: len(prefix)] == prefix


def test_a_prefix_that_greedy_decoding_would_have_chosen_changes_nothing(generator: Generator) -> None:
    prompt = prompts([6, 9])
    plain = generator.answer(prompt, TOKENS).ids
    for count in (1, 5, TOKENS - 1):
        continued = generator.answer(prompt, TOKENS, prefixes=[plain[0, :count], plain[1, : count // 2]]).ids
        assert continued.tolist() == plain.tolist()


def test_another_prefix_changes_what_follows(generator: Generator) -> None:
    prompt = prompts([6])
    plain = generator.answer(prompt, TOKENS).ids[0]
    other = torch.tensor([FIRST + (int(plain[0]) - FIRST + 128) % 256])
    said = generator.answer(prompt, TOKENS, prefixes=[other]).ids[0]
    assert said[0] == other[0] and said[1:].tolist() != plain[1:].tolist()


@pytest.fixture
def of_four(folder_of_four: Path) -> OpenVLAPolicy:
    return load(folder_of_four)


def seen(
    seed: int = 0, committed: NDArray[np.float64] | None = None, instruction: str = "open the door"
) -> Observation:
    rng = np.random.default_rng(seed)
    frames = {n: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in ("front", "wrist")}
    return Observation(frames, rng.normal(size=2), instruction, stamp_ns=11, step=4, committed=committed)


def test_an_answer_holds_as_many_actions_as_the_checkpoint_says(tiny: OpenVLAPolicy, of_four: OpenVLAPolicy) -> None:
    (chunk,) = of_four.act([seen()])
    assert chunk.actions.shape == (K, D) and chunk.step == 4 and not chunk.conditioned
    np.testing.assert_array_equal(chunk.actions[:1], tiny.act([seen()])[0].actions)


def test_the_answer_begins_with_what_is_committed_up_to_half_a_bin(of_four: OpenVLAPolicy) -> None:
    stats = of_four.action_stats()
    committed = np.random.default_rng(3).uniform(0.8 * stats.q01, 0.8 * stats.q99, (2, D))
    committed[:, ~stats.mask] = 1.0
    (chunk,) = of_four.act([seen(committed=committed)])
    assert chunk.conditioned
    half_a_bin = np.where(stats.mask, (stats.q99 - stats.q01) / 255 / 2, 1 / 255)
    assert (np.abs(chunk.actions[:2] - committed) <= half_a_bin + 1e-9).all()


def test_committing_to_the_policys_own_plan_leaves_the_plan_as_it_was(of_four: OpenVLAPolicy) -> None:
    (plan,) = of_four.act([seen()])
    for rows in range(K + 3):  # an arm may have committed to more than an answer holds
        committed = np.concatenate([plan.actions, plan.actions])[:rows]
        (again,) = of_four.act([seen(committed=committed)])
        assert again.conditioned
        np.testing.assert_allclose(again.actions, plan.actions, atol=1e-12)


def test_rows_with_and_without_commitments_share_a_batch(of_four: OpenVLAPolicy) -> None:
    stats = of_four.action_stats()
    middle = np.tile((stats.q01 + stats.q99) / 2, (2, 1))
    batch = [seen(1, middle, "go"), seen(2), seen(3, middle[:1], "put the very long named thing on the other thing")]
    for one, chunk in zip(batch, of_four.act(batch), strict=True):
        np.testing.assert_array_equal(of_four.act([one])[0].actions, chunk.actions)


def test_a_policy_of_one_action_heeds_no_commitment(tiny: OpenVLAPolicy) -> None:
    (plain,), (asked,) = tiny.act([seen()]), tiny.act([seen(committed=np.zeros((2, D)))])
    np.testing.assert_array_equal(plain.actions, asked.actions)
    assert not asked.conditioned


@pytest.mark.parametrize(
    ("committed", "why"),
    [(np.zeros((2, 3)), "actions of 3 numbers, but the policy's have 7"), (np.full((2, D), np.nan), "not finite")],
)
def test_a_commitment_that_does_not_fit_is_refused(
    of_four: OpenVLAPolicy, committed: NDArray[np.float64], why: str
) -> None:
    with pytest.raises(ContractError, match=why):
        of_four.act([replace(seen(), committed=committed)])


def test_a_chunk_of_no_action_is_refused(broken: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="chunk is 0"):
        load(broken(vla_robot={"num_images": 2, "chunk": 0}))
