"""Inference in blocks: chooses the block of a batch, fills it, and repeats passes until each action is settled.

It gives the tokens of `Generator`; only sizes are rounded up. One number is read from the device after each pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.policy.vla.codecs.rows import NOT_FINITE
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.reason.generate import BROKEN, Generator, after_prefixes, is_settled
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.slots.block import Block
from vla_robot.policy.vla.slots.sizes import BlockSize, rounded_rows, rounded_text

BLOCKS = 8
"""Blocks that are kept, each with its keys and values; the one that was not used for longest makes room."""


class BlockInference:
    """Turns batches into action tokens. Calls from several threads run one after another."""

    def __init__(self, model: VLAModel[Any], reasoner: Reasoner[Any], generator: Generator) -> None:
        self._model, self._reasoner, self._generator = model, reasoner, generator
        self._blocks: OrderedDict[BlockSize, Block] = OrderedDict()
        self._lock = Lock()

    def __call__(
        self, batch: Batch, count: int, stages: StageTimer, prefixes: Sequence[NDArray[np.int64]] | None = None
    ) -> Tensor:
        """Return (B, count) int64 token ids, as `Generator.tokens`, or `continued` with prefixes.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a logit is not finite.
        """
        with self._lock:
            tensors = self._model.tensors(batch)
            given = [torch.from_numpy(p) for p in prefixes or [np.empty(0, np.int64)] * len(batch.prompts)]
            block = self._block_for(batch, count, any(map(len, given)))
            self._fill(block, *tensors, given)
            said = self._run(block, count - min(map(len, given)), stages)[: len(given)]
            if not block.size.given:
                return said[:, :count]
            return after_prefixes([prefix.to(said.device) for prefix in given], said, count)

    def _block_for(self, batch: Batch, count: int, begins: bool) -> Block:
        """Return the block of a batch whose answers have `count` tokens and, if `begins`, are told how to begin."""
        action_dim, text = self._generator.action_dim(count), max(map(len, batch.prompts))
        actions = -(-count // action_dim)
        exact = BlockSize(
            rounded_rows(len(batch.prompts)),
            text,
            tuple(batch.pixels.shape[1:]),
            action_dim,
            actions,
            (actions * action_dim - 1) * begins,
        )
        try:
            return self._block(replace(exact, text=rounded_text(text)))
        except ContractError:  # more positions than the model has, only because of the rounding
            return self._block(exact)

    def _block(self, size: BlockSize) -> Block:
        if size not in self._blocks:
            made = Block(size, self._model, self._reasoner, self._generator)
            if len(self._blocks) == BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[size] = made
        self._blocks.move_to_end(size)
        return self._blocks[size]

    def _fill(
        self,
        block: Block,
        pixels: Tensor,
        ids: Tensor,
        state: Tensor | None,
        lengths: Tensor,
        given: Sequence[Tensor],
    ) -> None:
        """Copy a batch into a block; rows that are missing repeat the first one."""
        _put(block.pixels, pixels)
        _put(block.ids[:, : ids.shape[1]], ids)
        _put(block.lengths, lengths)
        if block.state is not None and state is not None:
            _put(block.state, state)
        if block.size.given:
            rows = torch.zeros(len(given), block.size.given, dtype=torch.int64)
            for row, prefix in zip(rows, given, strict=True):
                row[: len(prefix)] = self._generator.rows(prefix)
            _put(block.given, rows)
            _put(block.counts, torch.tensor([len(prefix) for prefix in given]))

    def _run(self, block: Block, tokens: int, stages: StageTimer) -> Tensor:
        """Return (B, at least `tokens`) ids of a filled block's answers, or of what follows their given tokens."""
        steps, actions = block.steps, list[Tensor]()
        steps["see"]()
        stages.lap("towers")
        steps["begin"]()
        stages.lap("prefill")
        for done in range(0, tokens, block.size.action_dim):
            if done:
                steps["advance"]()
                stages.passes += 1
            self._settle(block, stages)
            actions.append(block.said.clone())
        stages.lap("decode")
        return self._generator.ids(torch.cat(actions, dim=1))

    def _settle(self, block: Block, stages: StageTimer) -> None:
        for _ in range(block.size.action_dim - 1):
            if is_settled(block.outcome):
                return
            block.steps["correct"]()
            stages.passes += 1
        if int(block.outcome) == BROKEN:  # so many passes made all tokens right
            raise PolicyError(NOT_FINITE)


def _put(target: Tensor, rows: Tensor) -> None:
    """Copy (n, ...) into the first rows of (B, ...), and the first one into the others."""
    target[: len(rows)].copy_(rows, non_blocking=True)
    if len(rows) < len(target):
        target[len(rows) :].copy_(target[:1].expand_as(target[len(rows) :]))
