"""The steps of an inference as torch modules of tensors alone, each of which becomes a graph of fixed sizes.

They are those of `vla/slots/block.py`; here keys and values are inputs and outputs, and logits are given, not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.policy.onnx.record import READ, TokenAnswer, memory_names
from vla_robot.policy.vla.model import VLAModel
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.slots.first_pass import PromptTensors, arranged, first_pass
from vla_robot.policy.vla.slots.sizes import BlockSize


class Step(nn.Module):
    """A step. Its `forward` takes the tensors of `inputs` in their order, and returns those of `outputs`."""

    def __init__(self, model: VLAModel[Any], size: BlockSize) -> None:
        super().__init__()
        self.model, self.size = model, size

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

    @property
    def pixels(self) -> Tensor:
        """(B, N, C, H, W) example of pixels."""
        return torch.rand(self.size.rows, *self.size.frames)

    @property
    def text(self) -> dict[str, Tensor]:
        """Examples of ids and their lengths, shorter than the graph's, and of the state for a policy that reads it."""
        rows, text, dim = self.size.rows, self.size.text, self.model.config.inputs.proprio_dim
        found = {"ids": torch.zeros(rows, text, dtype=torch.int64), "lengths": torch.full((rows,), text // 2)}
        return found if dim is None else found | {"state": torch.zeros(rows, dim)}


class See(Step):
    """Perceives frames."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels}

    @property
    def outputs(self) -> list[str]:
        return ["features"]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (self.model.perceive(given["pixels"]),)


class Begin(Step):
    """Aligns, and reads a prompt with the first guess."""

    def __init__(self, policy: AnyVLAPolicy, size: BlockSize, answer: TokenAnswer, features: Tensor) -> None:
        """`features`: an example from `See`."""
        super().__init__(policy.model, size)
        self._generator, self._reasoner = policy.generator, policy.reasoner
        self._answer, self._features = answer, features

    @property
    def inputs(self) -> dict[str, Tensor]:
        found = {"features": self._features, **self.text}
        if self.size.given:
            found["given"] = torch.zeros(self.size.rows, self.size.given, dtype=torch.int64)
            found["counts"] = torch.full((self.size.rows,), min(self.size.action_dim, self.size.given))
        return found

    @property
    def outputs(self) -> list[str]:
        return ["logits", *memory_names(self._answer)]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        pixels = given["features"].new_zeros(self.size.rows, *self.size.frames)
        text = (given["ids"], given["lengths"], given.get("state"), given.get("given"), given.get("counts"))
        fed = PromptTensors(pixels, given["features"], *text)
        read = first_pass(self.model, self._reasoner, self._generator, self.size, fed)
        return self._generator.logits(read.hidden), *read.memory.tensors


class Pass(Step):
    """Reads tokens of the answer into their slots. It gives their keys and values if others follow."""

    def __init__(
        self, policy: AnyVLAPolicy, size: BlockSize, answer: TokenAnswer, memory: Sequence[Tensor], tokens: int
    ) -> None:
        """
        Args:
            policy: the policy.
            size: sizes of the graph.
            answer: sizes of an answer.
            memory: an example from `Begin`.
            tokens: D - 1 for a correction, D for the first guess of the next tokens, whose predecessor is not read yet.
        """
        super().__init__(policy.model, size)
        self._generator, self._reasoner, self._answer = policy.generator, policy.reasoner, answer
        self._memory, self._tokens = list(memory), tokens
        self._keeps = size.actions > 1

    @property
    def inputs(self) -> dict[str, Tensor]:
        lengths = self.text["lengths"]
        found = {"tokens": torch.zeros(self.size.rows, self._tokens, dtype=torch.int64), "lengths": lengths}
        found["slots"] = lengths[:, None] + self._answer.inserted + torch.arange(self._tokens)
        return found | dict(zip(memory_names(self._answer), self._memory, strict=True))

    @property
    def outputs(self) -> list[str]:
        return ["logits", *(memory_names(self._answer, READ) if self._keeps else ())]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        embeds = self._generator.look_up(given["tokens"])
        pixels = embeds.new_zeros(self.size.rows, *self.size.frames)
        blank = embeds.new_zeros(self.size.rows, self._answer.inserted + self.size.text, embeds.shape[-1])
        rows = arranged(self.model, self.size, pixels, blank, given["lengths"])
        tensors = [given[name].clone() for name in memory_names(self._answer)]
        memory = self._reasoner.memory(rows, tensors)
        logits = self._generator.logits(self._reasoner.read_at(embeds, given["slots"], memory))
        return (logits, *memory.tensors) if self._keeps else (logits,)
