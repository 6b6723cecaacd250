"""Generate by guess and correction, as `vla/reason/generate.py` explains it, over an exported folder's graphs.

    begin     reads prompt and first guess              the logits of all tokens of the first action
    correct   reads the last answer as the guess        the same slots, the same keys and values
    advance   the next action, guessed to be the same   keys and values of the action before are added

An answer of several actions may be told how to begin; `begin` reads those tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import PolicyError
from vla_robot.policy.onnx.record import READ, Bucket, Record, see_name, step_name
from vla_robot.policy.onnx.runtime import Graphs, value
from vla_robot.policy.vla.codecs.rows import NOT_FINITE
from vla_robot.policy.vla.reason.stage_timer import StageTimer

type Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a batch.

    Attributes:
        pixels: (B, N, C, H, W) float32.
        prompts: B arrays of ids.
        state: (B, P) float32 in [-1, 1]; None for a policy without proprioception.
        given: B arrays of ids with which the answers begin; empty ones for none.
    """

    pixels: NDArray[np.float32]
    prompts: Sequence[Ids]
    state: NDArray[np.float32] | None
    given: Sequence[Ids]

    def rows(self, begin: int, end: int) -> Inputs:
        """Return some of the rows."""
        state = None if self.state is None else self.state[begin:end]
        return Inputs(self.pixels[begin:end], self.prompts[begin:end], state, self.given[begin:end])


class GraphGenerator:
    """Decodes action tokens greedily with an exported folder's graphs."""

    def __init__(self, graphs: Graphs, record: Record) -> None:
        self._graphs, self._record = graphs, record

    def open(self) -> None:
        """Open the graphs of one observation, so that the first answer takes no longer than the others."""
        bucket = self._record.bucket(1, 1)
        for name in (see_name(bucket.rows), step_name("begin", bucket), step_name("correct", bucket)):
            self._graphs.opened(name)

    def __call__(self, inputs: Inputs, stages: StageTimer) -> Ids:
        """Return (B, K * D) token ids.

        Raises:
            ContractError: a prompt is longer than the folder's graphs read.
            PolicyError: a logit is not finite.
        """
        text = max(map(len, inputs.prompts))
        answers: list[Ids] = []
        while (done := sum(map(len, answers))) < len(inputs.prompts):
            bucket = self._record.bucket(len(inputs.prompts) - done, text)
            rows = inputs.rows(done, done + bucket.rows)
            answers.append(_Inference(self._graphs, self._record, bucket, rows, stages).tokens())
        return np.concatenate(answers)

    def first_logits(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the (B, A) logits of the first token, for at most as many rows as the smallest bucket has."""
        bucket = self._record.bucket(len(inputs.prompts), max(map(len, inputs.prompts)))
        inference = _Inference(self._graphs, self._record, bucket, inputs, StageTimer())
        return inference.begin()[: len(inputs.prompts), 0]


class _Inference:
    """One batch in one bucket; rows that are missing repeat the first one."""

    def __init__(self, graphs: Graphs, record: Record, bucket: Bucket, inputs: Inputs, stages: StageTimer) -> None:
        self._graphs, self._answer, self._bucket, self._stages = graphs, record.answer, bucket, stages
        self._inputs = inputs
        lengths = np.array([len(prompt) for prompt in inputs.prompts])
        self._lengths = value(_filled(lengths, bucket.rows))
        self._counts = _filled(np.array([len(ids) for ids in inputs.given]), bucket.rows)
        self._ends = _filled(lengths + record.answer.inserted, bucket.rows) + self._counts  # first slot of the answer
        bins, tokens = record.answer.n_action_bins, record.answer.action_dim - 1
        self._guess = np.full((bucket.rows, tokens), bins // 2)  # that the arm stays where it is
        self._memory: dict[str, Any] = {}  # keys and values by name

    def tokens(self) -> Ids:
        """Return (B, K * D) ids of the real rows, those given included."""
        answer, left = self._answer, self._answer.chunk * self._answer.action_dim - int(self._counts.min())
        said = self._best(self.begin())
        self._stages.lap("prefill")
        actions = list[Ids]()
        for done in range(0, left, answer.action_dim):
            if done:
                said = self._advance(said, self._ends + done - 1)
            said = self._settled(said, self._ends + done)
            actions.append(said)
        self._stages.lap("decode")
        ids = np.concatenate(actions, axis=1) + self._first_id
        rows = zip(self._inputs.given, ids, strict=False)  # rows that repeat the first one have none
        return np.stack([np.concatenate([given, row])[: answer.chunk * answer.action_dim] for given, row in rows])

    def begin(self) -> NDArray[np.float32]:
        """Return (rows, D, A) logits after the prompt and after each token of the first guess."""
        inputs, rows = self._inputs, self._bucket.rows
        seen = self._graphs.run(see_name(rows), {"pixels": value(_filled(inputs.pixels, rows))})
        self._stages.lap("towers")
        fed = {**seen, "ids": value(_padded(inputs.prompts, rows, self._bucket.text, self._answer.pad_token_id))}
        fed["lengths"] = self._lengths
        if inputs.state is not None:
            fed["state"] = value(_filled(inputs.state, rows))
        if self._answer.chunk > 1:
            given = [ids - self._first_id for ids in inputs.given]
            fed |= {"given": value(_padded(given, rows, self._answer.given, 0)), "counts": value(self._counts)}
        return self._read("begin", fed)

    def _settled(self, said: Ids, slots: Ids) -> Ids:
        """Return the (rows, D) tokens that greedy decoding gives, from a first answer whose guess begins at (rows,)."""
        guess = self._guess
        for _ in range(self._answer.action_dim - 1):
            if np.array_equal(said[:, :-1], guess):
                break
            guess = said[:, :-1]
            said = np.concatenate([said[:, :1], self._best(self._pass("correct", guess, slots))], axis=1)
            self._stages.passes += 1
        return said

    def _advance(self, action: Ids, slots: Ids) -> Ids:
        """Return the first answer of the next action; the (rows,) slots are those of the action's last token."""
        self._guess = action[:, :-1]
        self._stages.passes += 1
        return self._best(self._pass("advance", np.concatenate([action[:, -1:], self._guess], axis=1), slots))

    def _pass(self, step: str, tokens: Ids, slots: Ids) -> NDArray[np.float32]:
        columns = slots[:, None] + np.arange(tokens.shape[1])
        fed = {"tokens": value(tokens), "slots": value(columns), "lengths": self._lengths, **self._memory}
        return self._read(step, fed)

    def _read(self, step: str, fed: dict[str, Any]) -> NDArray[np.float32]:
        """Run a graph, keep the keys and values that it gives, and return its logits."""
        outputs = self._graphs.run(step_name(step, self._bucket), fed)
        logits = outputs.pop("logits").numpy()
        self._memory |= {name.removesuffix(READ): tensor for name, tensor in outputs.items()}
        if not np.isfinite(logits).all():
            raise PolicyError(NOT_FINITE)
        return logits

    def _best(self, logits: NDArray[np.float32]) -> Ids:
        return logits.argmax(axis=-1)

    @property
    def _first_id(self) -> int:
        return self._answer.action_vocab_end - self._answer.n_action_bins


def _filled[N: np.generic](rows: NDArray[N], count: int) -> NDArray[N]:
    """Return (n, ...) rows as (count, ...); rows that are missing repeat the first one."""
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])


def _padded(rows: Sequence[Ids], count: int, length: int, pad: int) -> Ids:
    """Return rows of ids as (count, length), padded at the right; rows that are missing repeat the first one."""
    padded = np.full((len(rows), length), pad, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return _filled(padded, count)
