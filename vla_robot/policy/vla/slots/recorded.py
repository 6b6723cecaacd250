"""Work that a GPU repeats: recorded once as a CUDA graph, then started by a single call.

A graph reads and writes the memory that the work used while it was recorded. On other devices the work itself runs, so
that what a CPU computes is what a GPU repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

type Work = Callable[[], None]


def recorded(device: torch.device, works: Mapping[str, Work]) -> dict[str, Work]:
    """Return works of no arguments, ready to be repeated.

    Args:
        device: where they run; they are recorded on CUDA only.
        works: name -> work, in the order in which each one first runs. It may neither read a number nor copy from
            memory that is not on the device.
    """
    if device.type != "cuda":
        return dict(works)
    with torch.cuda.device(device):
        _warm_up(works)
        pool = torch.cuda.graph_pool_handle()
        return {name: _record(work, pool) for name, work in works.items()}


def _warm_up(works: Mapping[str, Work]) -> None:
    """Run the works on a stream beside: libraries allocate their own memory on first use, which may not be recorded."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for work in works.values():
            work()
    torch.cuda.current_stream().wait_stream(beside)


def _record(work: Work, pool: Any) -> Work:
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a server's, may use the device meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay
