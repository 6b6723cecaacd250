"""The training loop: ordinary next-token training with the loss on the action tokens.

OUT/recipe.toml      what was asked for
OUT/start/           the policy before training
OUT/resume/          where an interrupted run goes on
OUT/metrics.jsonl    one line per measurement
OUT/final/           the trained policy, a folder that `vla run --policy` takes
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_robot.core.embodiment import require_fit
from vla_robot.core.errors import CheckpointError, DataError, RecipeError
from vla_robot.learn import checkpoint
from vla_robot.learn.checkpoint import Average
from vla_robot.learn.frames import FrameBank, Split, rows_of_step, shift_generator
from vla_robot.policy.openvla.create import create
from vla_robot.policy.openvla.model import OpenVLA, TrainingOutput
from vla_robot.policy.openvla.policy import load
from vla_robot.policy.openvla.weights import save_model, write_json
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.record.demos import Demos, open_demos
from vla_robot.record.stats import dataset_statistics

SIDE_FILES = ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json", "embodiment.json")
METRICS_EVERY = 50
"""Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: "frames" while demonstrations are decoded, "steps" while the model learns.
        done: frames or steps so far.
        total: frames or steps in all.
        metrics: newest numbers: loss, token_accuracy, l1, held_out_loss, ...
    """

    phase: str
    done: int
    total: int
    metrics: dict[str, float]


OnProgress = Callable[[Progress], None]


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
    recipe: FinetuneRecipe, out: Path, on_progress: OnProgress, should_stop: Callable[[], bool] = lambda: False
) -> Trained:
    """Train, or go on where the same command was interrupted.

    Args:
        recipe: how.
        out: folder of this run.
        on_progress: called after each step.
        should_stop: asked after each step; the run is then saved and can be resumed.

    Raises:
        DataError: the demonstrations cannot be read, or do not fit the policy.
        CheckpointError: `out` holds a run of another recipe, the start policy is damaged, or the loss is not finite.
    """
    demos = open_demos(recipe.data)
    key = recipe.dataset_name
    start = _start_policy(recipe, demos, out)
    policy = load(start, statistics_key=key)
    bank = FrameBank.load(demos, policy, key, lambda done, all_: on_progress(Progress("frames", done, all_, {})))
    run = Run(recipe, out, policy.model, bank, Split.make(demos, recipe.held_out, recipe.seed))
    run.resume(_fingerprint(recipe, demos))
    metrics = run.train(on_progress, should_stop)
    if run.step == recipe.steps:
        save_policy(run, start, out / "final")
    return Trained(out / "final", run.step, metrics)


class Run:
    """One training run in memory."""

    def __init__(self, recipe: FinetuneRecipe, out: Path, model: OpenVLA, bank: FrameBank, split: Split) -> None:
        if len(split.train) == 0:
            raise DataError("no frame is left to train on; record more episodes.")
        self.recipe = recipe
        self.out = out
        self.model = model.requires_grad_(True).train()
        self.average = Average(model, recipe.ema)
        self.step = 0
        self._bank = bank
        self._split = split
        self._optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
        self._fingerprint = ""

    def resume(self, fingerprint: str) -> None:
        """Go on from `OUT/resume` when it is there."""
        self._fingerprint = fingerprint
        if checkpoint.exists(self.out):
            self.step = checkpoint.load(self.out, self.model, self.average, self._optimizer, fingerprint)

    def train(self, on_progress: OnProgress, should_stop: Callable[[], bool]) -> dict[str, float]:
        """All steps that are left; the last metrics."""
        metrics: dict[str, float] = {}
        while self.step < self.recipe.steps:
            output, norm = self._learn()
            self.step += 1
            metrics |= {"learning_rate": self._rate(), "gradient_norm": norm, **_numbers(output)}
            if self._due(self.recipe.evaluate_every):
                metrics |= self.held_out()
            if self._due(METRICS_EVERY):
                self._log(metrics)
            stop = should_stop()
            if stop or self._due(self.recipe.checkpoint_every):
                checkpoint.save(self.out, self.model, self.average, self._optimizer, self.step, self._fingerprint)
            on_progress(Progress("steps", self.step, self.recipe.steps, metrics))
            if stop:
                break
        return metrics

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss, token accuracy and L1 of the averaged weights on episodes that never train."""
        if len(self._split.held_out) == 0:
            return {}
        outputs: list[dict[str, float]] = []
        sizes: list[int] = []
        with self.averaged():
            for rows in np.array_split(self._split.held_out, math.ceil(len(self._split.held_out) / 64)):
                outputs.append(_numbers(self._forward(rows, shift_px=0)))
                sizes.append(len(rows))
        return {f"held_out_{n}": float(np.average([o[n] for o in outputs], weights=sizes)) for n in outputs[0]}

    def averaged(self) -> _Swapped:
        """A `with` block in which the model holds the averaged weights."""
        return _Swapped(self.model, self.average if self.recipe.ema > 0 else None)

    def _learn(self) -> tuple[TrainingOutput, float]:
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        rows = rows_of_step(self._split.train, self.step, self.recipe.batch_size, self.recipe.seed)
        output = self._forward(rows, self.recipe.shift_px)
        if not torch.isfinite(output.loss):
            raise CheckpointError(
                f"the loss is {output.loss.item()} at step {self.step}. Lower learning_rate; the last good checkpoint "
                f"is {self.out / checkpoint.FOLDER}."
            )
        output.loss.backward()
        limit = self.recipe.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, self.step)
        return output, float(norm)

    def _forward(self, rows: np.ndarray, shift_px: int) -> TrainingOutput:
        batch = self._bank.batch(rows, shift_px, shift_generator(self.recipe.seed, self.step))
        return self.model(batch.pixels, batch.input_ids, batch.labels, batch.state, self.recipe.bin_smoothing)

    def _rate(self) -> float:
        """Linear warm-up, then a cosine down to `final_rate` of the peak."""
        r = self.recipe
        if self.step < r.warmup_steps:
            return r.learning_rate * (self.step + 1) / r.warmup_steps
        progress = (self.step - r.warmup_steps) / max(1, r.steps - r.warmup_steps)
        return r.learning_rate * (r.final_rate + (1 - r.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps

    def _log(self, metrics: dict[str, float]) -> None:
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **metrics}) + "\n")


