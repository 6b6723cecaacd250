"""Which numbers of an action a policy has learned from its frames, task by task.

    python -m benchmarks.models.error_by_task --policy data/mt10/final --data data/metaworld_mt10_others

For each instruction of a recording and each dimension: the mean absolute error of the policy's first action, beside
that of an answer that is the same for all frames, the median of the labels. A policy whose error is the median's has
learned nothing there; if the label depends on where a thing is, it does not see where. The frames may be those of the
training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.models.recorded import frames
from benchmarks.models.scores import first_actions, loaded
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.normalise import normalise


@dataclass(frozen=True)
class ErrorByTaskArgs:
    """Compare a policy's actions with the labels of a recording, by instruction and dimension."""

    policy: Annotated[str, option("POLICY")]
    """policy with weights, by name or path"""
    data: Annotated[Path, option("FOLDER")]
    """a recording of its arm"""
    frames: Annotated[int, option("N")] = 1000
    """frames that are asked about, drawn from all episodes"""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise RecipeError(f"--frames {self.frames}: at least 1.")


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors in one task, in halves of a dimension's range.

    Attributes:
        count: frames.
        policy: (D,) of the policy.
        median: (D,) of the labels' median.
    """

    count: int
    policy: NDArray[np.float64]
    median: NDArray[np.float64]


def main(args: ErrorByTaskArgs) -> int:
    """Print a row for each instruction: error, and in brackets the median's.

    Raises:
        VlaError: the policy or the recording cannot be read, or they do not fit.
    """
    policy = loaded(args.policy)
    assert policy.embodiment is not None
    seen, labels = frames(args.data, policy, args.frames)
    wanted = normalise(labels, policy.action_stats())
    found = errors([o.instruction for o in seen], first_actions(policy, seen), wanted)
    Terminal().print(_table(found, [dim.name for dim in policy.embodiment.action.dims]))
    return 0


def errors(instructions: Sequence[str], given: NDArray[np.float64], wanted: NDArray[np.float64]) -> dict[str, Errors]:
    """Return instruction -> errors of (N, D) given actions to the wanted ones, both normalised."""
    told, found = np.array(instructions), dict[str, Errors]()
    for instruction in dict.fromkeys(instructions):
        mine, labels = given[told == instruction], wanted[told == instruction]
        off, guessed_off = np.abs(mine - labels), np.abs(labels - np.median(labels, axis=0))
        found[instruction] = Errors(len(labels), off.mean(axis=0), guessed_off.mean(axis=0))
    return found


def _table(found: Mapping[str, Errors], dims: Sequence[str]) -> Table:
    table = Table("instruction", box=None, pad_edge=False, header_style="dim")
    for name in ("frames", *dims):
        table.add_column(name, justify="right", no_wrap=True)
    for instruction, e in found.items():
        table.add_row(instruction, str(e.count), *_cells(e.policy, e.median))
    policy = np.mean([e.policy for e in found.values()], axis=0)
    median = np.mean([e.median for e in found.values()], axis=0)
    table.add_row("mean of the instructions", "", *_cells(policy, median))
    return table


def _cells(mine: NDArray[np.float64], guessed: NDArray[np.float64]) -> list[str]:
    """Return a dimension's two numbers as two lines: the table then fits into 80 columns."""
    return [f"{error:.2f}\n({guess:.2f})" for error, guess in zip(mine, guessed, strict=True)]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ErrorByTaskArgs)))
