"""Batches of a training step: frames, state and text as inputs, action tokens as labels.

One row of a batch:

    input_ids   [BOS] In: What action ...? Out: [space] | a0 a1 a2 a3 a4 a5 a6 [EOS]      then padding
    labels        -   -   -   -   -   -   -   -    -    | a0 a1 a2 a3 a4 a5 a6 [EOS]      (- is ignored)

A policy whose answer holds several actions is trained on those of the next steps, one after the other. With an action
head the answer has no tokens but the end, and the actions themselves are learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.inputs.upload import upload
from vla_robot.policy.vla.model import IGNORE


@dataclass(frozen=True)
class Batch:
    """Inputs of `VLAModel.forward`.

    Attributes:
        pixels: (B, N, C, S, S) float32.
        input_ids: (B, L) int64.
        labels: (B, L) int64, in main memory.
        state: (B, P) float32 in [-1, 1], or None.
        actions: (B, K, D) float32, normalised, or None for questions, which have no action.
        seeds: (B,) int64 in main memory, from which an action head draws each row's random numbers, or None.
    """

    pixels: Tensor
    input_ids: Tensor
    labels: Tensor
    state: Tensor | None
    actions: Tensor | None = None
    seeds: Tensor | None = None

    def split(self, rows: int) -> list[Batch]:
        """Split the batch into parts of at most `rows` rows; 0 returns the batch itself."""
        if rows == 0 or rows >= len(self.pixels):
            return [self]
        fields = {name: value for name, value in vars(self).items() if value is not None}
        parts = {name: value.split(rows) for name, value in fields.items()}
        return [replace(self, **dict(zip(parts, each, strict=True))) for each in zip(*parts.values(), strict=True)]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device, but labels and seeds, which the host looks at."""
        moved = {name: upload(value, device) for name, value in vars(self).items() if value is not None}
        return replace(self, **(moved | {"labels": self.labels, "seeds": self.seeds}))


@dataclass(frozen=True)
class Rows:
    """Rows of batches before their frames are augmented and normalised: N * S * S * 3 bytes of pixels each.

    Attributes:
        frames: (F, N, S, S, 3) uint8.
        is_there: (F, N) False where the dataset lacks the camera; such frames are black and are not augmented.
        input_ids: (F, L) int64, padded at the right.
        labels: (F, L) int64.
        state: (F, P) float32 in [-1, 1], or None.
        actions: (F, K, D) float32, normalised, or None.
        instructions: (F,) text, what the robot is told, or None.
    """

    frames: NDArray[np.uint8]
    is_there: NDArray[np.bool_]
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    state: NDArray[np.float32] | None
    actions: NDArray[np.float32] | None = None
    instructions: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, places: NDArray[np.int64]) -> Rows:
        """Return the rows at these indices."""
        return replace(self, **{name: value[places] for name, value in vars(self).items() if value is not None})


def answers_of(actions: NDArray[np.floating], codec: ActionCodec, tokenizer: Prompts) -> list[NDArray[np.int64]]:
    """Return the (n,) token ids of each of (B, K, D) normalised actions: the actions' tokens, then end-of-sequence."""
    return [_ended(codec.encode(chunk), tokenizer.eos) for chunk in actions]


def ends_of(actions: NDArray[np.floating], tokenizer: Prompts) -> list[NDArray[np.int64]]:
    """Return the (1,) end token as the answer to each of (B, K, D) actions, for a policy with an action head."""
    return [np.array([tokenizer.eos], dtype=np.int64)] * len(actions)


def _ended(ids: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Return the ids with the end token, which a codec may say itself."""
    return ids if ids[-1] == end else np.append(ids, end)


def reworded(rows: Rows, prompts: Sequence[NDArray[np.int64]], pad_id: int) -> Rows:
    """Return rows with other prompts before the same answers."""
    answers = (labels[labels != IGNORE] for labels in rows.labels)
    input_ids, labels = labelled(prompts, answers, pad_id)
    return replace(rows, input_ids=input_ids, labels=labels)


def labelled(
    prompts: Sequence[NDArray[np.int64]], answers: Iterable[NDArray[np.int64]], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join prompts with their answers into token ids and labels, both (B, L), padded at the right."""
    rows = list(zip(prompts, answers, strict=True))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = np.full((len(prompts), longest), pad_id, dtype=np.int64)
    labels = np.full((len(prompts), longest), IGNORE, dtype=np.int64)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[row, : len(prompt)] = prompt
        input_ids[row, len(prompt) : end] = labels[row, len(prompt) : end] = answer
    return input_ids, labels
