"""Number of CPU cores that one inference uses.

Products of a small model are so short that sharing them gains nothing, and where another process (a
simulator, a camera, a bridge) uses the other core, every product waits for it: an inference of 20 ms took 180 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from vla_robot.policy.openvla.engine.cost import costs
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.vla.inputs.observations import Batch

WORTH_SHARING_FLOPS = 1e9
"""An inference of fewer operations runs on one core, which takes 10 to 50 ms for so many."""


@contextmanager
def threads_for(model: OpenVLA, batch: Batch) -> Iterator[None]:
    """Return a context in which torch uses one core for a small inference, and as many as before for a large one."""
    before = torch.get_num_threads()
    small = _flops(model, len(batch.prompts), max(map(len, batch.prompts))) < WORTH_SHARING_FLOPS
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=64)
def _flops(model: OpenVLA, batch: int, text_tokens: int) -> float:
    return sum(cost.flops for cost in costs(model, batch, text_tokens, action_dim=7).values())
