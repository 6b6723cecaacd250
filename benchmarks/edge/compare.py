"""`vla bench edge`: contenders take turns, so that other load on the computer affects all alike."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import numpy as np
from rich.table import Table

from benchmarks.children import ROOT
from benchmarks.edge.worker import WAYS
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import PolicyError, RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.recipe.policy_source import find_policy

BASELINE, REFERENCE = "transformers", "torch"
"""Whose times, and whose tokens, the others are compared with."""

OTHERS = ("openvino", "torch compiled")
"""Ways that need something more: another build of onnxruntime, a C++ compiler."""


@dataclass(frozen=True)
class EdgeArgs:
    """Measure an exported policy beside torch: ms, time to the first action, memory; each in a process of its own."""

    policy: Annotated[str, option("POLICY")] = "openvla_nano"
    """the policy in torch"""
    exported: Annotated[Path | None, option("FOLDER")] = None
    """its folder of `vla export onnx`; by default it is exported for this run, and removed after it"""
    batch: Annotated[tuple[int, ...], option("N ...")] = (1, 4)
    """batch sizes"""
    rounds: Annotated[int, option("N")] = 50
    """inferences of each contender and batch size; with --observations, 0 measures no times"""
    compiled: bool = False
    """also torch's compiled graphs; compiling takes a minute per batch size"""
    python: Annotated[Path | None, option("PYTHON")] = None
    """interpreter of an environment with [edge] alone, for onnxruntime; its size on disk is measured"""
    openvino: Annotated[Path | None, option("PYTHON")] = None
    """also OpenVINO: interpreter of an environment with onnxruntime-openvino in onnxruntime's place"""
    observations: Annotated[int, option("N")] = 0
    """first compare the tokens of so many observations with torch's, while the exported policy drives --env"""
    env: Annotated[str, option("ENV")] = "lift"
    """the world that it drives"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""

    def __post_init__(self) -> None:
        if min(self.batch, default=0) < 1 or self.rounds < (not self.observations):
            raise RecipeError("--batch and --rounds take numbers from 1 on; --rounds 0 needs --observations.")


@dataclass
class Measured:
    """One contender.

    Attributes:
        start_s: from the start of its process to its first answer [s].
        ms: batch size -> times of its answers [ms].
        tokens: batch size -> its answers' tokens.
        memory_mb: largest resident memory that it had after an answer [MB].
        sees_all: whether it sees all that the policy sees.
    """

    start_s: float
    sees_all: bool = True
    ms: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    tokens: dict[int, list[Any]] = field(default_factory=dict[int, list[Any]])
    memory_mb: float = 0.0

    def median_ms(self, rows: int) -> float:
        """Return the median time of an answer [ms]."""
        return float(np.median(self.ms[rows]))


def main(args: EdgeArgs) -> int:
    """Measure, and print a table.

    Raises:
        PolicyError: a contender fails; the message has its last line.
    """
    console = Terminal()
    with _exported(args, console) as folder:
        args = replace(args, exported=folder)
        console.print(f"vla bench edge: {args.policy} and {folder}, {args.rounds} rounds")
        seen = _compared(args, folder, console)
        measured = measure(args) if args.rounds else {}
    if measured:
        console.print(_table(measured))
    sizes = {"edge": environment_mb(args.python)} if args.python else {}
    for name, size in sizes.items():
        console.print(f"Size of the environment [{name}]: {size:.0f} MB.")
    if args.json:
        write_json(args.json, "bench edge", [*seen, *rows(measured, sizes)])
    return 0


@contextmanager
def _exported(args: EdgeArgs, console: Terminal) -> Iterator[Path]:
    """Yield the folder that is named, or one that is exported for the `with` block."""
    if args.exported is not None:
        yield args.exported
        return
    require("torch", "policy", "exporting a policy")
    require("onnxscript", "export", "exporting a policy")
    from vla_robot.policy.onnx.export.write import Choices, export

    source = find_policy(args.policy)
    with TemporaryDirectory(prefix="vla_bench_edge_") as folder:
        choices = Choices(tuple(sorted({1, *args.batch} if args.rounds else {1})))
        export(Path(folder), source.name, source.recipe, choices, lambda line: console.print(f"  {line}"))
        yield Path(folder)


def _compared(args: EdgeArgs, folder: Path, console: Terminal) -> list[dict[str, Any]]:
    """Compare as many tokens as are asked for; return the rows for JSON."""
    if not args.observations:
        return []
    from benchmarks.edge.tokens import compare_tokens

    seen = compare_tokens(args.policy, folder, args.env, args.observations)
    console.print(
        f"On {seen.observations} observations of {seen.episodes} episodes of {args.env}, {seen.differ} of "
        f"{seen.tokens} tokens differ from torch's."
    )
    return [row("compared/tokens", seen.tokens, "1"), row("compared/tokens_that_differ", seen.differ, "1")]


def measure(args: EdgeArgs) -> dict[str, Measured]:
    """Return the measurements by contender."""
    with ExitStack() as stack:
        workers = {way: stack.enter_context(_Worker(way, args)) for way in ways(args)}
        measured = {way: Measured(worker.first["start_s"], worker.first["sees_all"]) for way, worker in workers.items()}
        for rows in args.batch:
            for number in range(args.rounds + 1):
                for way, worker in workers.items():
                    _book(measured[way], rows, worker.ask(number, rows), is_warm=number > 0)
    return measured


def ways(args: EdgeArgs) -> list[str]:
    """Return the contenders that are asked for."""
    asked = {"openvino": args.openvino is not None, "torch compiled": args.compiled}
    return [way for way in WAYS if asked.get(way, True)]


def _book(measured: Measured, rows: int, said: Mapping[str, Any], is_warm: bool) -> None:
    measured.memory_mb = max(measured.memory_mb, said["memory_mb"])
    if is_warm:
        measured.ms.setdefault(rows, []).append(said["ms"])
        measured.tokens.setdefault(rows, []).append(said["tokens"])


class _Worker:
    """A contender's process. One that fails raises PolicyError where it is asked."""

    def __init__(self, way: str, args: EdgeArgs) -> None:
        own = {"onnxruntime": args.python, "openvino": args.openvino}
        self._way, python = way, own.get(way) or sys.executable
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [str(python), "-P", "-m", "benchmarks.edge.worker", way, args.policy, str(args.exported)]
        self._process = subprocess.Popen(
            [*command, str(time.monotonic())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.first = self._line()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, number: int, rows: int) -> dict[str, Any]:
        """Return what the worker says of a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number} {rows}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise PolicyError(f"the contender '{self._way}' ended with status {self._process.wait()}; its error is above.")


def environment_mb(python: Path) -> float:
    """Return the size on disk of the virtual environment of an interpreter, without the interpreter itself [MB]."""
    files = [path for path in python.parent.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files) / 1e6


def differ(measured: Mapping[str, Measured], way: str, rows: int) -> float:
    """Return the share of a contender's tokens that are not torch's; NaN if it does not see what torch sees."""
    mine, other = (np.array(measured[name].tokens[rows]) for name in (way, REFERENCE))
    return float(np.mean(mine != other)) if measured[way].sees_all else math.nan


def rows(measured: Mapping[str, Measured], sizes: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the rows for JSON; a ratio above 1 is faster, or less, than the baseline."""
    found = [row(f"environment/{name}", size, "MB") for name, size in sizes.items()]
    for way, each in measured.items():
        plain = measured[BASELINE]
        found.append(row(f"{way}/first_action", each.start_s, "s", plain.start_s, plain.start_s / each.start_s))
        found.append(row(f"{way}/memory", each.memory_mb, "MB", plain.memory_mb, plain.memory_mb / each.memory_mb))
        for size in each.ms:
            ours, base = each.median_ms(size), plain.median_ms(size)
            found.append(row(f"{way}/batch{size}", ours, "ms", base, base / ours))
            found.append(row(f"{way}/batch{size}/p10", float(np.percentile(each.ms[size], 10)), "ms"))
            if each.sees_all:
                found.append(row(f"{way}/batch{size}/tokens_that_differ", differ(measured, way, size), "1"))
    return found


def _table(measured: Mapping[str, Measured]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for way in measured:
        table.add_column(way, justify="right")
    plain, each = measured[BASELINE], measured.values()
    for size in plain.ms:
        table.add_row(f"batch {size}: ms, median", *(f"{m.median_ms(size):.1f}" for m in each))
        table.add_row("  best tenth", *(f"{np.percentile(m.ms[size], 10):.1f}" for m in each))
        table.add_row(f"  to {BASELINE}'s", *(f"{plain.median_ms(size) / m.median_ms(size):.2f}x" for m in each))
        table.add_row("  tokens that differ", *(_share(differ(measured, way, size)) for way in measured))
    table.add_row("process start to first action, s", *(f"{m.start_s:.2f}" for m in each))
    table.add_row("resident memory, MB", *(f"{m.memory_mb:.0f}" for m in each))
    return table


def _share(share: float) -> str:
    return "no state" if math.isnan(share) else f"{share:.2%}"
