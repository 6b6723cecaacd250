"""The training loop: ordinary next-token training with the loss on the action tokens.

OUT/recipe.toml      what was asked for
OUT/start/           the policy before training
OUT/resume/          where an interrupted run goes on
OUT/metrics.jsonl    one line per measurement
OUT/tensorboard/     the same for TensorBoard, where the recipe asks for that
OUT/rollout/         the policy that was last measured in closed loop, where the recipe asks for that
OUT/final/           the trained policy, a folder that `vla run --policy` takes
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import write_whole
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.weights import save_model
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.checkpoint import learning, replacing, writing
from vla_robot.train.lora import adapt, merged
from vla_robot.train.metrics import require_trackers
from vla_robot.train.parallel.activation_checkpointing import checkpoint_activations
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.fsdp import collected, shard
from vla_robot.train.parallel.memory_plan import MemoryPlan, plan_memory
from vla_robot.train.prepare import Prepared, fingerprint_of, prepare
from vla_robot.train.sparse_last_layer import only_what_is_read
from vla_robot.train.trainer import OnProgress, Progress, Trainer

__all__ = ["OnProgress", "Progress", "RollOut", "Trained", "finetune", "open_run"]

RECIPE_COPY = "recipe.toml"
SIDE_FILES = ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json", "embodiment.json")
DRIVES = """\
# Written by `vla finetune`: of all statistics that this folder has, those of the data that it learned from.
kind = "openvla"
checkpoint = "."
statistics_key = {}
"""

RollOut = Callable[[Path, str], float | None]
"""A policy's folder, and the statistics that un-normalise its actions -> its success rate in closed loop; None where
the episodes were ended early."""


@dataclass(frozen=True)
class Trained:
    """What a run made.

    Attributes:
        policy: folder of the trained policy.
        steps: optimiser steps done; fewer than asked for after an interruption.
        metrics: the last measurement.
    """

    policy: Path
    steps: int
    metrics: dict[str, float]


def finetune(
    recipe: FinetuneRecipe,
    out: Path,
    on_progress: OnProgress,
    should_stop: Callable[[], bool] = lambda: False,
    on_plan: Callable[[MemoryPlan | str], None] = lambda plan: None,
    roll_out: RollOut | None = None,
) -> Trained:
    """Train, or go on where the same command was interrupted. One of several ranks, where a launcher says so.

    Args:
        recipe: how.
        out: folder of this run.
        on_progress: called after each step.
        should_stop: asked after each step; the run is then saved and can be resumed.
        on_plan: told before the first step what memory the run needs, and what is to be known of its data.
        roll_out: drives the episodes that the recipe's [rollouts] ask for; this room knows no world.

    Raises:
        DataError: the demonstrations or the questions cannot be read, or do not fit the policy; another process trains
            in `out`; or the disk refuses, and the last good checkpoint is named.
        CheckpointError: `out` holds a run of another recipe, the start policy is damaged, or the loss is not finite.
    """
    ranks = Ranks.here()
    device = ranks.device(recipe.device)
    require_trackers(recipe)
    heard = on_progress if ranks.first else _unheard
    with Claim(out) if ranks.first else nullcontext(), ranks.joined(device):
        trainer, prepared = open_run(recipe, out, ranks, heard, on_plan)
        if ranks.first:
            _keep_recipe(recipe, out)
        if recipe.rollouts:
            trainer.set_rollouts(recipe.rollouts.every, _closed_loop(roll_out, prepared, out / "rollout", ranks))
        with closing(trainer):
            metrics = trainer.train(heard, should_stop)
        if trainer.step == recipe.steps:
            save_policy(trainer, prepared, out / "final", ranks)
    return Trained(out / "final", trainer.step, metrics)


def open_run(
    recipe: FinetuneRecipe,
    out: Path,
    ranks: Ranks,
    on_progress: OnProgress = lambda progress: None,
    on_plan: Callable[[MemoryPlan | str], None] = lambda plan: None,
) -> tuple[Trainer, Prepared]:
    """A run where it begins or goes on, and what it began with. Raises as `finetune`."""
    with ranks.one_first():
        prepared = prepare(recipe, out, ranks, on_progress)
    for note in prepared.notes if ranks.first else ():
        on_plan(note)
    device = ranks.device(recipe.device)
    model = _on_device(adapt(prepared.policy.model, recipe), recipe, ranks, device, on_plan)
    trainer = Trainer(recipe, out, model, prepared.data, ranks, prepared.questions)
    with ranks.one_first():
        trainer.resume(fingerprint_of(recipe, prepared))
    return trainer, prepared


def _keep_recipe(recipe: FinetuneRecipe, out: Path) -> None:
    path = out / RECIPE_COPY
    with writing(str(path), out):
        write_whole(path, dump(recipe).encode())


def _unheard(_: Progress) -> None:
    """The first rank speaks for all."""


def _on_device(
    model: OpenVLA,
    recipe: FinetuneRecipe,
    ranks: Ranks,
    device: torch.device,
    on_plan: Callable[[MemoryPlan | str], None],
) -> OpenVLA:
    """The model where it learns: whole, or this rank's part of it. The first rank tells what that will need."""
    is_shared = recipe.shard and ranks.count > 1
    if not is_shared:
        model = model.to(device)
    only_what_is_read(model)
    if ranks.first:
        on_plan(plan_memory(model, recipe, device, ranks.count if is_shared else 1))
    if recipe.activation_checkpointing:
        checkpoint_activations(model)
    if is_shared:
        shard(model, device, ranks.count)
    return model


def _closed_loop(
    roll_out: RollOut | None, prepared: Prepared, folder: Path, ranks: Ranks
) -> Callable[[Trainer], float | None]:
    """Writes a run's averaged weights to a folder and lets them drive; no chance of the training is drawn meanwhile."""
    if roll_out is None:
        raise RecipeError("the recipe asks for [rollouts], which only `vla finetune` can drive; leave the table out.")

    def measure(trainer: Trainer) -> float | None:
        save_policy(trainer, prepared, folder, ranks)
        if not ranks.first:
            return None
        with torch.random.fork_rng():
            return roll_out(folder, prepared.key)

    return measure


def save_policy(trainer: Trainer, prepared: Prepared, folder: Path, ranks: Ranks) -> None:
    """Write the averaged weights as a policy folder, with the files that belong to them. Every rank must ask.

    The folder appears whole, in place of one that was there, and is on the disk when this returns.

    Raises:
        DataError: the disk refuses.
        CheckpointError: the start policy is damaged.
    """
    start = prepared.start
    with trainer.averaged():
        learned = collected(learning(trainer.model).items(), keep=ranks.first)
        if not ranks.first:
            return
        plain = merged(trainer.model, start, learned)
        with replacing(folder, trainer.out) as partial:
            save_model(plain, partial, carry_from=start)
            for name in SIDE_FILES:
                if (start / name).is_file():
                    shutil.copyfile(start / name, partial / name)
            if prepared.drives_by:
                (partial / "recipe.toml").write_text(DRIVES.format(json.dumps(prepared.drives_by)), encoding="utf-8")
