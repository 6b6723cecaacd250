"""Contrastive pre-training of a vision tower.

OUT/recipe.toml      the recipe of the run
OUT/start/           a new model of the recipe's family, whose tower is trained
OUT/resume/          the checkpoint that an interrupted run resumes from
OUT/metrics.jsonl    one line per measurement: loss, and `found`, the share of captions that find their picture
OUT/final/           the tower: `[architecture] tower` of a recipe for `vla finetune`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import write_whole
from vla_robot.core.messages import Image
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.families import family_named, family_of
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe
from vla_robot.recipe.trainings.pretrain import PretrainRecipe
from vla_robot.train.batches.data import TrainingData
from vla_robot.train.checkpoint import replacing, writing
from vla_robot.train.contrastive.captions import CaptionData, read_captions
from vla_robot.train.contrastive.model import ContrastiveModel, vision_parameters
from vla_robot.train.contrastive.tower import write_tower
from vla_robot.train.finetune import RECIPE_COPY, Trained
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.trainer import OnProgress, Trainer

METRICS = {"loss": "loss", "token_accuracy": "found"}
"""Field of the model's output -> name of the metric."""
PICTURES = "pictures"
"""Name of the arm of a model that only sees."""


def pretrain(
    recipe: PretrainRecipe, out: Path, on_progress: OnProgress, should_stop: Callable[[], bool] = lambda: False
) -> Trained:
    """Train, or resume an interrupted run of the same recipe.

    Args:
        recipe: how to train.
        out: folder of the run.
        on_progress: called after each step.
        should_stop: called after each step; if it returns True, the run is saved and can be resumed.

    Raises:
        DataError: the folder of captions is damaged or has none; another process trains in `out`; or writing failed.
        RecipeError: the batch is larger than the number of captions, the family has no tower, or several processes
            were started, whose captions would have to be compared with each other.
        CheckpointError: `out` holds a run of another recipe, or the loss is not finite.
    """
    ranks = Ranks.here()
    if ranks.count > 1:
        raise RecipeError("a contrastive pre-training compares all captions of a step in one process; start one.")
    device = ranks.device(recipe.device)
    with Claim(out):
        start = _start_at(recipe, out)
        policy = family_of(start).load(start, Loading(trainable=True))
        data = CaptionData(recipe, policy)
        torch.manual_seed(recipe.seed)
        vocabulary = policy.model.config.inputs.vocabulary
        model = ContrastiveModel(policy.model, recipe.text, vocabulary, data.length, recipe.loss).to(device)
        # The trainer calls it as it calls a policy's model, and reads its batches as those of demonstrations.
        trainer = Trainer(
            _schedule(recipe), out, cast(AnyVLAModel, model), cast(TrainingData, data), ranks, names=METRICS
        )
        facts = json.dumps({**asdict(recipe), "description": "", "device": ""}, default=str, sort_keys=True).encode()
        trainer.resume(hashlib.sha256(facts + data.fingerprint()).hexdigest()[:16])
        with writing(str(out / RECIPE_COPY), out):
            write_whole(out / RECIPE_COPY, dump(recipe).encode())
        with closing(trainer):
            metrics = trainer.train(on_progress, should_stop)
        if trainer.step == recipe.steps:
            with replacing(out / "final", out) as partial:
                write_tower(partial, recipe.architecture, vision_parameters(model.policy))
    return Trained(out / "final", trainer.step, metrics)


def _schedule(recipe: PretrainRecipe) -> FinetuneRecipe:
    """Return the trainer's settings."""
    return DemosFinetuneRecipe(
        steps=recipe.steps, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps, weight_decay=recipe.weight_decay, evaluate_every=recipe.evaluate_every,
        checkpoint_every=recipe.checkpoint_every, bin_smoothing=0.0, ema=0.0, seed=recipe.seed,
    )  # fmt: skip


def _start_at(recipe: PretrainRecipe, out: Path) -> Path:
    """Return `OUT/start`, and write a new model there if it is missing."""
    start = out / "start"
    if (start / "config.json").is_file():
        return start
    train, held_out = read_captions(recipe.folder)
    texts = [q.answer for q in (*train, *held_out)]
    ends = np.array([[-1.0], [1.0]])
    still = dataset_statistics(PICTURES, ends, ends, num_episodes=1)
    with replacing(start, out) as partial:
        family_named(recipe.architecture.family).create(
            partial, recipe.architecture, _only_cameras(train[0].frames()), still, texts, recipe.seed
        )
    return start


def _only_cameras(frames: Mapping[str, Image]) -> Embodiment:
    """Return an embodiment of these cameras and no arm, since a family's new model names its cameras."""
    nothing = (Dim("nothing", "1", -1.0, 1.0),)
    cameras = tuple(CameraSpec(name, frame.shape[0], frame.shape[1]) for name, frame in frames.items())
    return Embodiment(PICTURES, ActionSpace("eef_delta", "base", nothing), nothing, cameras, 1.0)
