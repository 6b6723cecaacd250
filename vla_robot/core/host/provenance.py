"""What a number was measured with: versions and machine. Goes into every report, episode and JSON output."""

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
    """Package -> version, None when it is absent. Read from the metadata: nothing is imported."""
    return {"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory [GB], system, and the GPU when torch is in use."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "platform": platform.platform(terse=True),
        "gpu": _gpu(),
    }


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def document(command: str, rows: Sequence[Mapping[str, Any]], **more: object) -> dict[str, Any]:
    """The one form of machine-readable output that all commands share.

    Args:
        command: the verb, e.g. "run".
        rows: one number each, as `row` makes them.
        more: whatever else the command has to say.
    """
    return {"command": command, "versions": versions(), "machine": machine(), "rows": list(rows), **more}


def row(
    name: str, value: float | None, unit: str, baseline: float | None = None, ratio: float | None = None
) -> dict[str, Any]:
    """One number of a document.

    Args:
        name: what it is.
        value: None where nothing was measured.
        unit: of it; "1" for counts and shares.
        baseline: the number beside it, measured in the same run, in the same unit.
        ratio: of the two; which way round, the command says.
    """
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}


def _cpu_model() -> str:
    """Linux names the model in /proc only; elsewhere the platform module knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Asked of torch only when a policy has loaded it already: importing it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
