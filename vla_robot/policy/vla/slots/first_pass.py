"""The first pass over prompts of fixed sizes, for a block that keeps its tensors and for a graph that is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.reason.generate import Generator
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.sequence.columns import put_at
from vla_robot.policy.vla.sequence.ragged import RaggedSequence, with_given
from vla_robot.policy.vla.slots.sizes import BlockSize


@dataclass(frozen=True)
class PromptTensors:
    """Inputs of a first pass.

    Attributes:
        pixels: (B, N, C, H, W), of which only the shape is read.
        features: what `perceive` made of them.
        ids: (B, L) int64 text, padded at the right.
        lengths: (B,) int64 tokens of each text.
        state: (B, P), or None for a policy without proprioception.
        given: (B, G) int64 rows with which the answers begin; None where none is told how to begin.
        counts: (B,) int64 given tokens of each row; None without `given`.
    """

    pixels: Tensor
    features: Any
    ids: Tensor
    lengths: Tensor
    state: Tensor | None
    given: Tensor | None = None
    counts: Tensor | None = None


@dataclass(frozen=True)
class FirstPass:
    """What a first pass leaves.

    Attributes:
        guess: (B, D - 1) int64 tokens that were read behind the prompt.
        at: (B, D - 1) int64 slots of the guess.
        hidden: (B, D, W) hidden states after the prompt and after each guessed token.
        memory: keys and values, as the reasoner's `read_at` takes them.
    """

    guess: Tensor
    at: Tensor
    hidden: Tensor
    memory: Any


def arranged(model: VLAModel[Any], size: BlockSize, pixels: Tensor, embeds: Tensor, lengths: Tensor) -> RaggedSequence:
    """Return (B, S, W) rows with (B,) tokens of text each, widened by the columns of the answer."""
    rows = model.arrange(pixels, embeds, lengths + (embeds.shape[1] - size.text))
    return rows.widened(embeds.shape[1] + size.answer)


def first_pass(
    model: VLAModel[Any], reasoner: Reasoner[Any], generator: Generator, size: BlockSize, fed: PromptTensors
) -> FirstPass:
    """Align, and read prompts together with the first guess of an action. No size depends on a number.

    Raises:
        ContractError: the model has fewer positions than the size has columns.
    """
    embeds = model.align(fed.features, fed.ids, fed.state)
    rows = arranged(model, size, fed.pixels, embeds, fed.lengths)
    if fed.given is not None and fed.counts is not None:
        rows = with_given(rows, generator.look_up(fed.given), fed.counts)
    ends = rows.lengths
    guess = generator.first_guess(size.rows, size.action_dim - 1)
    at = ends[:, None] + torch.arange(size.action_dim - 1, device=ends.device)
    put_at(rows.embeds, at, generator.look_up(guess))
    hidden, memory = reasoner.read_rows(rows, torch.cat([ends[:, None] - 1, at], dim=1))
    return FirstPass(guess, at, hidden, memory)
