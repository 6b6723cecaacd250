"""The training loop: ordinary next-token training with the loss on the action tokens.

OUT/recipe.toml      what was asked for
OUT/start/           the policy before training
OUT/resume/          where an interrupted run goes on
OUT/metrics.jsonl    one line per measurement
OUT/rollout/         the policy that was last measured in closed loop, where the recipe asks for that
OUT/final/           the trained policy, a folder that `vla run --policy` takes
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vla_robot.core.embodiment import require_fit
from vla_robot.core.errors import CheckpointError, RecipeError
from vla_robot.learn import checkpoint
from vla_robot.learn.adapt import adapt, merged
from vla_robot.learn.checkpoint import Average, learning
from vla_robot.learn.data import DemoData, MixtureData, TrainingData, open_recipe_mixture
from vla_robot.learn.frames import Batch
from vla_robot.learn.memory_plan import MemoryPlan, plan_memory
from vla_robot.learn.questions import QuestionData
from vla_robot.learn.ranks import Ranks
from vla_robot.policy.openvla.checkpoint import Checkpoint
from vla_robot.policy.openvla.create import create
from vla_robot.policy.openvla.model import OpenVLA, TrainingOutput
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.openvla.weights import save_model, write_json
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.record.demos import Demos, open_demos
from vla_robot.record.stats import dataset_statistics

SIDE_FILES = ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json", "embodiment.json")
METRICS, METRICS_EVERY = "metrics.jsonl", 50
"""Steps between lines of metrics.jsonl."""
SINCE: Mapping[str, Any] = {"weights": ()}
"""Fields that recipes did not always have, and what runs did without them: those go on."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: "frames" while demonstrations are decoded, "indexing NAME" while a dataset's shards are read for the
            first time, "steps" while the model learns.
        done: frames or steps so far.
        total: frames or steps in all.
        metrics: newest numbers: loss, token_accuracy, l1, held_out_loss, question_accuracy, rollout_success, ...
    """

    phase: str
    done: int
    total: int
    metrics: dict[str, float]


OnProgress = Callable[[Progress], None]

RollOut = Callable[[Path, str], float | None]
"""A policy's folder, and the statistics that un-normalise its actions -> its success rate in closed loop; None where
somebody ended the episodes early."""


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
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    roll_out: RollOut | None = None,
) -> Trained:
    """Train, or go on where the same command was interrupted. One of several ranks, where a launcher says so.

    Args:
        recipe: how.
        out: folder of this run.
        on_progress: called after each step.
        should_stop: asked after each step; the run is then saved and can be resumed.
        on_plan: told before the first step what memory the run needs.
        roll_out: drives the episodes that the recipe's [rollouts] ask for; this room knows no world.

    Raises:
        DataError: the demonstrations or the questions cannot be read, or do not fit the policy.
        CheckpointError: `out` holds a run of another recipe, the start policy is damaged, or the loss is not finite.
    """
    ranks = Ranks.here()
    device = ranks.device(recipe.device)
    with ranks.joined(device):
        with ranks.one_first():
            prepared = _prepare(recipe, out, ranks, on_progress if ranks.first else _unheard)
        model = adapt(prepared.policy.model.to(device), recipe)
        run = Run(recipe, out, model, prepared.data, ranks, prepared.questions)
        with ranks.one_first():
            run.resume(_fingerprint(recipe, prepared))
        if ranks.first:
            on_plan(plan_memory(model, recipe))
        if recipe.rollouts and ranks.first:
            run.drives(recipe.rollouts.every, _closed_loop(roll_out, prepared, out / "rollout"))
        metrics = run.train(on_progress if ranks.first else _unheard, should_stop)
        if run.step == recipe.steps and ranks.first:
            save_policy(run, prepared.start, out / "final")
    return Trained(out / "final", run.step, metrics)


def _unheard(_: Progress) -> None:
    """The first rank speaks for all."""


@dataclass(frozen=True)
class _Prepared:
    """Where a run begins.

    Attributes:
        start: folder of the policy before training.
        key: the dataset whose statistics it uses.
        policy: that policy, loaded.
        data: what it learns from.
        questions: what else.
    """

    start: Path
    key: str
    policy: OpenVLAPolicy
    data: TrainingData
    questions: QuestionData | None


def _prepare(recipe: FinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> _Prepared:
    ranks.share(recipe.batch_size)  # refuses before frames are decoded
    return (_from_mixture if recipe.mixture else _from_demos)(recipe, out, ranks, on_progress)


def _from_demos(recipe: FinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> _Prepared:
    demos = open_demos(recipe.data)
    start = _start_at(out, lambda folder: _write_start(recipe, demos, folder))
    policy = load(start, statistics_key=recipe.dataset_name)
    data = DemoData(recipe, demos, policy, ranks, lambda done, total: on_progress(Progress("frames", done, total, {})))
    return _Prepared(start, recipe.dataset_name, policy, data, _questions(recipe, policy, ranks))


def _from_mixture(recipe: FinetuneRecipe, out: Path, ranks: Ranks, on_progress: OnProgress) -> _Prepared:
    def indexing(name: str, done: int, total: int) -> None:
        on_progress(Progress(f"indexing {name}", done, total, {}))

    folder = recipe.policy
    assert folder is not None  # FinetuneRecipe requires it for a mixture
    mixture = open_recipe_mixture(recipe, "train", indexing)
    # The mixture's statistics take the place of those of the same name, as in the reference.
    start = _start_at(out, lambda start: _copy_policy(folder, start, mixture.statistics))
    key = next(iter(mixture.statistics))
    policy = load(start, statistics_key=key)
    data = MixtureData(recipe, mixture, policy, ranks, indexing)
    return _Prepared(start, key, policy, data, _questions(recipe, policy, ranks))


def _questions(recipe: FinetuneRecipe, policy: OpenVLAPolicy, ranks: Ranks) -> QuestionData | None:
    return None if recipe.questions is None else QuestionData(recipe, recipe.questions, policy, ranks)


def _closed_loop(roll_out: RollOut | None, prepared: _Prepared, folder: Path) -> Callable[[Run], float | None]:
    """Writes a run's averaged weights to a folder and lets them drive; no chance of the training is drawn meanwhile."""
    if roll_out is None:
        raise RecipeError("the recipe asks for [rollouts], which only `vla finetune` can drive; leave the table out.")

    def measure(run: Run) -> float | None:
        save_policy(run, prepared.start, folder)
        with torch.random.fork_rng():
            return roll_out(folder, prepared.key)

    return measure


