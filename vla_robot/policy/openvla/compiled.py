"""The whole inference as one compiled graph: no Python between the kernels, and fewer kernels.

It pays where the model is small and the shape of the batch stays: a robot that repeats one instruction. Each new shape
(rows, prompt length) is compiled once, which takes about a minute on two cores, less when torch finds it in its cache.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import Tensor

from vla_robot.core.errors import PolicyError
from vla_robot.policy.openvla.generate import Generator, require_finite
from vla_robot.policy.openvla.inputs import Batch, Stages, tensors_of
from vla_robot.policy.openvla.model import OpenVLA


class CompiledInference:
    """Pixels and prompts of one length -> action tokens."""

    def __init__(self, model: OpenVLA, generator: Generator) -> None:
        """
        Raises:
            PolicyError: kernels for the CPU cannot be compiled here.
        """
        on_cpu = model.projector.fc1.weight.device.type == "cpu"
        if on_cpu and not (shutil.which("g++") or shutil.which("clang++")):
            raise PolicyError("compile = true needs a C++ compiler on a CPU: apt-get install g++, or compile = false.")
        # On CUDA a recorded graph is replayed; on a CPU the kernels are called from C++.
        options: dict[str, Any] = {"cpp_wrapper": True} if on_cpu else {"triton.cudagraphs": True}
        self._model = model
        self._generator = generator
        self._run = torch.compile(self._infer, dynamic=False, fullgraph=True, options=options)

    def takes(self, batch: Batch) -> bool:
        """Whether no row needs padding; prompts of different length run uncompiled."""
        return len({len(prompt) for prompt in batch.prompts}) == 1

    def __call__(self, batch: Batch, action_dim: int, stages: Stages) -> Tensor:
        """(B, action_dim) int64 token ids.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a logit is not finite.
        """
        pixels, ids, state, _ = tensors_of(self._model, batch)
        tokens, finite = self._run(pixels, ids, state, action_dim)
        require_finite(finite)
        stages.done("inference")
        return tokens

    def _infer(self, pixels: Tensor, ids: Tensor, state: Tensor | None, action_dim: int) -> tuple[Tensor, Tensor]:
        return self._generator.greedy(self._model.embed(pixels, ids, state), None, action_dim, None)
