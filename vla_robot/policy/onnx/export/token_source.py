"""Policies whose answer is tokens: three or four graphs for each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vla_robot.core.errors import PolicyError
from vla_robot.core.messages import Observation
from vla_robot.core.normalise import QuantileStats
from vla_robot.policy.families import family_of
from vla_robot.policy.onnx.export.source import Source
from vla_robot.policy.onnx.export.steps import Begin, Pass, See, Step
from vla_robot.policy.onnx.heads import sizes_of
from vla_robot.policy.onnx.record import Answer, Bucket, Record, TokenAnswer, see_name, step_name
from vla_robot.policy.vla.codecs.rows import BEHIND
from vla_robot.policy.vla.inputs.observations import Batch
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.sequence.ragged import RaggedSequence
from vla_robot.policy.vla.slots.sizes import BlockSize
from vla_robot.recipe.policy import CheckpointRecipe


class TokenSource(Source):
    """A policy of kind `openvla` or `vla`, with its matrices as torch has them, in fp32 on the CPU."""

    def __init__(self, recipe: CheckpointRecipe) -> None:
        """Raises CheckpointError as the family's `load`, and PolicyError for a policy with an action head."""
        self._policy: AnyVLAPolicy = family_of(recipe.checkpoint).load(
            recipe.checkpoint, Loading.on_cpu(recipe, trainable=True)
        )
        policy = self._policy
        if policy.model.action_head is not None:
            raise PolicyError(
                f"{recipe.checkpoint} has an action head; graphs are made of policies that say tokens, and of the kind "
                "'openvla_oft'. Run it where it is."
            )
        self.model, self.read, self.preprocessor = policy.model, policy.read, policy.preprocessor
        self.statistics, self.embodiment = policy.statistics, policy.embodiment
        self.cameras = [camera.name for camera in policy.embodiment.cameras] if policy.embodiment else ()

    def state_stats(self) -> QuantileStats:
        return self._policy.state_stats()

    @torch.no_grad()
    def answer(self, batch: Batch) -> TokenAnswer:
        codec, config = self._policy.codec, self.model.config
        dims = max(len(self._policy.action_stats(key)) for key in self.statistics)
        tokens, drafted, given = sizes_of(codec, dims)
        return TokenAnswer(
            action_dim=dims,
            chunk=codec.chunk,
            tokens=tokens,
            drafted=drafted,
            given=given,
            layers=self._layers(),
            inserted=int(self.model.prompt(batch).embeds.shape[1]) - len(batch.prompts[0]),
            pad_token_id=config.pad_token_id,
            codec=codec.to_dict(),
        )

    def steps(self, record: Record) -> Iterator[tuple[str, Step]]:
        answer, policy = record.answer, self._policy
        assert isinstance(answer, TokenAnswer)
        for rows in sorted({bucket.rows for bucket in record.buckets}):
            see = See(self.model, _size(record, answer, Bucket(rows, 1)))
            yield see_name(rows), see
            (features,) = see(*see.inputs.values())
            for bucket in (bucket for bucket in record.buckets if bucket.rows == rows):
                size = _size(record, answer, bucket)
                begin = Begin(policy, size, answer, features)
                yield step_name("begin", bucket), begin
                _, *memory = begin(*begin.inputs.values())
                for name in answer.steps[1:]:
                    tokens = answer.drafted - (name == "correct")
                    yield step_name(name, bucket), Pass(policy, size, answer, memory, tokens)

    def answers(self, seen: Sequence[Observation], answer: Answer) -> NDArray[np.int64]:
        assert isinstance(answer, TokenAnswer)
        rows = [self._policy.generate(self.read([each]), answer.tokens)[0] for each in seen]
        ends = [(0, answer.tokens - len(row)) for row in rows]  # what follows an answer that ends before
        return np.stack([np.pad(row, end, constant_values=BEHIND) for row, end in zip(rows, ends, strict=True)])

    @torch.no_grad()
    def first(self, seen: Sequence[Observation]) -> NDArray[np.float32]:
        prompts = [self.model.prompt(self.read([each])) for each in seen]
        return np.concatenate([self._policy.generator.first_logits(prompt).numpy() for prompt in prompts])

    def _layers(self) -> int:
        """Return how many layers have keys and values: those that a reading of a short row leaves."""
        embeds = self._policy.generator.look_up(torch.zeros(1, 2, dtype=torch.int64))
        _, memory = self._policy.reasoner.read_rows(RaggedSequence(embeds, torch.tensor([2])), torch.tensor([[1]]))
        return len(memory.tensors) // 2


def _size(record: Record, answer: TokenAnswer, bucket: Bucket) -> BlockSize:
    drafts = -(-answer.tokens // answer.drafted)
    return BlockSize(bucket.rows, bucket.text, record.frames, answer.drafted, drafts, answer.given)