@dataclass(frozen=True)
class _Part:
    """Rows of a step that go through the model at once.

    Attributes:
        batch: these rows.
        share: of the mean over all rows of their kind.
        weight: of their kind in the step's loss.
        metrics: field of the output -> what it is called among the metrics.
    """

    batch: Batch
    share: float
    weight: float
    metrics: Mapping[str, str]


ROBOT = {"loss": "loss", "token_accuracy": "token_accuracy", "l1": "l1"}
QUESTIONS = {"loss": "question_loss"}
"""Metrics of a step by the kind of its rows."""


class Run:
    """One training run in memory."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        out: Path,
        model: OpenVLA,
        data: TrainingData,
        ranks: Ranks,
        questions: QuestionData | None = None,
    ) -> None:
        """
        Args:
            recipe: how.
            out: folder of the run.
            model: on its device, with `requires_grad` where it learns.
            data: what it learns from: this rank's share.
            ranks: which of the processes that train it this is.
            questions: what it learns besides, or is only asked.
        """
        self.recipe = recipe
        self.out = out
        self.model = model
        self.average = Average(model, recipe.ema)
        self.step = 0
        self._data = data
        self._questions = questions
        self._ranks = ranks
        self._rollouts: tuple[int, Callable[[Run], float | None]] | None = None
        # The towers' last block does no work, hence "unused".
        self._parallel = DistributedDataParallel(model, find_unused_parameters=True) if ranks.count > 1 else None
        self._device = next(model.parameters()).device
        self._optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
        self._fingerprint = ""

    def resume(self, fingerprint: str) -> None:
        """Go on from `OUT/resume` when it is there."""
        self._fingerprint = fingerprint
        if checkpoint.exists(self.out):
            self.step = checkpoint.load(self.out, self.model, self.average, self._optimizer, fingerprint)
        if self._ranks.first:
            self._forget_after(self.step)

    def drives(self, every: int, measure: Callable[[Run], float | None]) -> None:
        """Measure the success rate in closed loop before the first step, and then every so many."""
        self._rollouts = every, measure

    def train(self, on_progress: OnProgress, should_stop: Callable[[], bool]) -> dict[str, float]:
        """All steps that are left; the last metrics."""
        metrics = self._before_the_first_step()
        while self.step < self.recipe.steps:
            outputs, norm = self._learn()
            self.step += 1
            now = {"learning_rate": self._rate(), "gradient_norm": norm, **self._of_all_ranks(outputs)}
            if self._due(self.recipe.evaluate_every):
                now |= self.held_out()
            now |= self._rolled_out()
            if self._due(METRICS_EVERY) and self._ranks.first:
                self._log(now)
            metrics |= now
            stop = self._ranks.any(should_stop(), self._device)
            if self._ranks.first and (stop or self._due(self.recipe.checkpoint_every)):
                checkpoint.save(self.out, self.model, self.average, self._optimizer, self.step, self._fingerprint)
            on_progress(Progress("steps", self.step, self.recipe.steps, metrics))
            if stop:
                break
        return metrics

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss, token accuracy and L1 of the averaged weights on episodes that never train; share of right answers."""
        outputs: list[dict[str, float]] = []
        sizes: list[int] = []
        answers: dict[str, float] = {}
        with self.averaged():
            if self._questions is not None:
                answers["question_accuracy"] = self._questions.accuracy(self._says)
            for batch in self._data.held_out():
                outputs.append(_numbers(self._forward(batch)))
                sizes.append(len(batch.pixels))
        names = outputs[0] if outputs else ()
        means = {f"held_out_{n}": float(np.average([o[n] for o in outputs], weights=sizes)) for n in names}
        return means | answers

    def averaged(self) -> _Swapped:
        """A `with` block in which the model holds the averaged weights."""
        return _Swapped(self.model, self.average if self.recipe.ema > 0 else None)

    def _before_the_first_step(self) -> dict[str, float]:
        """Where the policy starts; a world that cannot be built or does not fit is told before hours of training."""
        metrics = {} if self.step > 0 else self._rolled_out()
        if metrics:
            self._log(metrics)
        return metrics

    def _rolled_out(self) -> dict[str, float]:
        if self._rollouts is None or not self._due(self._rollouts[0]):
            return {}
        rate = self._rollouts[1](self)
        return {} if rate is None else {"rollout_success": rate}

    def _learn(self) -> tuple[dict[str, Tensor], float]:
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        outputs = self._backward(self._parts())
        limit = self.recipe.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(learning(self.model).values(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, self.step)
        return outputs, float(norm)

    def _parts(self) -> list[_Part]:
        """A step's rows, in parts where they are many: the robot's, then questions."""
        r, robot = self.recipe, self._data.batch(self.step)
        # Every row of a robot's has as many labels, so means of parts add up by their rows.
        shares = [(part, len(part.pixels) / len(robot.pixels)) for part in robot.split(r.micro_batch)]
        asked = self._questions.parts(self.step) if self._questions else []
        weight = r.question_rows / r.batch_size
        robots = [_Part(part, share, 1 - weight, ROBOT) for part, share in shares]
        return robots + [_Part(part, share, weight, QUESTIONS) for part, share in asked]

    def _backward(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """Gradients of a step; mean loss and metrics of each kind of rows."""
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            with self._apart(number < len(parts) - 1):
                output = self._forward(part.batch, self._parallel)
                if not torch.isfinite(output.loss):
                    raise CheckpointError(self._not_finite(output.loss))
                (output.loss * (part.share * part.weight)).backward()
            for field, name in part.metrics.items():
                sums[name] = sums.get(name, 0.0) + getattr(output, field).detach() * part.share
        return sums

    def _apart(self, is_apart: bool) -> AbstractContextManager[None]:
        """While gradients of a batch's parts add up, ranks need not exchange them; they do with the last part."""
        return self._parallel.no_sync() if is_apart and self._parallel is not None else nullcontext()

    def _forward(self, batch: Batch, parallel: DistributedDataParallel | None = None) -> TrainingOutput:
        b = batch.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return (parallel or self.model)(b.pixels, b.input_ids, b.labels, b.state, self.recipe.bin_smoothing)

    def _says(self, batch: Batch) -> Tensor:
        b = batch.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return self.model.says(b.pixels, b.input_ids, b.labels, b.state)

    def _of_all_ranks(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        values = self._ranks.mean(torch.stack([value.float() for value in outputs.values()]))
        return dict(zip(outputs, values.tolist(), strict=True))

    def _not_finite(self, loss: Tensor) -> str:
        return f"the loss is {loss.item()} at step {self.step}. Lower learning_rate; {checkpoint.newest(self.out)}."

    def _rate(self) -> float:
        """Linear warm-up, then a cosine down to `final_rate` of the peak."""
        r = self.recipe
        if self.step < r.warmup_steps:
            return r.learning_rate * (self.step + 1) / r.warmup_steps
        progress = (self.step - r.warmup_steps) / max(1, r.steps - r.warmup_steps)
        return r.learning_rate * (r.final_rate + (1 - r.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps

    def _forget_after(self, step: int) -> None:
        """What was measured beyond the checkpoint is measured again; a killed run may leave half a line."""
        path = self.out / METRICS
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if step and line.endswith("\n") and json.loads(line)["step"] <= step]
            path.write_text("".join(kept), encoding="utf-8")

    def _log(self, metrics: dict[str, float]) -> None:
        with (self.out / METRICS).open("a", encoding="utf-8") as file:
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
        for name, p in learning(self._model).items():
            kept = p.detach().clone()
            p.copy_(self._average.weights[name])
            self._average.weights[name].copy_(kept)


def save_policy(run: Run, start: Path, folder: Path) -> None:
    """Write the averaged weights as a policy folder, with the files that belong to them."""
    with run.averaged():
        save_model(merged(run.model, start), folder, carry_from=start)
    for name in SIDE_FILES:
        if (start / name).is_file():
            shutil.copyfile(start / name, folder / name)


def _start_at(out: Path, write: Callable[[Path], None]) -> Path:
    """`OUT/start`, written unless it is there; a crash leaves nothing that looks whole."""
    start, partial = out / "start", out / "start.tmp"
    if not (start / "config.json").is_file():
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        shutil.rmtree(start, ignore_errors=True)
        partial.rename(start)
    return start


def _copy_policy(policy: Path, folder: Path, statistics: Mapping[str, Any]) -> None:
    """The policy's folder, with these statistics beside its own or in place of them."""
    shutil.copytree(policy, folder)
    write_json(folder / "dataset_statistics.json", {**Checkpoint.read(policy).config.norm_stats, **statistics})


def _write_start(recipe: FinetuneRecipe, demos: Demos, folder: Path) -> None:
    """A copy of the recipe's policy, or a new one of its architecture.

    Statistics of a dataset that the policy already knows are kept: its weights mean those units. A new dataset's are
    computed from all its transitions.
    """
    statistics = dataset_statistics(recipe.dataset_name, demos.actions, demos.states, len(demos.episodes))
    if recipe.policy is None:
        create(folder, recipe.architecture, demos.embodiment, statistics, demos.instructions, recipe.seed)
        return
    policy = Checkpoint.read(recipe.policy)
    if policy.embodiment is None:
        raise RecipeError(f"{recipe.policy} does not say what it drives (no embodiment.json).")
    require_fit(policy.embodiment, demos.embodiment)
    _copy_policy(recipe.policy, folder, {} if recipe.dataset_name in policy.config.norm_stats else statistics)


def _groups(model: OpenVLA, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices, not biases, norms or positions."""
    parameters = learning(model).values()
    matrices = [p for p in parameters if p.ndim >= 2 and 1 not in p.shape]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _numbers(output: TrainingOutput) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in vars(output).items()}


def _fingerprint(recipe: FinetuneRecipe, prepared: _Prepared) -> str:
    """Changes when another recipe or other data would make a resumed run a different one."""
    same = replace(recipe, description="", workers=0, device="auto", rollouts=None)  # none changes what is learned
    said = {name: value for name, value in asdict(same).items() if name not in SINCE or value != SINCE[name]}
    facts = json.dumps(said, default=str, sort_keys=True).encode()
    asked = prepared.questions.fingerprint() if prepared.questions else b""
    return hashlib.sha256(facts + prepared.data.fingerprint() + asked).hexdigest()[:16]
