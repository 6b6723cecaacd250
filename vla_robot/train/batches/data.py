"""Where the batches of a run come from: demonstrations kept in memory, or a mixture of any size.

Both know a batch by the number of its step alone, which is what lets a run resume exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.data.formats.lerobot.demo_dataset import Demos
from vla_robot.data.pipeline.mixture import Choices, Mixture, open_mixture
from vla_robot.data.pipeline.windows import Window
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.batches.frames import Batch, FrameBank, Split, WeightedOrder, rows_of_step, shift_generator
from vla_robot.train.batches.stream import Batches, Encoder, MixtureStream
from vla_robot.train.parallel.ddp import Ranks

HELD_OUT_ROWS = 64
"""Frames of one held-out batch."""

HELD_OUT_BATCHES = 8
"""Batches of a mixture's validation split that are measured: always the same ones."""


class TrainingData(Protocol):
    """What a run learns from."""

    def batch(self, step: int) -> Batch:
        """This rank's share of a step's batch, always the same one."""
        ...

    def held_out(self) -> Iterator[Batch]:
        """Batches that never train; the same at every rank."""
        ...

    def fingerprint(self) -> bytes:
        """Changes when the data do."""
        ...


class DemoData:
    """Demonstrations, decoded once and kept: as fast as memory, and as large."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        demos: Demos,
        policy: OpenVLAPolicy,
        ranks: Ranks,
        on_frames: Callable[[int, int], None],
    ) -> None:
        """
        Raises:
            DataError: no frame is left to train on, of a dataset that has a weight too, or an action is not finite.
        """
        self._recipe = recipe
        self._demos = demos
        self._bank = FrameBank.load(demos, policy, recipe.dataset_name, on_frames)
        self._split = Split.make(demos, recipe.held_out, recipe.seed, policy.model.config.chunk - 1)
        if len(self._split.train) == 0:
            raise DataError("no frame is left to train on; record more episodes.")
        self._rank = ranks.rank
        self._weighted = _weighted(recipe, demos, self._split) if recipe.weights else None
        self._rows = ranks.share(len(self._rows_of(0)))

    def batch(self, step: int) -> Batch:
        r = self._recipe
        whole = self._bank.batch(self._rows_of(step), r.shift_px, shift_generator(r.seed, step))
        return whole.split(self._rows)[self._rank]

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        """(B,) frames of a step, of all ranks."""
        r = self._recipe
        if self._weighted is not None:
            return self._weighted.rows(step, r.robot_rows)
        return rows_of_step(self._split.train, step, r.robot_rows, r.seed)

    def held_out(self) -> Iterator[Batch]:
        held = self._split.held_out
        for rows in np.array_split(held, math.ceil(len(held) / HELD_OUT_ROWS)) if len(held) else ():
            yield self._bank.batch(rows)

    def fingerprint(self) -> bytes:
        return self._demos.actions.tobytes() + self._demos.states.tobytes()


def _weighted(recipe: FinetuneRecipe, demos: Demos, split: Split) -> WeightedOrder:
    root_of = np.repeat([str(e.source.root) for e in demos.episodes], [len(e) for e in demos.episodes])[split.train]
    parts = [split.train[root_of == str(root)] for root in recipe.data]
    for root, part in zip(recipe.data, parts, strict=True):
        if len(part) == 0:
            raise DataError(f"{root} has no frame left to train on beside its held-out episodes; record more of them.")
    return WeightedOrder(parts, recipe.weights, recipe.seed)


class MixtureData:
    """A mixture of datasets, read while training: any size, in the reference's order, with its augmentation."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        mixture: Mixture,
        policy: OpenVLAPolicy,
        ranks: Ranks,
        on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> None:
        """
        Raises:
            DataError: the mixture does not fit the policy, or has nothing to hold out.
        """
        self._mixture = mixture
        seed = recipe.seed if recipe.augment else None
        encoder = Encoder.of(policy, recipe.cameras, augment_seed=seed)
        stream = MixtureStream(mixture, encoder, ranks.share(recipe.robot_rows), ranks.rank, ranks.count)
        self._batches = Batches(stream, recipe.workers)
        self._reading: Iterator[Batch] | None = None
        self._held_out: MixtureStream | None = None
        if recipe.held_out:
            val = _validation(recipe, on_progress, policy.model.config.chunk)
            self._held_out = MixtureStream(val, Encoder.of(policy, recipe.cameras), HELD_OUT_ROWS)

    def batch(self, step: int) -> Batch:
        if self._reading is None or self._batches.step != step:
            self._batches.load_state_dict({"step": step})
            self._reading = iter(self._batches)
        return next(self._reading)

    def held_out(self) -> Iterator[Batch]:
        if self._held_out is not None:
            yield from (self._held_out.batch(number) for number in range(HELD_OUT_BATCHES))

    def fingerprint(self) -> bytes:
        return json.dumps(self._mixture.statistics, sort_keys=True, default=str).encode()


def open_recipe_mixture(
    recipe: FinetuneRecipe,
    split: Literal["train", "val"] = "train",
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    chunk: int = 1,
) -> Mixture:
    """The mixture that a recipe names, each sample with the actions of an answer.

    Raises:
        DataError: it cannot be read.
        RecipeError: there is none of that name.
    """
    assert recipe.mixture is not None  # the caller has looked
    choices = Choices(split=split, window=Window(future=chunk - 1), cameras=recipe.cameras, seed=recipe.seed)
    return open_mixture(recipe.mixture, recipe.root, choices, on_progress=on_progress)


def _validation(recipe: FinetuneRecipe, on_progress: Callable[[str, int, int], None], chunk: int) -> Mixture:
    try:
        return open_recipe_mixture(recipe, "val", on_progress, chunk)
    except DataError as error:
        raise DataError(f"{error} Nothing is left to measure with: held_out = 0 trains without.") from error
