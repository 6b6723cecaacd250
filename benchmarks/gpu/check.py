"""`vla bench gpu`: one check of the whole GPU path, within six minutes on an H100 and without a network.

Each phase stands alone: one that fails is reported, and the others go on.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks.gpu.page import table_of, write_page
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.terminal import Terminal
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row

NANO = Path(__file__).resolve().parents[2] / "policies" / "openvla_nano"


@dataclass(frozen=True)
class GpuArgs:
    """Check a GPU: its ceilings, equal tokens, time by stage and batch size, memory, and a training step."""

    device: Annotated[str, option("DEVICE")] = "cuda"
    """torch device"""
    tiny: bool = False
    """small models, to try the check itself; its times mean nothing"""
    budget: Annotated[float, option("SECONDS")] = 330.0
    """a phase that would not end within this time is left out"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON, after each phase"""
    page: Annotated[Path | None, option("PAGE.md")] = None
    """also write the table between the markers of this page, such as docs/gpu.md"""

    def __post_init__(self) -> None:
        if self.budget <= 0:
            raise RecipeError(f"--budget is {self.budget}; a time above 0 s.")


def main(args: GpuArgs) -> int:
    """Run all phases and print a table; return 1 if one failed.

    Raises:
        VlaError: the device or a package is absent.
    """
    require("torch", "policy", "a GPU's check")
    require("peft", "learn", "a GPU's check")
    results = run(args, Terminal())
    if args.page:
        write_page(args.page, results)
    return int(any("failed" in numbers for numbers in results.values()))


def run(args: GpuArgs, console: Terminal) -> dict[str, dict[str, Any]]:
    """Return phase -> its numbers, or under "failed" or "skipped" why it has none."""
    from benchmarks.gpu.phases import Bench, phases_of
    from vla_robot.policy.device import torch_device

    bench = Bench(torch_device(args.device), args.tiny, NANO)
    results: dict[str, dict[str, Any]] = {}
    start = time.monotonic()
    for name, (work, takes_s) in phases_of(bench).items():
        spent_s = time.monotonic() - start
        if spent_s + takes_s > args.budget:
            results[name] = {"skipped": f"it takes about {takes_s:.0f} s, and {spent_s:.0f} s are spent"}
        else:
            results[name] = _caught(work)
        console.print(f"[{time.monotonic() - start:4.0f} s] {name}: {_line(results[name])}", highlight=False)
        if args.json:
            write_json(args.json, "bench gpu", _rows(results), phases=results)
    console.print(table_of(results), highlight=False, markup=False)
    return results


def _caught(work: Any) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # a phase may fail in any way, and says how
        return {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc().splitlines()[-8:]}


def _line(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items() if k != "where")


def _rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row(f"{phase}/{name}", float(value), "ms" if name.endswith("_ms") else "1")
        for phase, numbers in results.items()
        for name, value in numbers.items()
        if isinstance(value, int | float)
    ]
