"""Questions with answers as training batches, beside the robot's own.

One row of a batch:

    input_ids   [BOS] In: which cube is left? Out: [space] | green [EOS]      then padding
    labels        -   -   -   -   -    -      -    -    -  | green [EOS]      (- is ignored)

A policy that reads the arm's state is told zeros, the middle of every range: a question is about the scene.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import ContractError, DataError
from vla_robot.data.questions import Question, read_questions
from vla_robot.policy.openvla.network.model import IGNORE
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.recipe.finetune import FinetuneRecipe, QuestionsRecipe
from vla_robot.train.batches.frames import Batch, FrameBank, labelled, rows_of_step, shift_generator
from vla_robot.train.parallel.ddp import Ranks

MEASURED_ROWS = 64
"""Held-out questions of one batch."""


class QuestionData:
    """The questions of a run. A step knows its own by its number alone, as with robot data."""

    def __init__(self, recipe: FinetuneRecipe, asked: QuestionsRecipe, policy: OpenVLAPolicy, ranks: Ranks) -> None:
        """
        Raises:
            DataError: the folder is damaged, or has no image of a camera that the policy looks at.
            RecipeError: the ranks cannot share a step's questions equally.
        """
        self._recipe = recipe
        self._ranks = ranks
        splits = read_questions(asked.folder)
        self._train = _bank(splits["train"], policy)
        self._held_out = _bank(splits["held_out"], policy)
        self._rows = ranks.share(min(recipe.question_rows, len(self._train)))

    def parts(self, step: int) -> list[tuple[Batch, float]]:
        """This rank's questions of a step in parts that the model takes at once; none with weight 0.

        Returns:
            Each part with its share of the step's loss, the mean over all labels; shares of all ranks add up to their
            number, since gradients of ranks are averaged. Answers have different lengths, so rows do not weigh alike.
        """
        r = self._recipe
        if self._rows == 0:
            return []
        rows = rows_of_step(np.arange(len(self._train)), step, r.question_rows, r.seed)
        whole = self._train.batch(rows, r.shift_px, shift_generator(r.seed, step))
        parts = whole.split(self._rows)[self._ranks.rank].split(r.micro_batch)
        return [(part, _labels(part) * self._ranks.count / _labels(whole)) for part in parts]

    def accuracy(self, answers_match: Callable[[Batch], Tensor]) -> float:
        """Share of the held-out questions that are answered word for word.

        Args:
            answers_match: a batch -> (B,) bool, as `OpenVLA.answers_match`.
        """
        return float(torch.cat([answers_match(batch).cpu() for batch in self._measured()]).float().mean())

    def fingerprint(self) -> bytes:
        """Changes when the questions do."""
        digest = hashlib.sha256()
        for bank in (self._train, self._held_out):
            digest.update(bank.frames.tobytes() + bank.labels.tobytes() + bank.input_ids.tobytes())
        return digest.digest()

    def _measured(self) -> Iterator[Batch]:
        everything = np.arange(len(self._held_out))
        for start in range(0, len(everything), MEASURED_ROWS):
            yield self._held_out.batch(everything[start : start + MEASURED_ROWS])


def _labels(batch: Batch) -> int:
    return int((batch.labels != IGNORE).sum())


def _bank(questions: Sequence[Question], policy: OpenVLAPolicy) -> FrameBank:
    config, words = policy.model.config, policy.tokenizer
    prompts, answers = [words.question(q.question) for q in questions], [words.answer(q.answer) for q in questions]
    input_ids, labels = labelled(prompts, answers, config.pad_token_id)
    squares: dict[tuple[Path, ...], NDArray[np.uint8]] = {}  # several questions are about the same images
    for question in questions:
        if (seen := tuple(question.images.values())) not in squares:
            squares[seen] = _squares(question, policy)
    return FrameBank(
        frames=np.stack([squares[tuple(q.images.values())] for q in questions]),
        state=None if config.proprio_dim is None else np.zeros((len(questions), config.proprio_dim), np.float32),
        input_ids=input_ids,
        labels=labels,
        policy=policy,
    )


def _squares(question: Question, policy: OpenVLAPolicy) -> NDArray[np.uint8]:
    """(N, S, S, 3) frames of the policy's cameras as it squares them."""
    try:
        images = policy.read.images(question.frames())
    except ContractError as error:
        raise DataError(
            f"the question '{question.question}' about scene {question.scene} does not fit the policy: {error}"
        ) from error
    return np.stack([policy.preprocessor.square(image) for image in images])
