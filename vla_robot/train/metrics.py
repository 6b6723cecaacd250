"""Metrics of training: metrics.jsonl, and TensorBoard and Weights & Biases if the recipe asks for them.

    OUT/metrics.jsonl    {"step": 50, "loss": 1.23, ...}
    OUT/tensorboard/     the same lines for TensorBoard; written again from metrics.jsonl whenever the run resumes
    OUT/wandb.json       {"id": "...", "step": 50}: the run of W&B, and the last line that it has

A resumed run deletes the lines after its checkpoint and measures them again, the same bit for bit. So that
no point appears twice, TensorBoard's files are written anew, and W&B gets only steps that it does not have.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from vla_robot.core.errors import MissingDependencyError
from vla_robot.core.host.durable import append_line, write_whole
from vla_robot.core.host.optional import installed, require
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.checkpoint import writing

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB = "wandb.json"

Line = Mapping[str, float]
"""One measurement: "step", and the metrics after it."""


def add_line(out: Path, name: str, line: Line) -> None:
    """Append a measurement to a file of a run's folder.

    Raises:
        DataError: writing failed.
    """
    path = out / name
    with writing(str(path), out):
        append_line(path, json.dumps(line))


def forget_after(out: Path, name: str, step: int) -> list[dict[str, float]]:
    """Delete a file's lines after `step` and half a line at the end, and return the others; 0 deletes all.

    Raises:
        DataError: writing failed.
    """
    path = out / name
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [json.loads(text) for text in texts if step and text.endswith("\n")]
    kept = [line for line in lines if line["step"] <= step]
    with writing(str(path), out):
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept


class Tracker(Protocol):
    """Receives every line of metrics."""

    def log(self, line: Line) -> None:
        """Receive one measurement."""
        ...

    def close(self) -> None:
        """End; no line follows."""
        ...


class Metrics:
    """Writes the metrics of a run and passes them to the trackers."""

    def __init__(self, recipe: FinetuneRecipe, out: Path) -> None:
        """
        Args:
            recipe: says which trackers to use.
            out: folder of the run.
        """
        self._recipe = recipe
        self._out = out
        self._trackers: list[Tracker] = []

    def go_on_from(self, step: int) -> None:
        """Delete the lines after `step`, and give the trackers the others."""
        lines = forget_after(self._out, METRICS, step)
        if self._recipe.tensorboard:
            self._trackers.append(_TensorBoard(self._out / TENSORBOARD, lines))
        if self._recipe.wandb:
            self._trackers.append(_WandB(self._recipe, self._out, lines))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line.

        Raises:
            DataError: writing failed.
        """
        line = {"step": step, **metrics}
        add_line(self._out, METRICS, line)
        for tracker in self._trackers:
            tracker.log(line)

    def close(self) -> None:
        """Close the trackers; call this once, when the run ends or stops."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers.clear()


def require_trackers(recipe: FinetuneRecipe) -> None:
    """Check before training that the trackers are installed.

    Raises:
        MissingDependencyError: a tracker that the recipe asks for is not installed.
    """
    if recipe.tensorboard:
        require("tensorboard", "learn", "tensorboard = true")
    if recipe.wandb and installed("wandb") is None:
        raise MissingDependencyError(
            f"wandb = \"{recipe.wandb}\" needs the package 'wandb', which is not installed and comes with no extra. "
            "Install it with `pip install wandb` and log in with `wandb login`, or delete the key: metrics.jsonl and "
            "--tensorboard hold the same numbers."
        )


class _TensorBoard:
    """Tracker that writes TensorBoard's event files, one curve per metric."""

    def __init__(self, folder: Path, lines: Sequence[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # its import takes time

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(line["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """Tracker that writes to one run of Weights & Biases, also after training resumes."""

    def __init__(self, recipe: FinetuneRecipe, out: Path, lines: Sequence[Line]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._path = out / WANDB
        note = read_json(self._path) if self._path.exists() else {}
        self._id = str(note.get("id") or uuid.uuid4().hex[:12])
        self._step = int(note.get("step", -1))
        self._run: Any = wandb.init(
            project=recipe.wandb,
            id=self._id,
            name=out.name,
            resume="allow",
            dir=str(out),
            config=json.loads(json.dumps(asdict(recipe), default=str)),
        )
        for line in lines:
            self.log(line)

    def log(self, line: Line) -> None:
        step = int(line["step"])
        if step <= self._step:
            return
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=step)
        self._step = step
        write_json(self._path, {"id": self._id, "step": step})

    def close(self) -> None:
        self._run.finish()
