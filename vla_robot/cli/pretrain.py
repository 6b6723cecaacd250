"""`vla pretrain`: trains a vision tower to tell which caption belongs to which picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, option, short_path
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import Bar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.host.provenance import row
from vla_robot.recipe import find, read
from vla_robot.recipe.trainings.pretrain import PretrainRecipe


@dataclass(frozen=True)
class PretrainArgs:
    """Train a vision tower on pictures and their captions (docs/words.md). The same command continues a run.

    vla data questions --about captions --scenes 2000 --held-out 200 --out data/captions
    vla pretrain launch/tower.toml --out data/tower
    then `tower = "../data/tower/final"` in [architecture] of a recipe for `vla finetune`
    """

    recipe: Annotated[str, tyro.conf.Positional, option("RECIPE")]
    """a launch file with verb = "pretrain", by name or path"""
    out: Annotated[Path, option("FOLDER")]
    """the run's folder: checkpoints, metrics.jsonl and the tower in FOLDER/final"""
    folder: Annotated[Path | None, option("FOLDER")] = None
    """captions instead of the recipe's"""
    steps: Annotated[int | None, option("N")] = None
    """optimiser steps instead of the recipe's"""
    batch_size: Annotated[int | None, option("N")] = None
    """scenes of a step instead of the recipe's"""
    loss: Annotated[str | None, option("sigmoid|softmax")] = None
    """loss instead of the recipe's"""
    seed: Annotated[int | None, option("SEED")] = None
    """seed instead of the recipe's"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where to train, instead of the recipe's device: auto, cpu, cuda, cuda:1 or mps"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def main(args: PretrainArgs) -> int:
    """Train; status 0 if all steps were done.

    Raises:
        VlaError: the recipe or the captions cannot be used. Checkpoints are kept.
    """
    from vla_robot.train.contrastive.pretrain import pretrain

    path = find("launch", args.recipe)
    names = ("folder", "steps", "batch_size", "loss", "seed", "device")
    chosen: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    recipe = dataclasses.replace(read(PretrainRecipe, path), **chosen)
    say(f"vla pretrain: {short_path(path)} → {args.out}")
    with Bar("steps", Terminal()) as bar, stop_on_interrupt() as stop:
        trained = pretrain(recipe, args.out, lambda now: bar.update(now.done, now.total), stop.is_set)
    values = {"steps": float(trained.steps), **trained.metrics}
    say("  " + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items()))
    if args.json is not None:
        write_json(args.json, "pretrain", rows=[row(name, value, "1") for name, value in values.items()])
    if trained.steps < recipe.steps:
        say(f"Stopped after {trained.steps} of {recipe.steps} steps. Next: the same command continues.")
        return EXIT_INTERRUPTED
    say(f'The tower is in {trained.policy}. Next: tower = "{trained.policy}" in [architecture] of a launch file.')
    return 0
