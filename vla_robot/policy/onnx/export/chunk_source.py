"""OpenVLA-OFT, whose answer is a chunk of numbers from one pass: one graph for each size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.messages import Observation
from vla_robot.core.normalise import QuantileStats
from vla_robot.policy.onnx.export.source import Source
from vla_robot.policy.onnx.export.steps import Step
from vla_robot.policy.onnx.record import Answer, ChunkAnswer, Record, step_name
from vla_robot.policy.openvla.engine.chunk_regression import regressed
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.oft import load_oft
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.slots.sizes import BlockSize
from vla_robot.recipe.policy import OpenVLAOFTRecipe


class Regress(Step):
    """Perceives, aligns, and reads all actions in one bidirectional pass."""

    def __init__(self, model: OpenVLA, generator: ParallelGenerator, size: BlockSize) -> None:
        """`size`: of text with the answer's placeholders."""
        super().__init__(model, size)
        self._model, self._generator = model, generator

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels, **self.text}

    @property
    def outputs(self) -> list[str]:
        return ["actions"]

    def step(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        features = self._model.perceive(given["pixels"])
        read = given["ids"], given["lengths"], given.get("state")
        return (regressed(self._model, self._generator, features, *read),)


class ChunkSource(Source):
    """A policy of kind `openvla_oft`, in fp32 on the CPU."""

    def __init__(self, recipe: OpenVLAOFTRecipe) -> None:
        """Raises CheckpointError as `load_oft`."""
        self._policy = policy = load_oft(recipe.checkpoint, recipe.oft, Loading.on_cpu(recipe, trainable=True))
        self._oft, self._model = recipe.oft, policy.model
        self.model, self.read, self.preprocessor = policy.model, policy.read, policy.preprocessor
        self.statistics, self.embodiment, self.cameras = policy.statistics, policy.embodiment, recipe.oft.cameras

    def state_stats(self) -> QuantileStats:
        return self._policy.state_stats()

    def answer(self, batch: Batch) -> ChunkAnswer:
        oft, eos = self._oft, self.prompts.eos
        return ChunkAnswer(oft.action_dim, oft.chunk, oft.normalisation, oft.clip, eos, self.model.config.pad_token_id)

    def steps(self, record: Record) -> Iterator[tuple[str, Step]]:
        answer = record.answer
        assert isinstance(answer, ChunkAnswer)
        for bucket in record.buckets:
            text = bucket.text + answer.placeholders
            size = BlockSize(bucket.rows, text, record.frames, answer.action_dim, answer.chunk, given=0)
            yield step_name(answer.steps[0], bucket), Regress(self._model, self._policy.regression.generator, size)

    def answers(self, seen: Sequence[Observation], answer: Answer) -> NDArray[np.float64]:
        return self._actions(seen)

    def first(self, seen: Sequence[Observation]) -> NDArray[np.float64]:
        return self._actions(seen)

    def _actions(self, seen: Sequence[Observation]) -> NDArray[np.float64]:
        return np.concatenate([self._policy.predict(self.read([each])) for each in seen])
