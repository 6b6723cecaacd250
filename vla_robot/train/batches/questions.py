"""Questions with answers as training batches, mixed with the robot's own.

One row of a batch:

    input_ids   [BOS] In: which cube is left? Out: [space] | green [EOS]      then padding
    labels        -   -   -   -   -    -      -    -    -  | green [EOS]      (- is ignored)

The answer to "detect red cube" is a box in the first camera's picture, <loc0561><loc0375><loc0690><loc0471> red cube.
If training shifts the picture, its box goes with it.

A policy that reads the arm's state gets zeros, the middle of every range, since a question is about the scene.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_robot.core.errors import ContractError, DataError
from vla_robot.core.language.boxes import asks_for_boxes
from vla_robot.data.pipeline.shuffle import Pooled
from vla_robot.data.questions import Question, Split, read_questions
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
        self._locations = policy.tokenizer.locations()
        self._asks_for_boxes = np.array([asks_for_boxes(q.question) for q in splits["held_out"]])
        _require_locations(splits, self._locations)
        self._shift = RandomShift(recipe.shift_px, recipe.seed, self._rows * ranks.count) if recipe.shift_px else None
        self._encoder = replace(self._plain, augment=self._shift)
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
        whole = self._encoder.batch(self._moved(self._train[rows], numbers), numbers)
        parts = whole.split(self._rows)[self._ranks.rank].split(r.micro_batch)
        return [(part, _labels(part) * self._ranks.count / _labels(whole)) for part in parts]

    def accuracy(self, answers_match: Callable[[Batch], Tensor]) -> float:
        """Return the share of the held-out questions that the model answers word for word; nan if all ask for boxes.

        Boxes are left out: one that is off by a 1024th of the picture is as good. `vla ask --held-out` measures them.

        Args:
            answers_match: maps a batch to (B,) bool, as `VLAModel.answers_match`.
        """
        matches = [answers_match(batch).cpu() for batch in self._measured()]
        return float(torch.cat(matches).float().mean()) if matches else math.nan

    def fingerprint(self) -> bytes:
        """Return a hash of the questions."""
        digest = hashlib.sha256()
        for rows in (self._train, self._held_out):
            digest.update(rows.frames.tobytes() + rows.labels.tobytes() + rows.input_ids.tobytes())
        return digest.digest()

    def _moved(self, rows: Rows, numbers: NDArray[np.int64]) -> Rows:
        """Return rows whose boxes are moved as their first frames will be."""
        if self._shift is None or self._locations is None:
            return rows
        shift_px = self._shift.drawn(len(rows), rows.frames.shape[1], numbers)[:, :, 0, 0].numpy()  # (2, B)
        moved = moved_boxes(rows.labels, self._locations, -shift_px / np.array(rows.frames.shape[2:4])[:, None])
        says_place = moved != rows.labels
        return replace(rows, labels=moved, input_ids=np.where(says_place, moved, rows.input_ids))

    def _measured(self) -> Iterator[Batch]:
        everything = np.flatnonzero(~self._asks_for_boxes)
        for start in range(0, len(everything), MEASURED_ROWS):
            part = everything[start : start + MEASURED_ROWS]
            yield self._plain.batch(self._held_out[part], part)


def moved_boxes(labels: NDArray[np.int64], locations: range, by: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return labels whose places are moved, those that leave the picture to its edge.

    Args:
        labels: (B, L) int64; the places of a row are y, x, y, x, ... in order.
        locations: ids of the places 0 to 1023.
        by: (2, B) down and to the right, in fractions of the picture.
    """
    moved = labels.copy()
    is_place = (labels >= locations.start) & (labels < locations.stop)
    rows, columns = np.nonzero(is_place)
    axes = (is_place.cumsum(axis=1) - 1)[rows, columns] % 2
    places = labels[rows, columns] - locations.start + np.rint(by[axes, rows] * (len(locations) - 1)).astype(np.int64)
    moved[rows, columns] = locations.start + places.clip(0, len(locations) - 1)
    return moved


def _require_locations(splits: Mapping[Split, Sequence[Question]], locations: range | None) -> None:
    """Raise DataError if questions ask for boxes of a policy without a token for each place."""
    boxes = [q.question for questions in splits.values() for q in questions if asks_for_boxes(q.question)]
    if boxes and locations is None:
        raise DataError(
            f"'{boxes[0]}' is answered with <loc> tokens, which the policy's vocabulary does not have. Start from a "
            "PaliGemma, or train a new model with `locations = true` in [architecture]; or leave boxes out of the data."
        )


def _labels(batch: Batch) -> int:
    return int((batch.labels != IGNORE).sum())


def _rows(questions: Sequence[Question], policy: AnyVLAPolicy) -> Rows:
    config, words = policy.model.config, policy.tokenizer
    dim = config.inputs.proprio_dim
    prompts, answers = [words.question(q.question) for q in questions], [words.answer(q.answer) for q in questions]
    input_ids, labels = labelled(prompts, answers, config.pad_token_id)
    frames = frames_of(questions, policy)
    return Rows(
        frames=frames,
        is_there=np.ones(frames.shape[:2], dtype=np.bool_),
        state=None if dim is None else np.zeros((len(questions), dim), np.float32),
        input_ids=input_ids,
        labels=labels,
    )


def frames_of(questions: Sequence[Question], policy: AnyVLAPolicy) -> NDArray[np.uint8]:
    """Return (F, N, S, S, 3) frames of questions, made square as the policy does.

    Raises:
        DataError: an image cannot be read, or one of a camera that the policy uses is missing.
    """
    squares: dict[tuple[Path, ...], NDArray[np.uint8]] = {}  # several questions are about the same images
    for question in questions:
        if (seen := tuple(question.images.values())) not in squares:
            squares[seen] = _squares(question, policy)
    return np.stack([squares[tuple(q.images.values())] for q in questions])


def _squares(question: Question, policy: AnyVLAPolicy) -> NDArray[np.uint8]:
    """Return (N, S, S, 3) frames of a question, made square as the policy does."""
    try:
        images = policy.read.images(question.frames())
    except ContractError as error:
        raise DataError(
            f"the question '{question.question}' about scene {question.scene} does not fit the policy: {error}"
        ) from error
    return np.stack([policy.preprocessor.resized(image) for image in images])