class _Swapped:
    """Exchanges a model's weights with its average, and back."""

    def __init__(self, model: OpenVLA, average: Average | None) -> None:
        self._model = model
        self._average = average

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        if self._average is None:
            return
        for name, p in self._model.named_parameters():
            kept = p.detach().clone()
            p.copy_(self._average.weights[name])
            self._average.weights[name].copy_(kept)


def save_policy(run: Run, start: Path, folder: Path) -> None:
    """Write the averaged weights as a policy folder, with the files that belong to them."""
    with run.averaged():
        save_model(run.model, folder, carry_from=start)
    for name in SIDE_FILES:
        if (start / name).is_file():
            shutil.copyfile(start / name, folder / name)


def _start_policy(recipe: FinetuneRecipe, demos: Demos, out: Path) -> Path:
    """`OUT/start`: a copy of the recipe's policy, or a new one of its architecture.

    Statistics of a dataset that the policy already knows are kept: its weights mean those units. A new dataset's are
    computed from all its transitions.
    """
    start = out / "start"
    if (start / "model.safetensors").is_file():
        return start
    if recipe.policy is None:
        create(
            start, recipe.architecture, demos.embodiment, _statistics(recipe, demos), demos.instructions, recipe.seed
        )
        return start
    policy = load(recipe.policy)
    if policy.embodiment is None:
        raise RecipeError(f"{recipe.policy} does not say what it drives (no embodiment.json).")
    require_fit(policy.embodiment, demos.embodiment)
    shutil.copytree(recipe.policy, start, dirs_exist_ok=True)
    if recipe.dataset_name not in policy.statistics:
        statistics = {**policy.statistics, **_statistics(recipe, demos)}
        write_json(start / "dataset_statistics.json", statistics)
    return start


def _statistics(recipe: FinetuneRecipe, demos: Demos) -> dict[str, Any]:
    return dataset_statistics(recipe.dataset_name, demos.actions, demos.states, len(demos.episodes))


def _groups(model: OpenVLA, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices, not biases, norms or positions."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and 1 not in p.shape]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _numbers(output: TrainingOutput) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in vars(output).items()}


def _fingerprint(recipe: FinetuneRecipe, demos: Demos) -> str:
    """Changes when another recipe or other data would make a resumed run a different one."""
    facts = json.dumps(asdict(replace(recipe, description="")), default=str, sort_keys=True).encode()
    return hashlib.sha256(facts + demos.actions.tobytes() + demos.states.tobytes()).hexdigest()[:16]
