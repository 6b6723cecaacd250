"""Inference as two compiled graphs, one that reads the prompt and one that corrects the answer.

Compiled graphs run no Python between kernels, and fewer kernels. A tower whose code reads numbers from tensors, as
those of Qwen-VL, Gemma 4 and SmolVLM do, runs as it is, before the first graph.

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
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.engine.compiler import compiler_problem
from vla_robot.policy.vla.engine.graph_thread import in_graph_thread
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.reason.answer import Answer
from vla_robot.policy.vla.reason.generate import Draft, Generator
from vla_robot.policy.vla.reason.stage_timer import StageTimer

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
    """Turns pixels and prompts of one length into answers."""

    def __init__(self, model: AnyVLAModel, generator: Generator) -> None:
        """
        Raises:
            PolicyError: kernels for the model's device cannot be compiled here, the language model cannot be, or a
                codec's grammar limits answers.
        """
        require_compiler(model.weight.device)
        require_one_graph(type(model), model.config.codec)
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

    def __call__(self, batch: Batch, count: int, stages: StageTimer) -> Answer:
        """Return the answers to a batch; on CUDA from any thread, one call after the other.

        Raises:
            ContractError: the batch does not fit the model.
            PolicyError: a logit is not finite.
        """
        device = self._model.weight.device
        if device.type == "cuda":
            return in_graph_thread(lambda: self._answer(batch, count, stages), device)
        return self._answer(batch, count, stages)

    def _answer(self, batch: Batch, count: int, stages: StageTimer) -> Answer:
        if (shape := _shape(batch)) in self._shapes:
            return self._infer(batch, count, stages)
        # torch counts the shapes of all policies of a process together, and raises at its limit.
        with torch._dynamo.config.patch(recompile_limit=ALL_SHAPES, accumulated_recompile_limit=ALL_SHAPES):
            answer = self._infer(batch, count, stages)
        self._shapes.add(shape)
        return answer

    def _infer(self, batch: Batch, count: int, stages: StageTimer) -> Answer:
        pixels, ids, state, lengths = self._model.tensors(batch)
        action_dim = self._generator.action_dim(count)
        features = None if self._model.perceives_by_shape else self._model.perceive(pixels)
        torch.compiler.cudagraph_mark_step_begin()  # the graphs' outputs stay valid until this is called again
        draft = self._begin(pixels, features, ids, state, lengths, count, action_dim)
        answer = self._generator.complete(draft, count, action_dim, stages, self._correct)
        stages.lap("inference")
        return answer

    def _read(
        self,
        pixels: Tensor,
        features: Tensor | None,
        ids: Tensor,
        state: Tensor | None,
        lengths: Tensor,
        count: int,
        action_dim: int,
    ) -> Draft:
        seen = self._model.perceive(pixels) if features is None else features
        embeds = self._model.align(seen, ids, state)
        rows = self._model.arrange(pixels, embeds, lengths + embeds.shape[1] - ids.shape[1])
        return self._generator.begin(rows.unpadded(), count, action_dim)


def require_one_graph(model: type[AnyVLAModel], codec: ActionCodec) -> None:
    """Raise PolicyError unless the work of the language model is one graph whose shapes depend on no number."""
    if codec.grammar is not None:
        raise PolicyError(
            f"a policy whose codec '{codec.kind}' limits each token to some rows cannot be compiled: leave compiled "
            "out of its recipe."
        )
    if not model.reasons_by_shape:
        raise PolicyError(
            f"a policy of {model.__name__} cannot be compiled: the library's code of its language model reads numbers "
            "from tensors. Leave compiled out of its recipe."
        )


def _shape(batch: Batch) -> tuple[int, int]:
    """Return rows and tokens per row of a batch without padding."""
    return len(batch.prompts), len(batch.prompts[0])
