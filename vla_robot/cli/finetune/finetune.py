"""`vla finetune`: trains a policy on demonstrations, from scratch or from another policy, and resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import TaskID

from vla_robot.cli.common.cli_common import EXIT_INTERRUPTED, option, short_path
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.progress import ProgressBar
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.cli.finetune.training_rollouts import Rollouts
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.provenance import row
from vla_robot.recipe import find, read
from vla_robot.recipe.finetune import (
    DemosFinetuneRecipe,
    FinetuneRecipe,
    MixtureFinetuneRecipe,
    with_data,
    with_mixture,
)
from vla_robot.recipe.reading.url import location
from vla_robot.train.finetune import Progress as Standing
from vla_robot.train.finetune import Trained, finetune
from vla_robot.train.parallel.ddp import Ranks

PLAIN_LINE_EVERY = 100
"""Steps between progress lines without a terminal."""


@dataclass(frozen=True)
class FinetuneArgs:
    """Train a policy on demonstrations. The same command continues an interrupted one.

    Of several recipes, each is a stage that starts from the policy of the one before, in a folder of its own, such as
    FOLDER/1_NAME: `vla finetune launch/stages/paligemma_1.toml launch/stages/paligemma_2.toml --out data/stages`.
    """

    out: Annotated[Path, option("FOLDER")]
    """the run's folder: checkpoints, metrics.jsonl and the trained policy in FOLDER/final"""
    recipes: Annotated[tuple[str, ...], tyro.conf.Positional, option("[RECIPE ...]")] = ()
    """launch files with verb = "finetune", by name or path; without one, give --policy and --data or --mixture"""
    data: Annotated[tuple[str, ...], option("FOLDER[:WEIGHT] ...")] = ()
    """datasets instead of the recipe's, apart by spaces or commas; of a dataset of weight 2 a frame is drawn twice as
    often as of one of 1, which is the weight of those that say none"""
    mixture: Annotated[str | None, option("NAME")] = None
    """instead of --data, a mixture or one dataset of datasets/, by name or path, read while training"""
    root: Annotated[str | None, option("FOLDER|URL")] = None
    """folder or URL (gs://, s3://, http://) that holds the mixture's datasets"""
    policy: Annotated[Path | None, option("POLICY")] = None
    """start from this checkpoint folder instead of the recipe's"""
    lora_rank: Annotated[int | None, option("RANK")] = None
    """train LoRA matrices of this rank beside the frozen weights; OpenVLA uses 32, 0 trains all weights"""
    steps: Annotated[int | None, option("N")] = None
    """optimiser steps instead of the recipe's"""
    seed: Annotated[int | None, option("SEED")] = None
    """seed instead of the recipe's"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where to train, instead of the recipe's device:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    tensorboard: bool = False
    """also write the metrics for TensorBoard, to FOLDER/tensorboard"""
    wandb: Annotated[str | None, option("PROJECT")] = None
    """also send the metrics to this project of Weights & Biases; needs `pip install wandb`"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""


def main(args: FinetuneArgs) -> int:
    """Train; status 0 if all steps were done.

    Raises:
        VlaError: the recipe, the data or the start policy cannot be used. Checkpoints are kept.
    """
    if len(args.recipes) <= 1:
        path = find("launch", args.recipes[0]) if args.recipes else None
        return _stage(_overridden(read(FinetuneRecipe, path) if path else DemosFinetuneRecipe(), args), path, args)
    for number, path in enumerate(paths := [find("launch", name) for name in args.recipes], 1):
        here = replace(args, out=_folder_of(args.out, number, path))
        if number > 1:
            here = replace(here, policy=_folder_of(args.out, number - 1, paths[number - 2]) / "final")
        if status := _stage(_overridden(read(FinetuneRecipe, path), here), path, here):
            return status
    return 0


def _folder_of(out: Path, number: int, recipe: Path) -> Path:
    """Return the folder of a stage, counted from 1."""
    return out / f"{number}_{recipe.stem}"


def _stage(recipe: FinetuneRecipe, path: Path | None, args: FinetuneArgs) -> int:
    """Train one recipe; see `main`."""
    source = short_path(path) if path else "the command line"
    if isinstance(recipe, DemosFinetuneRecipe) and not recipe.data:
        raise RecipeError(
            f"{source} names no data. Record some with `vla record` and give --data FOLDER; or --mixture NAME and "
            "--root FOLDER for Open-X-Embodiment's."
        )
    ranks = Ranks.here()
    console = Terminal(quiet=not ranks.first)
    console.print(f"vla finetune: {source} → {args.out}", soft_wrap=True)
    with _Bar(console) as bar, stop_on_interrupt() as stop:
        trained = finetune(
            recipe,
            args.out,
            bar.show,
            should_stop=stop.is_set,
            on_plan=lambda plan: console.print(f"  {plan}", soft_wrap=True),
            roll_out=Rollouts(recipe.rollouts, stop.is_set, recipe.device) if recipe.rollouts else None,
        )
    if ranks.first:
        say(_closing(trained, recipe, args.out))
    if args.json and ranks.first:
        write_json(args.json, "finetune", rows=_rows(trained))
    return 0 if trained.steps == recipe.steps else EXIT_INTERRUPTED


