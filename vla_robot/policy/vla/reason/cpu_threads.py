"""Number of CPU cores that one inference uses.

Products of a small model are so short that sharing them gains nothing, and where another process (a
simulator, a camera, a bridge) uses the other core, every product waits for it: an inference of 20 ms took 180 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORTH_SHARING_FLOPS = 1e9
"""An inference of fewer operations runs on one core, which takes 10 to 50 ms for so many."""


@contextmanager
def threads_for(flops: float, device: torch.device) -> Iterator[None]:
    """Return a context in which torch uses one core for a small inference, and as many as before for a large one.

    Args:
        flops: operations of the inference.
        device: where it runs; on another device than a CPU, cores are left as they are.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1 if flops < WORTH_SHARING_FLOPS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
