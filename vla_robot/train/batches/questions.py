"""Questions with answers as training batches, mixed with the robot's own.

One row of a batch:

    input_ids   [BOS] In: which cube is left? Out: [space] | green [EOS]      then padding
    labels        -   -   -   -   -    -      -    -    -  | green [EOS]      (- is ignored)

A policy that reads the arm's state gets zeros, the middle of every range, since a question is about the scene.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import ContractError, DataError
from vla_robot.data.pipeline.shuffle import Pooled
from vla_robot.data.questions import Question, read_questions
from vla_robot.policy.vla.model import IGNORE
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.recipe.finetune import FinetuneRecipe, QuestionsRecipe
from vla_robot.train.batches.augment import RandomShift
from vla_robot.train.batches.frames import Batch, Rows, labelled
from vla_robot.train.batches.stream import Encoder
from vla_robot.train.parallel.ddp import Ranks

MEASURED_ROWS = 64
"""Held-out questions of one batch."""


class QuestionData:
    """Questions of a run by step number. A step's questions depend on its number alone, as with robot data."""

    def __init__(self, recipe: FinetuneRecipe, asked: QuestionsRecipe, policy: AnyVLAPolicy, ranks: Ranks) -> None:
        """
        Raises:
            DataError: the folder is damaged, or lacks an image of a camera that the policy uses.
            RecipeError: the ranks cannot share a step's questions equally.
        """
        self._recipe = recipe
        self._ranks = ranks
        splits = read_questions(asked.folder)
        self._train = _rows(splits["train"], policy)
        self._held_out = _rows(splits["held_out"], policy)
        self._rows = ranks.share(min(recipe.question_rows, len(self._train)))
        count = policy.model.config.inputs.num_images
        cameras = tuple(f"image {number}" for number in range(count))  # their order counts
        self._plain = Encoder.of(policy, cameras, as_acting=True)
        shift = RandomShift(recipe.shift_px, recipe.seed, self._rows * ranks.count) if recipe.shift_px else None
        self._encoder = replace(self._plain, augment=shift)
        self._order = Pooled([len(self._train)], max(recipe.question_rows, 1), recipe.seed)

    def parts(self, step: int) -> list[tuple[Batch, float]]:
        """Return this rank's questions of a step, in parts of at most `micro_batch` rows; no part if `weight` is 0.

        Returns:
            Each part with its share of the step's loss, the mean over all labels; shares of all ranks add up to their
            number, since gradients of ranks are averaged. Answers have different lengths, so rows do not weigh alike.
        """
        r = self._recipe
        if self._rows == 0:
            return []
        numbers = step * self._order.size + np.arange(self._order.size)
        rows = np.array([self._order.place(int(number))[1] for number in numbers])
        whole = self._encoder.batch(self._train[rows], numbers)
        parts = whole.split(self._rows)[self._ranks.rank].split(r.micro_batch)
        return [(part, _labels(part) * self._ranks.count / _labels(whole)) for part in parts]

    def accuracy(self, answers_match: Callable[[Batch], Tensor]) -> float:
        """Return the share of the held-out questions that the model answers word for word.

        Args:
            answers_match: maps a batch to (B,) bool, as `VLAModel.answers_match`.
        """
        return float(torch.cat([answers_match(batch).cpu() for batch in self._measured()]).float().mean())

    def fingerprint(self) -> bytes:
        """Return a hash of the questions."""
        digest = hashlib.sha256()
        for rows in (self._train, self._held_out):
            digest.update(rows.frames.tobytes() + rows.labels.tobytes() + rows.input_ids.tobytes())
        return digest.digest()

    def _measured(self) -> Iterator[Batch]:
        everything = np.arange(len(self._held_out))
        for start in range(0, len(everything), MEASURED_ROWS):
            part = everything[start : start + MEASURED_ROWS]
            yield self._plain.batch(self._held_out[part], part)


def _labels(batch: Batch) -> int:
    return int((batch.labels != IGNORE).sum())


def _rows(questions: Sequence[Question], policy: AnyVLAPolicy) -> Rows:
    config, words = policy.model.config, policy.tokenizer
    dim = config.inputs.proprio_dim
    prompts, answers = [words.question(q.question) for q in questions], [words.answer(q.answer) for q in questions]
    input_ids, labels = labelled(prompts, answers, config.pad_token_id)
    squares: dict[tuple[Path, ...], NDArray[np.uint8]] = {}  # several questions are about the same images
    for question in questions:
        if (seen := tuple(question.images.values())) not in squares:
            squares[seen] = _squares(question, policy)
    frames = np.stack([squares[tuple(q.images.values())] for q in questions])
    return Rows(
        frames=frames,
        is_there=np.ones(frames.shape[:2], dtype=np.bool_),
        state=None if dim is None else np.zeros((len(questions), dim), np.float32),
        input_ids=input_ids,
        labels=labels,
    )


def _squares(question: Question, policy: AnyVLAPolicy) -> NDArray[np.uint8]:
    """Return (N, S, S, 3) frames of a question, made square as the policy does."""
    try:
        images = policy.read.images(question.frames())
    except ContractError as error:
        raise DataError(
            f"the question '{question.question}' about scene {question.scene} does not fit the policy: {error}"
        ) from error
    return np.stack([policy.preprocessor.resized(image) for image in images])
