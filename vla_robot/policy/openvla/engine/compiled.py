"""Inference as two compiled graphs, one that reads the prompt and one that corrects the answer.

Compiled graphs run no Python between kernels, and fewer kernels.

This pays for a small model and a constant shape of the batch: a robot that repeats one instruction. Each new shape
(rows, prompt length) is compiled once, which takes about a minute on two cores, less when torch finds it in its cache.
The first SHAPES of them are compiled; a policy that sees more runs the others uncompiled, and says so once.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from vla_robot.core.errors import PolicyError
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.pointwise import compiler_problem
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.reason.generate import Draft, Generator
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vla.sequence.ragged import PaddedSequence

_LOG = logging.getLogger(__name__)

SHAPES = 8
"""Shapes of batches that are compiled."""
ALL_SHAPES = 4096
"""More than all policies of a process compile."""


def require_compiler(device: torch.device) -> None:
    """Raise PolicyError unless graphs can be compiled for a device here."""
    if problem := compiler_problem(device):
        raise PolicyError(f"compiled = true {problem}; or set compiled = false.")


class CompiledInference:
    """Turns pixels and prompts of one length into action tokens."""

    def __init__(self, model: OpenVLA, generator: Generator) -> None:
        """
        Raises:
            PolicyError: kernels for the model's device cannot be compiled here.
        """
        require_compiler(model.weight.device)
        on_cpu = model.weight.device.type == "cpu"
        # On a CPU kernels are called from C++ and share their results' memory; on CUDA a recorded graph is replayed.
        cpu_options = {"cpp_wrapper": True, "memory_planning": True}
        options: dict[str, Any] = cpu_options if on_cpu else {"triton.cudagraphs": True}
        self._shapes: set[tuple[int, int]] = set()
        self._said = False
        self._model = model
        self._generator = generator
        self._begin = torch.compile(self._read, dynamic=False, fullgraph=True, options=options)
        self._correct = torch.compile(generator.correct, dynamic=False, fullgraph=True, options=options)

    def takes(self, batch: Batch) -> bool:
        """Return whether a batch runs compiled: no row needs padding, and its shape is one of the first `SHAPES`."""
        if len({len(prompt) for prompt in batch.prompts}) > 1:
            return False
        if (shape := _shape(batch)) in self._shapes or len(self._shapes) < SHAPES:
            return True
        if not self._said:
            rows, length = shape
            _LOG.warning(
                "%d shapes of batches are compiled; a batch of %d prompts of %d tokens, and any further shape, runs "
                "uncompiled. For instructions of many lengths set compiled = false.", SHAPES, rows, length,
            )  # fmt: skip
            self._said = True
        return False

    def __call__(self, batch: Batch, count: int, stages: StageTimer) -> Tensor:
        """Return (B, count) int64 token ids.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a logit is not finite.
        """
        if (shape := _shape(batch)) in self._shapes:
            return self._infer(batch, count, stages)
        # torch counts the shapes of all policies of a process together, and raises at its limit.
        with torch._dynamo.config.patch(recompile_limit=ALL_SHAPES, accumulated_recompile_limit=ALL_SHAPES):
            tokens = self._infer(batch, count, stages)
        self._shapes.add(shape)
        return tokens

    def _infer(self, batch: Batch, count: int, stages: StageTimer) -> Tensor:
        pixels, ids, state, _ = self._model.tensors(batch)
        action_dim = self._generator.action_dim(count)
        torch.compiler.cudagraph_mark_step_begin()  # the graphs' outputs stay valid until this is called again
        draft = self._begin(pixels, ids, state, count, action_dim)
        tokens = self._generator.complete(draft, count, action_dim, stages, self._correct)
        stages.lap("inference")
        return tokens

    def _read(self, pixels: Tensor, ids: Tensor, state: Tensor | None, count: int, action_dim: int) -> Draft:
        return self._generator.begin(PaddedSequence(self._model.embed(pixels, ids, state)), count, action_dim)


def _shape(batch: Batch) -> tuple[int, int]:
    """Return rows and tokens per row of a batch without padding."""
    return len(batch.prompts), len(batch.prompts[0])
