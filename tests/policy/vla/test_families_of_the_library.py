"""Our reasoner, masks, positions and decoding beside transformers' own `generate` on the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import END_OF_ACTIONS, FIRST_ACTION, tiny_llama

from vla_robot.core.errors import ContractError
from vla_robot.policy.openvla.network.reason import Decoder
from vla_robot.policy.vla.codecs.bins import openvla_bins
from vla_robot.policy.vla.reason.generate import Generator
from vla_robot.policy.vla.reason.text_reasoner import TextReasoner
from vla_robot.policy.vla.sequence.masks import MaskRule
from vla_robot.policy.vla.sequence.positions import ImageSpan, mrope
from vla_robot.policy.vla.sequence.ragged import RaggedSequence, next_position

IMAGE = 300


def test_a_ragged_batch_says_what_generate_says(family: Any) -> None:
    tokens, first_logits, entropy = family.generate()
    generator = family.generator()
    with torch.inference_mode():
        answer = generator.answer(family.sequence, len(tokens[0]))
        assert answer.ids.tolist() == tokens
        torch.testing.assert_close(answer.entropy, entropy, atol=1e-3, rtol=0)
        assert float(entropy.std()) > 0.01
        torch.testing.assert_close(generator.first_logits(family.sequence), first_logits, atol=1e-4, rtol=1e-5)


def test_each_row_alone_says_what_it_says_in_the_batch(family: Any) -> None:
    generator = family.generator()
    with torch.inference_mode():
        together = generator.answer(family.sequence, 7).ids
        logits = generator.first_logits(family.sequence)
        for index in range(2):
            assert generator.answer(family.row(index), 7).ids[0].tolist() == together[index].tolist()
            alone = generator.first_logits(family.row(index))[0]
            torch.testing.assert_close(alone, logits[index], atol=1e-4, rtol=1e-5)


def test_a_forced_beginning_is_gone_on_with(family: Any) -> None:
    """The beginning that greedy decoding would have chosen changes nothing, though rows have different lengths."""
    generator = family.generator()
    with torch.inference_mode():
        free = generator.answer(family.sequence, 7)
        begun = generator.answer(family.sequence, 7, prefixes=[free.ids[0, :3], free.ids[1, :1]])
        assert begun.ids.tolist() == free.ids.tolist()
        given = torch.tensor([[True] * 3 + [False] * 4, [True] + [False] * 6])
        expected = free.entropy.masked_fill(given, torch.nan)
        torch.testing.assert_close(begun.entropy, expected, atol=1e-3, rtol=0, equal_nan=True)


def test_the_image_decides(family: Any) -> None:
    sequence: RaggedSequence = family.sequence
    other = RaggedSequence(sequence.embeds.flip(0), sequence.lengths, sequence.blocks, sequence.positions)
    generator = family.generator()
    with torch.inference_mode():
        assert not torch.equal(generator.first_logits(other), generator.first_logits(sequence))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("PaliGemma", {"blocks_in_full": False}),
        ("PaliGemma2", {"blocks_in_full": False}),
        ("PaliGemma2", {"window_cuts_blocks": True}),
        ("Gemma4", {"window": 2}),
        ("Gemma4", {"blocks_in_full": True}),
        ("Gemma4", {"window_cuts_blocks": False}),
        ("Gemma4Unified", {"blocks_in_full": False}),
        ("Gemma4Unified", {"window_cuts_blocks": True}),
    ],
)
def test_another_rule_says_something_else(families: Any, name: str, change: dict[str, Any]) -> None:
    """Proves that the tests above look at the mask."""
    family = families(name)
    with torch.inference_mode():
        right = family.generator().first_logits(family.sequence)
        other = replace(family, rule=replace(family.rule, **change)).generator().first_logits(family.sequence)
    assert (other - right).abs().max() > 1e-2


@settings(max_examples=60)
@given(data=st.data())
def test_positions_of_images_are_the_librarys(families: Any, data: st.DataObject) -> None:
    model = families("Qwen2VL").model.model
    grids = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3))
    texts = data.draw(st.lists(st.integers(1, 4), min_size=len(grids) + 1, max_size=len(grids) + 1))
    ids, spans = [7] * texts[0], []
    for (rows, columns), text in zip(grids, texts[1:], strict=True):
        spans.append(ImageSpan(len(ids), rows, columns))
        ids += [IMAGE] * rows * columns + [7] * text
    row = torch.tensor([ids])
    unmerged = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    expected, delta = model.get_rope_index(row, (row == IMAGE).int(), unmerged if grids else None)
    positions = mrope(len(ids), spans)
    assert positions.tolist() == expected[:, 0].tolist()
    assert int(next_position(positions)) == len(ids) + int(delta)


def test_the_worked_example_of_positions() -> None:
    assert mrope(9, [ImageSpan(1, 2, 3)]).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("lengths", [[9], [9, 4, 7]])
def test_both_reasoners_say_the_same_of_a_llama(lengths: list[int]) -> None:
    llama = tiny_llama(kv_heads=2, sharpness=30)
    actions, codec = slice(FIRST_ACTION, END_OF_ACTIONS), openvla_bins(END_OF_ACTIONS, END_OF_ACTIONS - FIRST_ACTION)
    rows = llama.model.embed_tokens.weight[actions], llama.lm_head.weight[actions], codec
    by_the_library = Generator(TextReasoner(llama.model, MaskRule()), *rows)
    ours = Generator(Decoder(llama), *rows)
    prompt = RaggedSequence(torch.randn(len(lengths), max(lengths), 64), torch.tensor(lengths))
    with torch.inference_mode():
        assert ours.answer(prompt, 9).ids.tolist() == by_the_library.answer(prompt, 9).ids.tolist()
        torch.testing.assert_close(ours.first_logits(prompt), by_the_library.first_logits(prompt), atol=1e-4, rtol=1e-5)


def test_more_tokens_than_positions_are_refused(families: Any) -> None:
    family = families("PaliGemma")
    with pytest.raises(ContractError, match="tokens, but the language model has 128 positions"):
        family.generator().answer(family.sequence, 200)
