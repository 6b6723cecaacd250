"""Fine-tuning: next-token training with the loss on the action tokens.

OUT/recipe.toml      the recipe of the run
OUT/start/           the policy before training
OUT/resume/          the checkpoint that an interrupted run resumes from
OUT/metrics.jsonl    one line per measurement
OUT/spent.jsonl      seconds of training, a line for each checkpoint
OUT/tensorboard/     the same for TensorBoard, if the recipe asks for it
OUT/rollout/         the policy that was last evaluated in closed loop, if the recipe asks for it
OUT/final/           the trained policy, a folder for `vla run --policy`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.claim import Claim
from vla_robot.core.host.durable import write_whole
from vla_robot.policy.device import choose_attention, multiplies_bfloat16
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.family import Family
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.recipe import dump
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.recipe.policy import OpenVLAOFTRecipe
from vla_robot.train.checkpoint import replacing, writing
from vla_robot.train.lora import adapt, freeze_in_bf16, is_plain, merged
from vla_robot.train.metrics import require_trackers
from vla_robot.train.parallel.activation_checkpointing import checkpoint_activations
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.fsdp import shard
from vla_robot.train.parallel.memory_plan import MemoryPlan, plan_memory, require_room
from vla_robot.train.parallel.plan_ahead import plan_ahead
from vla_robot.train.prepare import Prepared, fingerprint_of, prepare
from vla_robot.train.sparse_last_layer import only_what_is_read
from vla_robot.train.spent import write_trainings
from vla_robot.train.trainer import OnProgress, Progress, Trainer

__all__ = ["OnProgress", "Progress", "RollOut", "Trained", "finetune", "open_run"]

RECIPE_COPY = "recipe.toml"
SIDE_FILES = ("tokenizer.json", "preprocessor_config.json", "codec.json", "dataset_statistics.json", "embodiment.json")
DRIVES = """\
# Written by `vla finetune`: of all statistics that this folder has, those of the data that it learned from.
kind = "{kind}"
checkpoint = "."
statistics_key = {key}
"""

NO_BFLOAT16 = (
    "bf16: torch has no products of bfloat16 for this CPU, so they would take several times as long; "
    "this run computes in float32."
)

RollOut = Callable[[Path, str], float | None]
"""(policy folder, statistics key that un-normalises its actions) -> success rate in closed loop, or None if the
episodes were ended early."""


@dataclass(frozen=True)
class Trained:
    """Result of a run.

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
    """Train, or resume an interrupted run of the same recipe. Under a launcher this process is one of several ranks.

    Args:
        recipe: how to train.
        out: folder of the run.
        on_progress: called after each step.
        should_stop: called after each step; if it returns True, the run is saved and can be resumed.
        on_plan: called before the first step with the memory plan, and with notes about the data.
        roll_out: runs the episodes of the recipe's [rollouts]; this package knows no world.

    Raises:
        ContractError: the demonstrations were recorded with another embodiment than the policy's.
        DataError: the data or the questions cannot be read, or do not fit the policy; another process trains in `out`;
            or writing failed, and the message names the last good checkpoint.
        RecipeError: the ranks cannot share a step equally, or [rollouts] is set without `roll_out`; or the device has
            less memory than weights, gradients and moments need.
        MissingDependencyError: a tracker that the recipe asks for is not installed.
        CheckpointError: `out` holds a run of another recipe, the start policy is damaged, or the loss or a
            gradient is not finite.
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
    """Prepare a run and resume it if it has a checkpoint. Raises as `finetune`."""
    prepared = prepare(recipe, out, ranks, on_progress)
    for note in prepared.data.notes if ranks.first else ():
        on_plan(note)
    device = ranks.device(recipe.device)
    given = recipe  # a run may go on at another computer
    if recipe.bf16 and not multiplies_bfloat16(device):
        recipe = replace(recipe, bf16=False)
        if ranks.first:
            on_plan(NO_BFLOAT16)
    choose_attention(device)
    model = adapt(prepared.model, recipe)
    if recipe.shard and ranks.count > 1:
        model = _shared(model, recipe, ranks, device, on_plan, prepared.start)
    else:
        model = _on_device(model, recipe, ranks, device, on_plan)
    trainer = Trainer(recipe, out, model, prepared.data, ranks, prepared.questions)
    with ranks.one_first():
        trainer.resume(fingerprint_of(given, prepared))
    return trainer, prepared


def _keep_recipe(recipe: FinetuneRecipe, out: Path) -> None:
    path = out / RECIPE_COPY
    with writing(str(path), out):
        write_whole(path, dump(recipe).encode())


def _unheard(_: Progress) -> None:
    """Ignore the progress of a rank other than the first, which reports for all."""


def _on_device(
    model: AnyVLAModel,
    recipe: FinetuneRecipe,
    ranks: Ranks,
    device: torch.device,
    on_plan: Callable[[MemoryPlan | str], None],
) -> AnyVLAModel:
    """Put the model on the device. The first rank reports the memory plan.

    Raises:
        RecipeError: what is known before the model moves already needs more than the device has.
    """
    if recipe.bf16:
        freeze_in_bf16(model)
    require_room(model, device)
    model = model.to(device)
    only_what_is_read(model)
    if ranks.first:
        on_plan(plan_memory(model, recipe, device))
    if recipe.activation_checkpointing:
        checkpoint_activations(model)
    return model


def _shared(
    model: AnyVLAModel,
    recipe: FinetuneRecipe,
    ranks: Ranks,
    device: torch.device,
    on_plan: Callable[[MemoryPlan | str], None],
    start: Path,
) -> AnyVLAModel:
    """Read this rank's part of the model to the device. The first rank reports the memory plan.

    Raises:
        CheckpointError: the start policy is damaged.
    """
    family = family_of(start)
    if ranks.first:
        on_plan(plan_ahead(family.on_meta(start), recipe, device, ranks.count))
    only_what_is_read(model)
    if recipe.activation_checkpointing:
        checkpoint_activations(model)
    shard(model, device, ranks.count, family.rows(start))
    return model


def _closed_loop(
    roll_out: RollOut | None, prepared: Prepared, folder: Path, ranks: Ranks
) -> Callable[[Trainer], float | None]:
    """Return a function that saves the averaged weights and evaluates them; training's random state is unchanged."""
    if roll_out is None:
        raise RecipeError("the recipe asks for [rollouts], which only `vla finetune` can run; delete the table.")

    def measure(trainer: Trainer) -> float | None:
        save_policy(trainer, prepared, folder, ranks)
        if not ranks.first:
            return None
        device = next(trainer.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return roll_out(folder, prepared.key)

    return measure


def save_policy(trainer: Trainer, prepared: Prepared, folder: Path, ranks: Ranks) -> None:
    """Write the averaged weights as a policy folder, with the files that belong to them. Every rank must call this.

    The folder replaces one that was there at once, and is on the disk when this returns.

    Raises:
        DataError: writing failed.
        CheckpointError: the start policy is damaged.
    """
    start, family = prepared.start, family_of(prepared.start)
    with trainer.averaged():
        tensors = None if is_plain(trainer.model) else merged(trainer.model, family.rows(start), keep=ranks.first)
        if not ranks.first:
            list(tensors or ())  # takes part in the gathering, and gets nothing
            return
        with replacing(folder, trainer.out) as partial:
            if tensors is None:
                family.save_model(trainer.model, partial, start)
            else:
                family.save_in_turn(start, partial, tensors)
            for name in SIDE_FILES:
                if (start / name).is_file():
                    shutil.copyfile(start / name, partial / name)
            write_trainings(partial, start, trainer.recipe, trainer.step, ranks.count, trainer.spent.total())
            if prepared.drives_by:
                (partial / "recipe.toml").write_text(_drives(family, partial, prepared.drives_by), encoding="utf-8")


def _drives(family: Family, folder: Path, key: str) -> str:
    """Return the recipe of a trained policy's folder as text."""
    recipe = family.recipe_of(folder, key)
    settings = dump(recipe.oft) if isinstance(recipe, OpenVLAOFTRecipe) else ""
    return DRIVES.format(kind=recipe.kind, key=json.dumps(key)) + (f"\n[oft]\n{settings}" if settings else "")
