"""Provenance of a measurement: versions and machine, for every report, episode and JSON output."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_robot.core.host.optional import installed

PACKAGES = ("vla_robot", "numpy", "mujoco", "robosuite", "torch", "transformers", "timm")


def versions() -> dict[str, str | None]:
    """Return package -> version, None if it is absent. Versions are read from metadata, without imports."""
    return {"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """Return the processor, cores that this process may use, memory [GB], system, and the GPU if torch is loaded."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gb": round(main_memory_mb() / 1e3, 1),
        "platform": platform.platform(terse=True),
        "gpu": _gpu(),
    }


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main_memory_mb() -> float:
    """Return the size of the main memory [MB]."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6


def document(command: str, rows: Sequence[Mapping[str, Any]], **more: object) -> dict[str, Any]:
    """Return the common form of all commands' machine-readable output.

    Args:
        command: the verb, e.g. "run".
        rows: one number each, as returned by `row`.
        more: further entries of the command.
    """
    return {"command": command, "versions": versions(), "machine": machine(), "rows": list(rows), **more}


def row(
    name: str, value: float | None, unit: str, baseline: float | None = None, ratio: float | None = None
) -> dict[str, Any]:
    """Return one number of a document.

    Args:
        name: name of the number.
        value: the number; None if nothing was measured.
        unit: its unit; "1" for counts and shares.
        baseline: number to compare with, measured in the same run, in the same unit.
        ratio: ratio of the two; the command defines its direction.
    """
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}


def _cpu_model() -> str:
    """Return the CPU's model, on Linux from /proc, elsewhere from the platform module."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Return the GPU's name if torch is loaded already, since importing it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
