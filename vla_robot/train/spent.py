"""Time that training took, also over interruptions, and what a policy's folder says about it.

    OUT/spent.jsonl            {"step": 250, "seconds": 118.2, "cpu_seconds": 121.9}, a line for each checkpoint
    FOLDER/training.json       {"trainings": [...]}: those that a policy went through, the first one first

Seconds are a clock's on the wall, processor seconds those of all threads of the first process. Steps and held-out
measurements count, reading the data and writing the policy do not; work that an interruption lost, and that is done
again, counts once.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.json_files import write_json
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.metrics import add_line, forget_after

SPENT = "spent.jsonl"
TRAINING = "training.json"


@dataclass(frozen=True)
class Times:
    """Seconds of a clock on the wall, and of the processor."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> Times:
        """Return the clocks' state; only differences mean something."""
        return cls(time.monotonic(), time.process_time())

    def __add__(self, other: Times) -> Times:
        return Times(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Times) -> Times:
        return Times(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


class Spent:
    """Times of a run's steps, a line for each checkpoint."""

    def __init__(self, out: Path) -> None:
        """
        Args:
            out: folder of the run.
        """
        self._out = out
        self._total = Times()
        self._since = Times.now()

    def go_on_from(self, step: int) -> None:
        """Delete the lines after `step`, and start the clocks.

        Raises:
            DataError: writing failed.
        """
        kept = forget_after(self._out, SPENT, step)
        self._total = sum((Times(line["seconds"], line["cpu_seconds"]) for line in kept), Times())
        self._since = Times.now()

    def add(self, step: int) -> None:
        """Write the times since the last line.

        Raises:
            DataError: writing failed.
        """
        now = Times.now()
        past, self._since = now - self._since, now
        past = Times(round(past.seconds, 2), round(past.cpu_seconds, 2))
        add_line(self._out, SPENT, {"step": step, **asdict(past)})
        self._total += past

    def total(self) -> Times:
        """Return the times of all lines."""
        return self._total


def trainings_of(folder: Path) -> list[dict[str, Any]]:
    """Return what `training.json` of a policy's folder tells, the first training first; nothing without the file.

    Raises:
        CheckpointError: the file is no such list.
    """
    path = folder / TRAINING
    if not path.is_file():
        return []
    try:
        trainings = json.loads(path.read_text(encoding="utf-8"))["trainings"]
        for training in trainings:
            Times(float(training["seconds"]), float(training["cpu_seconds"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} has no list of trainings ({error!r}); delete the file: it only tells the past."
        ) from None
    return trainings


def write_trainings(
    folder: Path, start: Path, recipe: FinetuneRecipe, steps: int, processes: int, spent: Times
) -> None:
    """Write `training.json`: the trainings of the start policy, and this one."""
    this = {
        "description": recipe.description,
        "steps": steps,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "processes": processes,
        "seconds": round(spent.seconds, 1),
        "cpu_seconds": round(spent.cpu_seconds, 1),
    }
    write_json(folder / TRAINING, {"trainings": [*trainings_of(start), this]})