def _overridden(recipe: FinetuneRecipe, args: FinetuneArgs) -> FinetuneRecipe:
    """Return the recipe with the options in place of its own values."""
    names = ("lora_rank", "steps", "seed", "device", "wandb")
    chosen: dict[str, Any] = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.tensorboard:
        chosen["tensorboard"] = True
    if args.policy:
        chosen["policy"] = find("policies", args.policy)
    if args.data and args.mixture:
        raise RecipeError("--data and --mixture exclude each other; give one of them.")
    if args.data:
        return with_data(recipe, **_datasets(args.data), **chosen)
    if args.mixture or isinstance(recipe, MixtureFinetuneRecipe):
        of_mixture: dict[str, Any] = {} if args.mixture is None else {"mixture": args.mixture}
        of_mixture |= {} if args.root is None else {"root": location(args.root)}
        return with_mixture(recipe, **of_mixture, **chosen)
    return replace(recipe, **chosen)


def _datasets(texts: Sequence[str]) -> dict[str, Any]:
    """Return data and weights of a recipe for `A,B:2`; no weights if none is given."""
    pairs = [_dataset(part) for text in texts for part in ([text] if Path(text).exists() else text.split(","))]
    said = any(weight is not None for _, weight in pairs)
    return {
        "data": tuple(folder for folder, _ in pairs),
        "weights": tuple(1.0 if weight is None else weight for _, weight in pairs) if said else (),
    }


def _dataset(text: str) -> tuple[Path, float | None]:
    """Return a folder and the weight after its last colon; a colon inside an existing name is part of the name."""
    folder, colon, weight = text.rpartition(":")
    try:
        return (Path(folder), float(weight)) if colon and not Path(text).exists() else (Path(text), None)
    except ValueError:
        raise RecipeError(f"--data {text}: '{weight}' is no weight; write --data {folder or 'FOLDER'}:2.") from None


class _Bar(ProgressBar):
    """A progress bar with the newest metrics and the time left; in a pipe, plain lines."""

    def __init__(self, console: Terminal) -> None:
        super().__init__(console)
        self._tasks: dict[str, TaskID] = {}

    def show(self, now: Standing) -> None:
        """Draw the run's progress."""
        text = _facts(now)
        if now.phase not in self._tasks:
            self._tasks[now.phase] = self._progress.add_task(text, total=now.total)
        self._progress.update(self._tasks[now.phase], description=text, completed=now.done, total=now.total)
        plain = not self._console.is_terminal and now.phase == "steps"
        if plain and (now.done % PLAIN_LINE_EVERY == 0 or now.done == now.total):
            self._console.print(f"  {now.done}/{now.total}  {text}", soft_wrap=True)


def _facts(now: Standing) -> str:
    if now.phase != "steps":
        return "reading frames" if now.phase == "frames" else now.phase
    m = now.metrics
    text = f"loss {_scores(m, '')}"
    if "held_out_loss" in m:
        text += f" | held out {_scores(m, 'held_out_')}"
    if "question_loss" in m:
        text += f" | questions {m['question_loss']:.3f}"
    if "question_accuracy" in m:
        text += f" | answers {m['question_accuracy']:.1%}"
    if "rollout_success" in m:
        text += f" | closed loop {m['rollout_success']:.0%}"
    return text


def _scores(metrics: Mapping[str, float], which: str) -> str:
    """Return the loss, and token accuracy and L1 where there are: a head says no tokens, and some tokens no numbers."""
    text = f"{metrics[f'{which}loss']:.3f}"
    text += f", tokens {metrics[f'{which}token_accuracy']:.1%}" if f"{which}token_accuracy" in metrics else ""
    return f"{text}, L1 {metrics[f'{which}l1']:.3f}" if f"{which}l1" in metrics else text


def _rows(trained: Trained) -> list[dict[str, object]]:
    values = {"steps": float(trained.steps), **trained.metrics}
    return [row(name, value, "1") for name, value in values.items()]


def _closing(trained: Trained, recipe: FinetuneRecipe, out: Path) -> str:
    if trained.steps < recipe.steps:
        return f"\nStopped after {trained.steps} of {recipe.steps} steps. Next: the same command continues."
    return (
        f"\nThe policy is in {trained.policy}.\n"
        f"Next: `vla run --env ENV --policy {short_path(trained.policy.resolve())} --episodes 50 --seed 10000`."
    )
