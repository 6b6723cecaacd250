"""Sources of a run's batches: demonstrations kept in memory, or a mixture of any size. Both are mixtures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.data.formats.lerobot.demo_dataset import Demos
from vla_robot.data.pipeline.mixture import Choices, Dataset, Mixture, open_mixture
from vla_robot.data.pipeline.shuffle import ORDER, Order, Pooled, Weighted
from vla_robot.data.pipeline.step_parts import EPISODE
from vla_robot.data.pipeline.steps import StepTable
from vla_robot.data.pipeline.windows import Window
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, MixtureFinetuneRecipe
from vla_robot.train.batches.augment import OpenVLAAugment, RandomShift
from vla_robot.train.batches.frames import Batch
from vla_robot.train.batches.stream import Batches, Encoder, Kept, MixtureStream
from vla_robot.train.batches.wordings import Wordings, require_known
from vla_robot.train.parallel.ddp import Ranks

HELD_OUT = 2
"""Part of a seed that separates the choice of held-out episodes from other random streams of the same seed."""

HELD_OUT_ROWS = 64
"""Frames of one held-out batch."""

HELD_OUT_BATCHES = 8
"""Batches of a mixture's validation split that are measured; each measurement uses the same ones."""


class TrainingData:
    """Training and held-out batches. A training batch depends on its step number alone, so that runs resume exactly."""

    def __init__(
        self,
        stream: MixtureStream,
        held_out: Callable[[], Iterator[Batch]],
        fingerprint: bytes,
        workers: int = 0,
        notes: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            stream: this rank's share of each step's batch.
            held_out: returns the batches that are never trained on, the same at every rank.
            fingerprint: bytes that change when the data change.
            workers: processes that decode frames; 0 decodes in this one.
            notes: what the user should know of the data, one line each.
        """
        self.held_out, self.fingerprint, self.notes = held_out, fingerprint, notes
        self._stream = stream
        self._batches = Batches(stream, workers) if workers else None
        self._reading: Iterator[Batch] | None = None

    def batch(self, step: int) -> Batch:
        """Return this rank's share of a step's batch."""
        if self._batches is None:
            return self._stream.batch(step)
        if self._reading is None or self._batches.step != step:
            self._batches.load_state_dict({"step": step})
            self._reading = iter(self._batches)
        return next(self._reading)


def data_of_demos(
    recipe: DemosFinetuneRecipe,
    demos: Demos,
    policy: AnyVLAPolicy,
    ranks: Ranks,
    on_frames: Callable[[int, int], None],
) -> TrainingData:
    """Encode demonstrations once and keep them in memory, as a mixture whose datasets share their statistics.

    Raises:
        DataError: no frame is left to train on, in all or in a dataset that has a weight; the frames do not fit into
            main memory; or the recipe's wordings are of no instruction.
    """
    assert policy.embodiment is not None
    cameras = tuple(camera.name for camera in policy.embodiment.cameras)
    choices = Choices(
        window=Window(future=policy.model.config.chunk - 1), cameras=cameras, known=cameras, seed=recipe.seed
    )
    is_held = _held_out(len(demos.episodes), recipe.held_out, recipe.seed)
    statistics = policy.statistics[recipe.dataset_name]
    train = datasets_of(demos, recipe.dataset_name, choices, ~is_held, statistics)
    held = datasets_of(demos, recipe.dataset_name, choices, is_held, statistics)
    rows, order = _order(recipe, demos, [len(dataset) for dataset in train])
    shift = RandomShift(recipe.shift_px, recipe.seed, rows) if recipe.shift_px else None
    encoder = Encoder.of(policy, cameras, shift, _wordings(recipe, demos.texts), as_acting=True, seed=recipe.seed)
    mixture = Mixture(train, recipe.weights or (1.0,) * len(train), recipe.seed, order)
    kept = Kept([*train, *held], encoder, on_frames)
    plain = replace(encoder, augment=None, wordings=None)
    measured = [(len(train) + which, step) for which, dataset in enumerate(held) for step in range(len(dataset))]

    def held_out() -> Iterator[Batch]:
        for part in np.array_split(np.arange(len(measured)), math.ceil(len(measured) / HELD_OUT_ROWS) or 1):
            if len(part):
                yield plain.batch(kept([measured[number] for number in part]), part)

    stream = MixtureStream(mixture, encoder, ranks.share(rows), ranks.rank, ranks.count, kept)
    return TrainingData(stream, held_out, demos.actions.tobytes() + demos.states.tobytes(), notes=(str(kept),))


def datasets_of(
    demos: Demos, name: str, choices: Choices, drawn: NDArray[np.bool_], statistics: Mapping[str, Any]
) -> list[Dataset]:
    """Return the datasets of demonstrations, each with its own table of steps.

    Args:
        demos: the recorded demonstrations.
        name: the key of their statistics.
        choices: window, cameras and split of their samples.
        drawn: (E,) True for the episodes that samples are drawn from.
        statistics: statistics that normalise all of them.
    """
    datasets: list[Dataset] = []
    for source, recipe in demos.parts:
        is_own = np.array([episode.source is source for episode in demos.episodes])
        own = [episode for episode in demos.episodes if episode.source is source]
        start, stop = own[0].start, own[-1].stop
        places = [(0, episode.index, 0, episode.start - start, len(episode)) for episode in own]
        table = StepTable(
            folder=None,
            actions=demos.actions[start:stop],
            state=demos.states[start:stop],
            text_of=demos.text_of[start:stop],
            texts=demos.texts,
            episodes=np.array(places, dtype=EPISODE),
            statistics=dict(statistics),
        )
        datasets.append(Dataset(name, recipe, {choices.split: source}, table, choices, drawn[is_own]))
    return datasets


def _held_out(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Return (E,) True for held-out episodes: at least one unless the share is 0, and at least one is trained on.

    Whole episodes are held out, so that a held-out frame has no neighbour among the training frames.
    """
    chosen = min(max(round(share * count), 1 if share > 0 else 0), count - 1)
    return np.isin(np.arange(count), np.random.default_rng([seed, HELD_OUT]).permutation(count)[:chosen])


def _order(recipe: DemosFinetuneRecipe, demos: Demos, counts: Sequence[int]) -> tuple[int, Order]:
    """Return the samples of a step over all ranks, and the order of samples."""
    if not recipe.weights:
        if sum(counts) == 0:
            raise DataError("no frame is left to train on; record more episodes.")
        pooled = Pooled(counts, recipe.robot_rows, recipe.seed)
        return pooled.size, pooled
    for (source, _), count in zip(demos.parts, counts, strict=True):
        if count == 0:
            raise DataError(
                f"{source.location} has no frame left to train on beside its held-out episodes; record more of them."
            )
    shares = [weight * count for weight, count in zip(recipe.weights, counts, strict=True)]
    return recipe.robot_rows, Weighted(counts, shares, recipe.seed, (ORDER,))


def data_of_mixture(
    recipe: MixtureFinetuneRecipe,
    mixture: Mixture,
    policy: AnyVLAPolicy,
    ranks: Ranks,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> TrainingData:
    """Read a mixture of any size while training, in the reference's order and with its augmentation.

    Raises:
        DataError: the mixture does not fit the policy, or has no validation split although `held_out` is set; or the
            recipe's wordings are of no instruction.
    """
    augment = OpenVLAAugment(recipe.seed) if recipe.augment else None
    texts = [text for dataset in mixture.datasets for text in dataset.table.texts]
    encoder = Encoder.of(policy, recipe.cameras, augment, _wordings(recipe, texts), seed=recipe.seed)
    stream = MixtureStream(mixture, encoder, ranks.share(recipe.robot_rows), ranks.rank, ranks.count)
    measured: MixtureStream | None = None
    if recipe.held_out:
        val = _validation(recipe, on_progress, policy.model.config.chunk)
        measured = MixtureStream(val, replace(encoder, augment=None, wordings=None), HELD_OUT_ROWS)

    def held_out() -> Iterator[Batch]:
        if measured is not None:
            yield from (measured.batch(number) for number in range(HELD_OUT_BATCHES))

    facts = json.dumps(mixture.statistics, sort_keys=True, default=str).encode()
    notes = tuple(f"{dataset.name}: {note}" for dataset in mixture.datasets for note in dataset.notes)
    return TrainingData(stream, held_out, facts, recipe.workers, notes)


def open_recipe_mixture(
    recipe: MixtureFinetuneRecipe,
    split: Literal["train", "val"] = "train",
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    chunk: int = 1,
) -> Mixture:
    """Open the mixture that a recipe names; each sample holds the `chunk` actions of one answer.

    Raises:
        DataError: the mixture cannot be read.
        RecipeError: no mixture has that name.
    """
    choices = Choices(split=split, window=Window(future=chunk - 1), cameras=recipe.cameras, seed=recipe.seed)
    return open_mixture(recipe.mixture, recipe.root, choices, on_progress=on_progress)


def _wordings(recipe: FinetuneRecipe, texts: Collection[str]) -> Wordings | None:
    """Return what says the data's instructions in other words. Raises DataError as `require_known`."""
    require_known(recipe.wordings, texts)
    return Wordings(recipe.wordings, recipe.seed) if recipe.wordings else None


def _validation(recipe: MixtureFinetuneRecipe, on_progress: Callable[[str, int, int], None], chunk: int) -> Mixture:
    try:
        return open_recipe_mixture(recipe, "val", on_progress, chunk)
    except DataError as error:
        raise DataError(f"{error} No held-out data is left; set held_out = 0 to train without.") from error
