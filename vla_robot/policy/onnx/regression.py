"""Regress a chunk of actions with one graph: from pixels, text and state to numbers (OpenVLA-OFT)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_robot.policy.onnx.inputs import Ids, Inputs, filled, in_buckets, padded
from vla_robot.policy.onnx.record import Bucket, ChunkAnswer, Record, step_name
from vla_robot.policy.onnx.runtime import Graphs, value
from vla_robot.policy.vla.codecs.rows import finite_actions
from vla_robot.policy.vla.reason.stage_timer import StageTimer


class GraphRegression:
    """Regresses chunks with an exported folder's graphs."""

    def __init__(self, graphs: Graphs, record: Record, answer: ChunkAnswer) -> None:
        self._graphs, self._record, self._answer = graphs, record, answer

    def open(self) -> None:
        """Open the graph of one observation, so that the first answer takes no longer than the others."""
        self._graphs.opened(self._name(self._record.bucket(1, 1)))

    def __call__(self, inputs: Inputs, stages: StageTimer) -> tuple[NDArray[np.float32], None]:
        """Return (B, K, D) normalised actions, and no entropy.

        Raises:
            ContractError: a prompt is longer than the folder's graphs read.
            PolicyError: a number is not finite.
        """
        parts = [self._answered(bucket, rows) for bucket, rows in in_buckets(self._record, inputs)]
        stages.lap("decode")
        return np.concatenate(parts), None

    def first(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the (B, K, D) actions: all are first ones. Raises as `__call__`."""
        return self(inputs, StageTimer())[0]

    def _answered(self, bucket: Bucket, inputs: Inputs) -> NDArray[np.float32]:
        rows, answer = bucket.rows, self._answer
        prompts = [self._completed(prompt) for prompt in inputs.prompts]
        ids = padded(prompts, rows, bucket.text + answer.placeholders, answer.pad_token_id)
        lengths = filled(np.array([len(prompt) for prompt in prompts]), rows)
        fed = {"pixels": value(filled(inputs.pixels, rows)), "ids": value(ids), "lengths": value(lengths)}
        if inputs.state is not None:
            fed["state"] = value(filled(inputs.state, rows))
        actions = self._graphs.run(self._name(bucket), fed)["actions"].numpy()[: len(prompts)]
        return finite_actions(actions, self._answer.clip)

    def _completed(self, prompt: Ids) -> Ids:
        return np.concatenate([prompt, np.full(self._answer.placeholders, self._answer.eos, dtype=np.int64)])

    def _name(self, bucket: Bucket) -> str:
        return step_name(self._answer.steps[0], bucket)
