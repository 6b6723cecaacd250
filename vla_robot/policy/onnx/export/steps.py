"""The steps of an inference as torch modules of tensors alone, each of which becomes a graph of fixed sizes.

They are those of `vla/slots/block.py`; here keys and values are inputs and outputs, and logits are given, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.policy.onnx.record import READ, Answer, Bucket, memory_names
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.sequence.columns import put_at
from vla_robot.policy.vla.sequence.ragged import RaggedSequence, with_given


@dataclass(frozen=True)
class Sizes:
    """Sizes of a graph.

    Attributes:
        bucket: rows and tokens of text.
        frames: (N, C, H, W) shape of one row's pixels.
        answer: sizes of an answer.
    """

    bucket: Bucket
    frames: tuple[int, ...]
    answer: Answer

    @property
    def columns(self) -> int:
        """Columns of a row: the prompt, the given tokens and the answer, whose last token is not read."""
        a = self.answer
        return a.inserted + self.bucket.text + a.given + a.chunk * a.action_dim - 1


class Step(nn.Module):
    """A step. Its `forward` takes the tensors of `inputs` in their order, and returns those of `outputs`."""

    def __init__(self, policy: AnyVLAPolicy, sizes: Sizes) -> None:
        super().__init__()
        self.model: VLAModel[Any] = policy.model
        self.generator, self.reasoner = policy.generator, policy.reasoner
        self.sizes = sizes

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Examples of the inputs by name."""
        raise NotImplementedError

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        raise NotImplementedError

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs of inputs by name."""
        raise NotImplementedError

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.step(dict(zip(self.names, tensors, strict=True)))

    @cached_property
    def names(self) -> list[str]:
        """Names of the inputs."""
        return list(self.inputs)

    def rows(self, embeds: Tensor, lengths: Tensor) -> RaggedSequence:
        """Return (B, S, D) rows of prompts with (B,) tokens of text, widened by the columns of the answer."""
        sizes = self.sizes
        pixels = embeds.new_zeros(sizes.bucket.rows, *sizes.frames)  # of which only the shape is used
        rows = self.model.arrange(pixels, embeds, lengths + sizes.answer.inserted)
        return rows.widened(sizes.columns)

    @property
    def lengths(self) -> Tensor:
        """(B,) example of lengths, shorter than the bucket."""
        return torch.full((self.sizes.bucket.rows,), self.sizes.bucket.text // 2)


class See(Step):
    """Perceives frames."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"pixels": torch.rand(self.sizes.bucket.rows, *self.sizes.frames)}

    @property
    def outputs(self) -> list[str]:
        return ["features"]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (self.model.perceive(given["pixels"]),)


class Begin(Step):
    """Aligns, and reads a prompt with the first guess."""

    def __init__(self, policy: AnyVLAPolicy, sizes: Sizes, features: Tensor) -> None:
        """`features`: an example from `See`."""
        super().__init__(policy, sizes)
        self.features = features

    @property
    def inputs(self) -> dict[str, Tensor]:
        B, text = self.sizes.bucket.rows, self.sizes.bucket.text
        found = {"features": self.features, "ids": torch.zeros(B, text, dtype=torch.int64), "lengths": self.lengths}
        if (dim := self.model.config.inputs.proprio_dim) is not None:
            found["state"] = torch.zeros(B, dim)
        if self.sizes.answer.chunk > 1:
            found["given"] = torch.zeros(B, self.sizes.answer.given, dtype=torch.int64)
            found["counts"] = torch.full((B,), self.sizes.answer.action_dim)
        return found

    @property
    def outputs(self) -> list[str]:
        return ["logits", *memory_names(self.sizes.answer)]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        embeds = self.model.align(given["features"], given["ids"], given.get("state"))
        rows = self.rows(embeds, given["lengths"])
        if "given" in given:
            rows = with_given(rows, self.generator.look_up(given["given"]), given["counts"])
        ends = rows.lengths
        guess = self.generator.first_guess(self.sizes.bucket.rows, self.sizes.answer.action_dim - 1)
        at = ends[:, None] + torch.arange(guess.shape[1])  # (B, D - 1)
        put_at(rows.embeds, at, self.generator.look_up(guess))
        hidden, memory = self.reasoner.read_rows(rows, torch.cat([ends[:, None] - 1, at], dim=1))
        return self.generator.logits(hidden), *memory.tensors


class Pass(Step):
    """Reads tokens of the answer into their slots. It gives their keys and values if another action follows."""

    def __init__(self, policy: AnyVLAPolicy, sizes: Sizes, memory: Sequence[Tensor], tokens: int) -> None:
        """
        Args:
            policy: the policy.
            sizes: sizes of the graph.
            memory: an example from `Begin`.
            tokens: D - 1 for a correction, D for the first guess of the next action, whose predecessor is not read yet.
        """
        super().__init__(policy, sizes)
        self._memory, self._tokens = list(memory), tokens
        self._keeps = sizes.answer.chunk > 1

    @property
    def inputs(self) -> dict[str, Tensor]:
        tokens = torch.zeros(self.sizes.bucket.rows, self._tokens, dtype=torch.int64)
        found = {"tokens": tokens, "lengths": self.lengths}
        found["slots"] = self.lengths[:, None] + self.sizes.answer.inserted + torch.arange(self._tokens)
        return found | dict(zip(memory_names(self.sizes.answer), self._memory, strict=True))

    @property
    def outputs(self) -> list[str]:
        return ["logits", *(memory_names(self.sizes.answer, READ) if self._keeps else ())]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        bucket, inserted = self.sizes.bucket, self.sizes.answer.inserted
        embeds = self.generator.look_up(given["tokens"])
        blank = embeds.new_zeros(bucket.rows, inserted + bucket.text, embeds.shape[-1])
        tensors = [given[name].clone() for name in memory_names(self.sizes.answer)]
        memory = self.reasoner.memory(self.rows(blank, given["lengths"]), tensors)
        logits = self.generator.logits(self.reasoner.read_at(embeds, given["slots"], memory))
        return (logits, *memory.tensors) if self._keeps else (logits,)
