"""Rows of different length: what stands where after they were padded and gone on with, and what sees what."""

from __future__ import annotations

import torch

from vla_robot.policy.vla.sequence.masks import FULL, SLIDING, MaskRule, additive
from vla_robot.policy.vla.sequence.positions import ImageSpan, mrope
from vla_robot.policy.vla.sequence.ragged import RaggedSequence


def rows() -> RaggedSequence:
    """Two rows of 3 and 2 tokens with distinct numbers, the first beginning with a block of two."""
    embeds = torch.arange(6.0).view(2, 3, 1)
    positions = torch.stack([mrope(3, [ImageSpan(0, 1, 2)]), mrope(3, [])])
    return RaggedSequence(embeds, torch.tensor([3, 2]), torch.tensor([[1, 1, 0], [0, 0, 0]]), positions)


def test_rows_padded_at_the_left_end_together() -> None:
    padded = rows().padded_left()
    assert padded.padding is not None and padded.blocks is not None and padded.positions is not None
    assert padded.padding.tolist() == [0, 1]
    assert padded.embeds[0, :, 0].tolist() == [0, 1, 2] and padded.embeds[1, 1:, 0].tolist() == [3, 4]
    assert padded.blocks.tolist()[0] == [1, 1, 0]
    assert padded.positions[1, 0, 1:].tolist() == [0, 1]


def test_rows_of_one_length_are_not_padded() -> None:
    sequence = RaggedSequence(torch.zeros(2, 3, 1), torch.tensor([3, 3]))
    padded = sequence.padded_left()
    assert padded.padding is None and padded.embeds is sequence.embeds


def test_what_follows_is_causal_and_counts_on() -> None:
    longer = rows().followed_by([torch.full((1, 1), 8.0), torch.full((2, 1), 9.0)])
    assert longer.lengths.tolist() == [4, 4]
    assert longer.embeds[0, :4, 0].tolist() == [0, 1, 2, 8] and longer.embeds[1, :4, 0].tolist() == [3, 4, 9, 9]
    assert longer.blocks is not None and longer.blocks.tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert longer.positions is not None
    assert longer.positions[0, 0, :4].tolist() == [0, 0, 2, 3] and longer.positions[1, 2, :4].tolist() == [0, 1, 2, 3]


def test_a_prefix_sees_itself_and_an_answer_sees_what_came_before() -> None:
    blocks = torch.tensor([[0, 1, 1]])  # one token of padding
    mask = MaskRule().visible(4, torch.tensor([1]), blocks, torch.device("cpu"))[FULL][0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_a_window_cuts_blocks_or_leaves_them_whole() -> None:
    blocks = torch.tensor([[1, 1, 1, 0]])
    device = torch.device("cpu")
    cut = MaskRule(window=2, window_cuts_blocks=True).visible(4, None, blocks, device)[SLIDING][0, 0]
    whole = MaskRule(window=2).visible(4, None, blocks, device)[SLIDING][0, 0]
    assert cut.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert whole.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1]]


def test_an_additive_mask_adds_nothing_to_what_is_seen() -> None:
    mask = additive(torch.tensor([True, False]), torch.float16)
    assert mask.tolist() == [0.0, torch.finfo(torch.float16).min]
