"""What torch's compiler needs on a device, and functions that it makes one kernel of."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch._dynamo

from vla_robot.core.errors import PolicyError

VARIANTS = 4096
"""More variants of a function (precisions, batches of one row) than all policies of a process compile."""


def fused[**P, R](work: Callable[P, R]) -> Callable[P, R]:
    """Return a function of tensors that runs as one kernel; it is compiled when it first runs, for all shapes."""
    compiled = torch.compile(work, dynamic=True, fullgraph=True)

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # torch counts the variants of all policies of a process together, and raises at its limit.
        with torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS):
            return compiled(*args, **kwargs)

    return run


def compiler_problem(device: torch.device) -> str | None:
    """Return what a device lacks to compile kernels, and the cure; None if it lacks nothing."""
    match device.type:
        case "cpu":
            there: Any = shutil.which("g++") or shutil.which("clang++")
            return None if there else "needs a C++ compiler on a CPU: apt-get install g++"
        case "cuda":
            return None if importlib.util.find_spec("triton") else "needs triton on a GPU: pip install triton"
        case other:
            return f"is for a CPU or CUDA, not for '{other}'"


def is_fused(asked: bool | None, device: torch.device) -> bool:
    """Return whether to fuse: as asked, or, if nothing was, on CUDA with triton.

    Raises:
        PolicyError: it was asked for, and kernels cannot be compiled for the device here.
    """
    problem = compiler_problem(device)
    if asked and problem:
        raise PolicyError(f"fuse = true {problem}; or leave fuse out.")
    return device.type == "cuda" and problem is None if asked is None else asked
