"""Trainer of one run: steps, measurements, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.model import AnyVLAModel, TrainingOutput
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train import checkpoint
from vla_robot.train.batches.data import TrainingData
from vla_robot.train.batches.frames import Batch
from vla_robot.train.batches.questions import QuestionData
from vla_robot.train.checkpoint import Average, learning
from vla_robot.train.metrics import Metrics
from vla_robot.train.mixed_precision import mixed_precision
from vla_robot.train.optimizers import Optimizers
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.fsdp import is_sharded, local, whole
from vla_robot.train.spent import Spent

METRICS_EVERY = 50
"""Steps between lines of metrics.jsonl."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        phase: "frames" while demonstrations are decoded, "indexing NAME" while a dataset's shards are read for the
            first time, "steps" while the model is trained.
        done: frames or steps so far.
        total: frames or steps in all.
        metrics: newest values: loss, token_accuracy, l1, held_out_loss, question_accuracy, rollout_success, ...
    """

    phase: str
    done: int
    total: int
    metrics: dict[str, float]


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class _Part:
    """Rows of a step that go through the model in one pass.

    Attributes:
        batch: the rows.
        share: weight of this part in the mean over all rows of its kind.
        weight: weight of its kind (robot or question) in the step's loss.
        metrics: field of the model's output -> name of the metric.
        smoothing: spread of labels on a scale over their neighbours, in bins.
    """

    batch: Batch
    share: float
    weight: float
    metrics: Mapping[str, str]
    smoothing: float


ROBOT = {"loss": "loss", "token_accuracy": "token_accuracy", "l1": "l1"}
QUESTIONS = {"loss": "question_loss"}
"""Metrics of a step by the kind of its rows."""

LOSSES = (ROBOT["loss"], QUESTIONS["loss"])
GRADIENT_NORM = "gradient_norm"


class Trainer:
    """Trains a model step by step, measures it and writes checkpoints."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        out: Path,
        model: AnyVLAModel,
        data: TrainingData,
        ranks: Ranks,
        questions: QuestionData | None = None,
        names: Mapping[str, str] = ROBOT,
    ) -> None:
        """
        Args:
            recipe: how to train.
            out: folder of the run.
            model: the model on its device, with `requires_grad` set; this rank's part of it if it is sharded.
            data: this rank's share of the training data.
            ranks: rank of this process, and their number.
            questions: questions to train on, or only to measure; None without.
            names: field of the model's output for `data` -> name of the metric.
        """
        self._names = names
        self.recipe = recipe
        self.out = out
        self.model = model
        self.average = Average(model, recipe.ema)
        self.step = 0
        self._data = data
        self._questions = questions
        self._ranks = ranks
        self._rollouts: tuple[int, Callable[[Trainer], float | None]] | None = None
        copied = ranks.count > 1 and not is_sharded(model.parameters())
        # A head leaves some weights of the backbone without a gradient, such as the rows of the vocabulary.
        unused = model.action_head is not None
        self._parallel = DistributedDataParallel(model, find_unused_parameters=unused) if copied else None
        self._device = next(model.parameters()).device
        self.optimizers = Optimizers(model, learning(model), recipe)
        self._metrics = Metrics(recipe, out)
        self.spent = Spent(out)
        self._fingerprint = ""

    def resume(self, fingerprint: str) -> None:
        """Resume from `OUT/resume` if it exists, and make `fingerprint` that of later checkpoints.

        Raises:
            CheckpointError: the checkpoint is damaged, or has another fingerprint.
        """
        self._fingerprint = fingerprint
        if checkpoint.exists(self.out):
            self.step = checkpoint.load(self.out, self.model, self.average, self.optimizers, fingerprint)
        if self._ranks.first:
            self._metrics.go_on_from(self.step)
            self.spent.go_on_from(self.step)

    def set_rollouts(self, every: int, measure: Callable[[Trainer], float | None]) -> None:
        """Measure the success rate before the first step, then every `every` steps and after the last one."""
        self._rollouts = every, measure

    def train(self, on_progress: OnProgress, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Run the remaining steps and return the last metrics.

        Raises:
            CheckpointError: the loss is not finite.
            DataError: writing failed.
        """
        metrics = self._before_the_first_step()
        while self.step < self.recipe.steps:
            now = self.advance()
            if self._due(self.recipe.evaluate_every):
                now |= self.held_out()
            now |= self._rolled_out()
            if self._due(METRICS_EVERY) and self._ranks.first:
                self._metrics.add(self.step, now)
            metrics |= now
            stop = self._ranks.any(should_stop(), self._device)
            if stop or self._due(self.recipe.checkpoint_every):
                self._save()
            on_progress(Progress("steps", self.step, self.recipe.steps, metrics))
            if stop:
                break
        return metrics

    def close(self) -> None:
        """Close the metrics; no step may follow."""
        self._metrics.close()

    def advance(self) -> dict[str, float]:
        """Take one step and return its metrics over all ranks.

        Raises:
            CheckpointError: the loss or a gradient is not finite at some rank; all ranks raise, and the weights are
                unchanged.
        """
        metrics = self._learn()
        self.step += 1
        return metrics

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return loss, token accuracy and L1 of the averaged weights on held-out data, and the question accuracy."""
        outputs: list[dict[str, float]] = []
        sizes: list[int] = []
        answers: dict[str, float] = {}
        with self.averaged():
            if self._questions is not None:
                accuracy = self._questions.accuracy(self._answers_match)
                answers |= {} if math.isnan(accuracy) else {"question_accuracy": accuracy}
            for batch in self._data.held_out():
                outputs.append(_numbers(self._forward(batch, self.recipe.bin_smoothing)))
                sizes.append(len(batch.pixels))
        fields = outputs[0] if outputs else ()
        means = {
            f"held_out_{self._names[f]}": float(np.average([o[f] for o in outputs], weights=sizes)) for f in fields
        }
        return means | answers

    def averaged(self) -> _Swapped:
        """Return a context manager in which the model holds the averaged weights."""
        return _Swapped(self.model, self.average if self.recipe.ema > 0 else None)

    def _before_the_first_step(self) -> dict[str, float]:
        """Evaluate the start policy, so that a world that cannot be built or does not fit fails before training."""
        metrics = {} if self.step > 0 else self._rolled_out()
        if metrics and self._ranks.first:
            self._metrics.add(self.step, metrics)
        return metrics

    def _save(self) -> None:
        if self._ranks.first:
            self.spent.add(self.step)  # first: a line without its checkpoint is deleted when the run resumes
        tensors = checkpoint.tensors(self.model, self.average, self.optimizers)
        if is_sharded(tensors.values()):
            checkpoint.save_shared(self.out, tensors, self.step, self._fingerprint, self._ranks)
        elif self._ranks.first:
            checkpoint.save(self.out, tensors, self.step, self._fingerprint)

    def _rolled_out(self) -> dict[str, float]:
        if self._rollouts is None or not self._due(self._rollouts[0]):
            return {}
        rate = self._rollouts[1](self)
        return {} if rate is None else {"rollout_success": rate}

    def _learn(self) -> dict[str, float]:
        rate = self._rate()
        outputs = self._backward(self._parts())
        limit = self.recipe.clip_norm or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(learning(self.model).values(), limit))
        metrics = self._of_all_ranks(outputs, norm)  # the only read of a step: reading waits for the device
        self._require_finite(metrics)
        self.optimizers.step(rate, self.step)
        self.average.update(self.model, self.step)
        return {"learning_rate": rate, **metrics}

    def _parts(self) -> list[_Part]:
        """Return a step's rows, in parts of at most `micro_batch`: the robot's, then the questions."""
        r, robot = self.recipe, self._data.batch(self.step)
        # Every robot row has the same number of labels, so means of parts are weighted by their rows.
        shares = [(part, len(part.pixels) / len(robot.pixels)) for part in robot.split(r.micro_batch)]
        asked = self._questions.parts(self.step) if self._questions else []
        weight = r.question_rows / r.batch_size
        robots = [_Part(part, share, 1 - weight, self._names, r.bin_smoothing) for part, share in shares]
        of_boxes = r.questions.box_smoothing if r.questions else 0.0
        return robots + [_Part(part, share, weight, QUESTIONS, of_boxes) for part, share in asked]

    def _backward(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """Compute the gradients of a step and return mean loss and metrics of each kind of rows."""
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            with self._apart(number < len(parts) - 1):
                output = self._forward(part.batch, part.smoothing, self._parallel)
                (output.loss * (part.share * part.weight)).backward()
            for field, name in part.metrics.items():
                if (value := getattr(output, field)) is not None:
                    sums[name] = sums.get(name, 0.0) + value.detach() * part.share
        return sums

    def _apart(self, is_apart: bool) -> AbstractContextManager[None]:
        """Return a context that skips the exchange of gradients for all parts of a step but the last.

        Ranks of a sharded model exchange them each time, since the gradients of the whole model would not fit.
        """
        return self._parallel.no_sync() if is_apart and self._parallel is not None else nullcontext()

    def _forward(
        self, batch: Batch, smoothing: float, parallel: DistributedDataParallel | None = None
    ) -> TrainingOutput:
        b = batch.to(self._device)
        with mixed_precision(self._device, self.recipe.bf16):
            answers = (smoothing, b.actions, b.seeds)
            return (parallel or self.model)(b.pixels, b.input_ids, b.labels, b.state, *answers)

    def _answers_match(self, batch: Batch) -> Tensor:
        b = batch.to(self._device)
        with mixed_precision(self._device, self.recipe.bf16):
            return self.model.answers_match(b.pixels, b.input_ids, b.labels, b.state)

    def _of_all_ranks(self, outputs: Mapping[str, Tensor], norm: Tensor) -> dict[str, float]:
        """Return a step's metrics as numbers, averaged over ranks. The gradients' norm is the same at every rank."""
        means = self._ranks.mean(torch.stack([value.float() for value in outputs.values()]))
        names = (GRADIENT_NORM, *outputs)
        return dict(zip(names, torch.cat([norm.float().reshape(1), means]).tolist(), strict=True))

    def _require_finite(self, metrics: Mapping[str, float]) -> None:
        """Raise CheckpointError unless the losses and the norm of all gradients are finite.

        They are means over all ranks, so all ranks agree. A finite loss may have a gradient that is not.
        """
        watched = [(name.replace("_", " "), metrics[name]) for name in (*LOSSES, GRADIENT_NORM) if name in metrics]
        for name, value in watched:
            if not math.isfinite(value):
                newest = checkpoint.newest(self.out)
                raise CheckpointError(f"the {name} is {value} at step {self.step}. Lower learning_rate; {newest}.")

    def _rate(self) -> float:
        """Return the learning rate: linear warm-up, then a cosine down to `final_rate` of the peak."""
        r = self.recipe
        if self.step < r.warmup_steps:
            return r.learning_rate * (self.step + 1) / r.warmup_steps
        progress = (self.step - r.warmup_steps) / max(1, r.steps - r.warmup_steps)
        return r.learning_rate * (r.final_rate + (1 - r.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps


class _Swapped:
    """Context manager that exchanges a model's weights with their average, and back."""

    def __init__(self, model: AnyVLAModel, average: Average | None) -> None:
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
            now, average = local(p), local(self._average.weights[name])
            kept = now.detach().clone()
            now.copy_(average)
            average.copy_(kept)


def _numbers(output: TrainingOutput) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in vars(output).items() if value is not None}
