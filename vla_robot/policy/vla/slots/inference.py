"""Inference in blocks: chooses the block of a batch, fills it, and repeats passes until each action is settled.

It gives the tokens of `Generator`; only sizes are rounded up. One number is read from the device after each pass but
the first, whose guess, that the arm stays, is hardly ever right: the first correction is started without asking. It
changes no token of an action that was settled (`Block`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import PolicyError
from vla_robot.policy.vla.codecs.rows import NOT_FINITE
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.reason.answer import Answer, entropy_of
from vla_robot.policy.vla.reason.generate import BROKEN, Generator, is_settled
from vla_robot.policy.vla.reason.reasoner import Reasoner
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.slots.block import Block
from vla_robot.policy.vla.slots.memory import Kept, put_inputs, put_rows
from vla_robot.policy.vla.slots.sizes import BlockSize, rounded_rows, rounded_text
from vla_robot.policy.vla.slots.turns import Turns


class BlockInference:
    """Turns batches into action tokens. Calls from several threads run one after another."""

    def __init__(self, model: VLAModel[Any], reasoner: Reasoner[Any], generator: Generator) -> None:
        self._model, self._generator = model, generator
        self._blocks = Kept[BlockSize, Block](lambda size: Block(size, model, reasoner, generator))
        self._turns = Turns(model.weight.device)

    def __call__(
        self, batch: Batch, count: int, stages: StageTimer, prefixes: Sequence[NDArray[np.int64]] = ()
    ) -> Answer:
        """Return the answers to a batch, as `Generator.answer`.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a logit is not finite.
        """
        with self._turns.one():
            tensors = self._model.tensors(batch)
            given = list(prefixes) or [np.empty(0, np.int64)] * len(batch.prompts)
            block = self._block_for(batch, count, any(map(len, given)))
            put_inputs(block, *tensors)
            self._put_given(block, given)
            answer = self._run(block, len(given), count - min(map(len, given)), stages)
            if not block.size.given:
                return answer.first(count)
            return answer.after([torch.from_numpy(prefix).to(answer.ids.device) for prefix in given], count)

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
        return self._blocks.of_rounded(replace(exact, text=rounded_text(text)), exact)

    @property
    def sizes(self) -> list[BlockSize]:
        """Sizes of the blocks that are kept, the one used last at the end."""
        return self._blocks.sizes

    def _put_given(self, block: Block, given: Sequence[NDArray[np.int64]]) -> None:
        """Copy the tokens with which answers begin into a block that takes some."""
        if block.size.given:
            rows = torch.zeros(len(given), block.size.given, dtype=torch.int64)
            for row, prefix in zip(rows, given, strict=True):
                row[: len(prefix)] = torch.from_numpy(self._generator.rows_of(prefix))
            put_rows(block.given, rows)
            put_rows(block.counts, torch.tensor([len(prefix) for prefix in given]))

    def _run(self, block: Block, rows: int, tokens: int, stages: StageTimer) -> Answer:
        """Return the first rows of a filled block's answers, or of what follows their given tokens, with at least
        `tokens` tokens."""
        steps, said, logits = block.steps, list[Tensor](), list[Tensor]()
        steps["see"]()
        stages.lap("towers")
        steps["begin"]()
        stages.lap("prefill")
        if block.size.action_dim > 1:
            self._correct(block, stages)
        for done in range(0, tokens, block.size.action_dim):
            if done:
                steps["advance"]()
                stages.passes += 1
            self._settle(block, stages)
            said.append(block.said[:rows].clone())
            logits.append(block.logits[:rows].clone())
        answer = Answer(self._generator.ids(torch.cat(said, dim=1)), entropy_of(torch.cat(logits, dim=1)))
        stages.lap("decode")
        return answer

    def _settle(self, block: Block, stages: StageTimer) -> None:
        for _ in range(block.size.action_dim - 1):
            if is_settled(block.outcome):
                return
            self._correct(block, stages)
        if int(block.outcome) == BROKEN:  # so many passes made all tokens right
            raise PolicyError(NOT_FINITE)

    def _correct(self, block: Block, stages: StageTimer) -> None:
        block.steps["correct"]()
        stages.passes += 1
