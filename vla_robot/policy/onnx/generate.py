"""Generate by guess and correction, as `vla/reason/generate.py` explains it, over an exported folder's graphs.

    begin     reads prompt and first guess              the logits of the first tokens, those of one action
    correct   reads the last answer as the guess        the same slots, the same keys and values
    advance   the next tokens, guessed to be the same   keys and values of the tokens before are added

An answer of several actions may be told how to begin; `begin` reads those tokens too. A codec's grammar is applied
here, to the graphs' logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import PolicyError
from vla_robot.core.ports import ActionCodec
from vla_robot.core.ports.answer_grammar import Grammar
from vla_robot.policy.onnx.inputs import Ids, Inputs, filled, in_buckets, padded
from vla_robot.policy.onnx.record import READ, Bucket, Record, TokenAnswer, see_name, step_name
from vla_robot.policy.onnx.runtime import Graphs, value
from vla_robot.policy.vla.codecs.rows import BEHIND, NOT_FINITE
from vla_robot.policy.vla.reason.stage_timer import StageTimer

type Logits = NDArray[np.float32]


class GraphGenerator:
    """Decodes action tokens greedily with an exported folder's graphs."""

    def __init__(self, graphs: Graphs, record: Record, answer: TokenAnswer, codec: ActionCodec) -> None:
        self._graphs, self._record, self._answer, self._codec = graphs, record, answer, codec

    def open(self) -> None:
        """Open the graphs of one observation, so that the first answer takes no longer than the others."""
        bucket = self._record.bucket(1, 1)
        for name in (see_name(bucket.rows), *(step_name(step, bucket) for step in self._answer.steps)):
            self._graphs.opened(name)

    def __call__(self, inputs: Inputs, stages: StageTimer) -> tuple[Ids, NDArray[np.float32]]:
        """Return (B, N) token ids of answers of at most N tokens, -1 behind the end of a shorter one, and their (B, N)
        entropy [nats], NaN for a token that was not generated.

        Raises:
            ContractError: a prompt is longer than the folder's graphs read.
            PolicyError: a logit is not finite.
        """
        parts = in_buckets(self._record, inputs)
        ids, entropy = zip(*(self._inference(bucket, rows, stages).answer() for bucket, rows in parts), strict=True)
        return np.concatenate(ids), np.concatenate(entropy)

    def first(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the (B, A) logits of the first token. Raises as `__call__`."""
        parts = in_buckets(self._record, inputs)
        logits = [self._inference(bucket, rows, StageTimer()).begin()[: len(rows.prompts), 0] for bucket, rows in parts]
        return np.concatenate(logits)

    def _inference(self, bucket: Bucket, inputs: Inputs, stages: StageTimer) -> _Inference:
        return _Inference(self._graphs, self._answer, self._codec, bucket, inputs, stages)


class _Inference:
    """One batch in one bucket; rows that are missing repeat the first one."""

    def __init__(
        self,
        graphs: Graphs,
        answer: TokenAnswer,
        codec: ActionCodec,
        bucket: Bucket,
        inputs: Inputs,
        stages: StageTimer,
    ) -> None:
        self._graphs, self._answer, self._codec, self._bucket = graphs, answer, codec, bucket
        self._inputs, self._stages = inputs, stages
        lengths = np.array([len(prompt) for prompt in inputs.prompts])
        self._lengths = value(filled(lengths, bucket.rows))
        self._given = [codec.rows(ids) for ids in inputs.given]
        self._counts = filled(np.array([len(rows) for rows in self._given]), bucket.rows)
        self._ends = filled(lengths + answer.inserted, bucket.rows) + self._counts  # first slot of the answer
        self._guess = np.tile(codec.guess(answer.drafted - 1), (bucket.rows, 1))  # that the arm stays where it is
        self._memory: dict[str, Any] = {}  # keys and values by name
        states = None if codec.grammar is None else [codec.grammar.after(rows) for rows in self._given]
        self._begun = None if states is None else filled(np.array(states), bucket.rows)
        self._state = self._begun  # of the grammar, before the tokens that are being guessed

    def answer(self) -> tuple[Ids, NDArray[np.float32]]:
        """Return (B, N) ids of the real rows, those given included, and their (B, N) entropy."""
        answer = self._answer
        logits = self._limited(self.begin(), self._along(self._guess))
        self._stages.lap("prefill")
        settled = list[Logits]()
        for done in range(0, answer.tokens - int(self._counts.min()), answer.drafted):
            if done:
                before = settled[-1].argmax(axis=-1)
                self._state = self._after(before)
                if self._all_end():
                    break
                logits = self._advance(before, self._ends + done - 1)
            settled.append(self._settled(logits, self._ends + done))
        self._stages.lap("decode")
        return self._whole(np.concatenate(settled, axis=1))

    def begin(self) -> NDArray[np.float32]:
        """Return (rows, D, A) logits after the prompt and after each token of the first guess."""
        inputs, rows, answer = self._inputs, self._bucket.rows, self._answer
        seen = self._graphs.run(see_name(rows), {"pixels": value(filled(inputs.pixels, rows))})
        self._stages.lap("towers")
        fed = {**seen, "ids": value(padded(inputs.prompts, rows, self._bucket.text, answer.pad_token_id))}
        fed["lengths"] = self._lengths
        if inputs.state is not None:
            fed["state"] = value(filled(inputs.state, rows))
        if answer.given:
            fed |= {"given": value(padded(self._given, rows, answer.given, 0)), "counts": value(self._counts)}
        return self._read("begin", fed)

    def _settled(self, logits: Logits, slots: Ids) -> Logits:
        """Return the (rows, D, A) logits of greedy decoding, from those after a guess that begins at (rows,) slots."""
        guess = self._guess
        for _ in range(self._answer.drafted - 1):
            said = logits.argmax(axis=-1)
            if np.array_equal(said[:, :-1], guess):
                break
            guess = said[:, :-1]
            states = self._along(guess)
            following = self._limited(self._pass("correct", guess, slots), None if states is None else states[:, 1:])
            logits = np.concatenate([logits[:, :1], following], axis=1)
            self._stages.passes += 1
        return logits

    def _advance(self, before: Ids, slots: Ids) -> Logits:
        """Return the first logits of the next tokens; the (rows,) slots are those of the last token before."""
        self._guess = before[:, :-1]
        self._stages.passes += 1
        logits = self._pass("advance", np.concatenate([before[:, -1:], self._guess], axis=1), slots)
        return self._limited(logits, self._along(self._guess))

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

    def _limited(self, logits: Logits, states: Ids | None) -> Logits:
        """Return (rows, n, A) logits, minus infinity for rows not allowed in (rows, n) states of the grammar."""
        if states is None or self._codec.grammar is None:
            return logits
        return np.where(self._codec.grammar.allowed[states], logits, np.float32(-np.inf))

    def _along(self, said: Ids) -> Ids | None:
        """Return the (rows, n + 1) states before and after each of (rows, n) tokens; None without a grammar."""
        grammar = self._codec.grammar
        return None if grammar is None or self._state is None else along(grammar, self._state, said)

    def _after(self, said: Ids) -> Ids | None:
        states = self._along(said)
        return None if states is None else states[:, -1]

    def _all_end(self) -> bool:
        grammar = self._codec.grammar
        return grammar is not None and self._state is not None and bool((self._state == grammar.done).all())

    def _whole(self, logits: Logits) -> tuple[Ids, NDArray[np.float32]]:
        """Return (B, N) ids and entropy of real rows, of (rows, n, A) logits behind what was given."""
        said, entropy, grammar = logits.argmax(axis=-1), entropy_of(logits), self._codec.grammar
        ids = self._codec.ids[said]
        if grammar is not None and self._begun is not None:
            behind = along(grammar, self._begun, said)[:, :-1] == grammar.done
            ids, entropy = np.where(behind, BEHIND, ids), np.where(behind, np.float32(np.nan), entropy)
        whole = np.full((len(self._given), self._answer.tokens), BEHIND, dtype=np.int64)
        unsure = np.full(whole.shape, np.nan, dtype=np.float32)
        for row, given in enumerate(self._inputs.given):
            begun, end = len(given), min(len(given) + ids.shape[1], self._answer.tokens)
            whole[row, :begun] = given
            whole[row, begun:end], unsure[row, begun:end] = ids[row, : end - begun], entropy[row, : end - begun]
        return whole, unsure


def entropy_of(logits: Logits) -> NDArray[np.float32]:
    """Return the (...) entropies of (..., A) logits [nats]; a row of minus infinity has probability 0."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probability = odds / odds.sum(axis=-1, keepdims=True)
    log = np.log(probability, out=np.zeros_like(probability), where=probability > 0)
    return -(probability * log).sum(axis=-1)


def along(grammar: Grammar, state: Ids, said: Ids) -> Ids:
    """Return the (B, n + 1) states before and after each of (B, n) rows, from the (B,) states before them.

    A row that is not allowed leads anywhere: it is a wrong guess, so that what follows it is corrected.
    """
    states = [state]
    for rows in said.T:
        states.append(grammar.following[states[-1], rows].astype(np.int64))
    return np.stack(states, axis=1)
