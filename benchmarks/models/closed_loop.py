"""Policies that lift cubes, side by side in closed loop: success, wrong cube, stalls, size, acting and training times.

    python -m benchmarks.models.closed_loop --out runs/nanos
    python -m benchmarks.models.closed_loop --policies data/nano_l1/final --rows 1 4 8 --worlds lift --out runs/heads

`vla eval` scores each world on seeds that no training used, the same for every policy; after an interruption the same
command goes on. Then the policies infer in turns, one observation of Lift at a time, met while the first one drives;
their error there is the mean absolute difference to the scripted expert's action.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from benchmarks.models.inference_times import ours
from benchmarks.models.scores import Score, driven, error_to, labels, loaded, scored, trained_s
from benchmarks.models.turns import Timing, take_turns
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.provenance import row
from vla_robot.policy.vla.policy import AnyVLAPolicy

NANOS = ("openvla_nano", "paligemma_nano", "qwen_vl_nano", "gemma4_nano")


@dataclass(frozen=True)
class ClosedLoopArgs:
    """Score policies on Lift and on three colours, and time their inferences."""

    out: Annotated[Path, option("FOLDER")]
    """folder of the evaluations; the same command continues there"""
    policies: Annotated[tuple[str, ...], option("POLICY ...")] = NANOS
    """policies with weights, by name or path, e.g. data/nano_l1/final"""
    rows: Annotated[tuple[int, ...], option("N ...")] = ()
    """execution horizons of the policies that answer several actions; by default each recipe's own"""
    worlds: Annotated[tuple[Literal["lift", "lift_colour"], ...], option("WORLD ...")] = ("lift", "lift_colour")
    """worlds in which the policies are scored: those that their data know"""
    episodes: Annotated[int | None, option("N")] = None
    """episodes in each world; by default 50 of lift and 60 of lift_colour"""
    rounds: Annotated[int, option("N")] = 60
    """timed inferences of each policy"""
    workers: Annotated[int, option("N")] = 2
    """number of worlds in parallel"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        numbers = (*self.rows, self.episodes, self.rounds, self.workers)
        if any(number is not None and number < 1 for number in numbers):
            raise RecipeError("--rows, --episodes, --rounds and --workers take numbers from 1 on.")


@dataclass(frozen=True)
class Measured:
    """What is known of a policy, whatever its execution horizon.

    Attributes:
        size: number of parameters.
        chunk: actions of an answer.
        tokens: mean tokens of an answer; 0 of an action head.
        timing: inferences of one observation, frames to actions.
        error: mean absolute difference of its first action and the expert's, in halves of an action's range.
        trained_s: processor time of all its trainings [s]; None if they were not noted.
    """

    size: int
    chunk: int
    tokens: float
    timing: Timing
    error: float
    trained_s: float | None


Scores = Mapping[tuple[str, int | None], Mapping[str, Score]]
"""Label and execution horizon (None: the recipe's) -> world -> score."""


def main(args: ClosedLoopArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: a policy or a world cannot be used.
    """
    names = labels(args.policies)
    policies = {label: loaded(name) for label, name in names.items()}
    scores = {
        (label, horizon): {
            world: scored(names[label], label, world, args.out, args.workers, horizon, args.episodes)
            for world in args.worlds
        }
        for label, policy in policies.items()
        for horizon in horizons(policy.model.config.chunk, args.rows)
    }
    first = next(iter(names))
    scenes, wanted = driven(names[first], policies[first], args.rounds)
    timings = take_turns({label: ours(p, scenes, 1) for label, p in policies.items()}, args.rounds, lambda: None)
    measured = {
        label: measured_of(policies[label], timing, error_to(policies[label], scenes, wanted), trained_s(names[label]))
        for label, timing in timings.items()
    }
    Terminal().print(_table(args.worlds, scores, measured))
    if args.json:
        write_json(args.json, "closed_loop", rows(scores, measured))
    return 0


def horizons(chunk: int, asked: Sequence[int]) -> Sequence[int | None]:
    """Return the execution horizons that a policy of `chunk` actions is scored with; None is its recipe's."""
    return ([n for n in asked if n <= chunk] if chunk > 1 else []) or [None]


def measured_of(policy: AnyVLAPolicy, timing: Timing, error: float, trained: float | None) -> Measured:
    """Return what is known of a policy after its timed inferences."""
    has_head = policy.model.action_head is not None
    tokens = 0.0 if has_head else float(np.mean([(ids >= 0).sum(axis=1) for ids in timing.tokens]))
    size = sum(p.numel() for p in policy.model.parameters())
    return Measured(size, policy.model.config.chunk, tokens, timing, error, trained)


def rows(scores: Scores, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Return the rows for JSON."""
    result = list[dict[str, Any]]()
    for (label, horizon), by_world in scores.items():
        case = label if horizon is None else f"{label}/rows{horizon}"
        for world, score in by_world.items():
            result.append(row(f"{case}/{world}/successes", score.successes, "1", score.count))
            result.append(row(f"{case}/{world}/wrong_object", score.wrong, "1", score.count))
            result.append(row(f"{case}/{world}/stalled", score.stalled, "1", score.count))
    for label, m in measured.items():
        numbers = {
            "parameters": (m.size, "1"),
            "chunk": (m.chunk, "1"),
            "tokens": (m.tokens, "1"),
            "inference_p50": (m.timing.percentile_ms(50), "ms"),
            "passes": (m.timing.passes, "1"),
            "error": (m.error, "1"),
            "training_cpu": (m.trained_s, "s"),
        }
        result += [row(f"{label}/{name}", value, unit) for name, (value, unit) in numbers.items() if value is not None]
    return result


def _table(worlds: Sequence[str], scores: Scores, measured: Mapping[str, Measured]) -> Table:
    outcomes = ("policy", "chunk", "executed", *worlds, "wrong cube", "stalled")
    facts = ("parameters", "tokens", "ms, median", "passes", "error", "training, CPU")
    table = Table(*outcomes, *facts, box=None, pad_edge=False, header_style="dim")
    for (label, horizon), by_world in scores.items():
        m = measured[label]
        cells = [label, str(m.chunk), "" if horizon is None else str(horizon), *map(str, by_world.values())]
        wrong = str(sum(score.wrong for score in by_world.values()))
        stalled = str(sum(score.stalled for score in by_world.values()))
        size, tokens = f"{m.size / 1e6:.2f} M", f"{m.tokens:.1f}"
        times = (f"{m.timing.percentile_ms(50):.1f}", f"{m.timing.passes:.2f}")
        took = "not noted" if m.trained_s is None else f"{m.trained_s:.0f} s"
        table.add_row(*cells, wrong, stalled, size, tokens, *times, f"{m.error:.4f}", took)
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ClosedLoopArgs)))
