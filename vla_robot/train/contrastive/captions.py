"""Pictures and captions by step number. The captions of a batch are all different, so that no pair is wrongly apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, RecipeError
from vla_robot.data.cube_questions import CAPTION
from vla_robot.data.questions import Question, read_questions
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.recipe.trainings.pretrain import PretrainRecipe
from vla_robot.train.batches.augment import RandomShift
from vla_robot.train.batches.frames import Batch, Rows
from vla_robot.train.batches.questions import frames_of
from vla_robot.train.batches.stream import Encoder

ORDER = 29
"""Part of a seed that separates the order of captions from other random streams."""


def read_captions(folder: Path) -> tuple[list[Question], list[Question]]:
    """Return the captions of a folder: for training, and held out. Raises DataError if one of them has none."""
    splits = read_questions(folder)
    train, held_out = ([q for q in splits[s] if q.question == CAPTION] for s in ("train", "held_out"))
    if not (train and held_out):
        raise DataError(
            f"{folder} has {len(train)} captions for training and {len(held_out)} held out, answers to '{CAPTION}'. "
            "`vla data questions --about captions --out FOLDER` writes some."
        )
    return train, held_out


class CaptionData:
    """Batches of pictures and captions; a step's depend on its number alone."""

    def __init__(self, recipe: PretrainRecipe, policy: AnyVLAPolicy) -> None:
        """
        Raises:
            DataError: the folder is damaged, or lacks captions.
            RecipeError: it has fewer different captions than a batch needs.
        """
        train, held_out = read_captions(recipe.folder)
        self._captions = [q.answer for q in train]
        if (different := len(set(self._captions))) < recipe.batch_size:
            raise RecipeError(
                f"batch_size is {recipe.batch_size}, but {recipe.folder} has {different} different captions; a batch "
                "holds each once. Take a smaller batch_size, or write more scenes."
            )
        ids = [policy.tokenizer.answer(q.answer) for q in (*train, *held_out)]
        self.length = max(map(len, ids))
        self._recipe = recipe
        pad = policy.model.config.pad_token_id
        self._train = _rows(train, ids[: len(train)], self.length, pad, policy)
        self._held_out = _rows(held_out, ids[len(train) :], self.length, pad, policy)
        self._held_out_captions = [q.answer for q in held_out]
        cameras = tuple(f"image {number}" for number in range(policy.model.config.inputs.num_images))
        self._plain = Encoder.of(policy, cameras, as_acting=True)
        shift = RandomShift(recipe.shift_px, recipe.seed, recipe.batch_size) if recipe.shift_px else None
        self._encoder = replace(self._plain, augment=shift)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        drawn = np.random.default_rng([self._recipe.seed, ORDER, step]).permutation(len(self._captions))
        B = self._recipe.batch_size
        rows = _different(drawn, self._captions)[:B]
        return self._encoder.batch(self._train[rows], step * B + np.arange(B))

    def held_out(self) -> Iterator[Batch]:
        """Yield one batch of held-out scenes, of at most `batch_size`."""
        rows = _different(np.arange(len(self._held_out_captions)), self._held_out_captions)[: self._recipe.batch_size]
        yield self._plain.batch(self._held_out[rows], rows)

    def fingerprint(self) -> bytes:
        """Return a hash of pictures and captions."""
        digest = hashlib.sha256()
        for rows in (self._train, self._held_out):
            digest.update(rows.frames.tobytes() + rows.input_ids.tobytes())
        return digest.digest()


def _different(order: NDArray[np.int64], captions: Sequence[str]) -> NDArray[np.int64]:
    """Return the places of `order` without those whose caption came before."""
    _, first = np.unique([captions[place] for place in order], return_index=True)
    return order[np.sort(first)]


def _rows(
    questions: Sequence[Question], ids: Sequence[NDArray[np.int64]], length: int, pad: int, policy: AnyVLAPolicy
) -> Rows:
    frames = frames_of(questions, policy)
    padded = np.full((len(ids), length), pad, np.int64)
    for row, each in zip(padded, ids, strict=True):
        row[: len(each)] = each
    return Rows(frames, np.ones(frames.shape[:2], np.bool_), padded, padded, state=None)
