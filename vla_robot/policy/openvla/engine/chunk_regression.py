"""OpenVLA-OFT's inference: a chunk of actions from one pass over the prompt, in blocks of fixed sizes on CUDA.

    see      pixels --perceive--> features
    answer   features, text, state --align--> rows --one bidirectional pass, head--> actions

The steps of a block are recorded once and repeated, as `policy.vla.slots` says. No number is read: whether the actions
are finite is seen when they arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.inputs.upload import upload
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.slots.memory import Kept, put_inputs
from vla_robot.policy.vla.slots.recorded import recorded
from vla_robot.policy.vla.slots.sizes import rounded_rows, rounded_text
from vla_robot.policy.vla.slots.turns import Turns


@dataclass(frozen=True)
class ChunkSize:
    """Everything that the shapes of a regression depend on.

    Attributes:
        rows: B, observations.
        text: L, tokens of the longest prompt's text, placeholders included.
        frames: shape of one row's pixels, (N, C, H, W).
    """

    rows: int
    text: int
    frames: tuple[int, ...]


class ChunkBlock:
    """Regression of one size. Its steps return nothing; they read and write its tensors.

    Attributes:
        pixels: (B, N, C, H, W), in the model's precision.
        ids: (B, L) int64 text with its placeholders, padded at the right.
        state: (B, P), or None for a policy without proprioception.
        lengths: (B,) int64 tokens of each text.
        actions: (B, K, D) normalised.
        steps: "see" and "answer", recorded where the device can.
    """

    def __init__(self, size: ChunkSize, model: OpenVLA, generator: ParallelGenerator) -> None:
        """Raises ContractError if the model has fewer positions than the block has columns."""
        self._model, self._generator = model, generator
        weight, P = model.weight, model.config.inputs.proprio_dim
        floats: Any = {"dtype": weight.dtype, "device": weight.device}
        self.pixels = torch.zeros(size.rows, *size.frames, **floats)
        self.ids = torch.full((size.rows, size.text), model.config.pad_token_id, device=weight.device)
        self.state = None if P is None else torch.zeros(size.rows, P, **floats)
        self.lengths = torch.full_like(self.ids[:, 0], size.text)
        self._features = model.perceive(self.pixels)
        self._answer()  # raises for too many columns
        self.steps = recorded(weight.device, {"see": self._see, "answer": self._answer})

    def _see(self) -> None:
        self._features.copy_(self._model.perceive(self.pixels))

    def _answer(self) -> None:
        self.actions = regressed(self._model, self._generator, self._features, self.ids, self.lengths, self.state)


def regressed(
    model: OpenVLA, generator: ParallelGenerator, features: Tensor, ids: Tensor, lengths: Tensor, state: Tensor | None
) -> Tensor:
    """Return the (B, K, D) normalised actions of perceived frames and completed prompts; no number is read.

    Args:
        model: towers, projectors and language model.
        generator: reads the actions.
        features: what `perceive` gave.
        ids: (B, L) int64 text with its placeholders, padded at the right.
        lengths: (B,) int64 tokens of each text.
        state: (B, P), or None for a policy without proprioception.
    """
    embeds = model.align(features, ids, state)
    return generator.actions(embeds, lengths + (embeds.shape[1] - ids.shape[1]))


class ChunkRegression:
    """Turns batches into normalised actions. Calls from several threads run one after another.

    Attributes:
        generator: reads the actions from one pass.
        in_blocks: whether batches are rounded up to a few fixed sizes, which CUDA records and repeats. On other devices
            this gives the same actions and gains nothing.
    """

    def __init__(self, model: OpenVLA, generator: ParallelGenerator) -> None:
        self._model, self.generator = model, generator
        self._blocks = Kept[ChunkSize, ChunkBlock](lambda size: ChunkBlock(size, model, generator))
        self._turns = Turns(model.weight.device)
        self.in_blocks = model.weight.device.type == "cuda"

    @torch.inference_mode()
    def __call__(self, batch: Batch, stages: StageTimer) -> Tensor:
        """Return (B, K, D) actions of plain prompts; not clipped, and not checked for numbers that are not finite.

        Raises:
            ContractError: the batch does not fit the model.
        """
        completed = replace(batch, prompts=[self.generator.complete(prompt) for prompt in batch.prompts])
        if not self.in_blocks:
            return self._at_once(completed, stages)
        with self._turns.one():
            return self._in_a_block(completed, stages)

    def _at_once(self, batch: Batch, stages: StageTimer) -> Tensor:
        prompt = self._model.prompt(batch, stages)
        is_ragged = int(prompt.lengths.min()) < prompt.embeds.shape[1]  # lengths are in main memory
        lengths = upload(prompt.lengths, prompt.embeds.device)
        actions = self.generator.actions(prompt.embeds, lengths, is_ragged)
        stages.lap("decode")
        return actions

    def _in_a_block(self, batch: Batch, stages: StageTimer) -> Tensor:
        pixels, ids, state, lengths = self._model.tensors(batch)
        block = self._block_for(pixels, ids)
        put_inputs(block, pixels, ids, state, lengths)
        block.steps["see"]()
        stages.lap("towers")
        block.steps["answer"]()
        actions = block.actions[: len(ids)].clone()  # the next batch overwrites them
        stages.lap("decode")
        return actions

    def _block_for(self, pixels: Tensor, ids: Tensor) -> ChunkBlock:
        exact = ChunkSize(rounded_rows(len(ids)), ids.shape[1], tuple(pixels.shape[1:]))
        return self._blocks.of_rounded(replace(exact, text=rounded_text(exact.text)), exact)
