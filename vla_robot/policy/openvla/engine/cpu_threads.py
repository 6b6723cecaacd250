"""How many cores one inference takes.

A small model's products are so short that sharing them costs what it brings, and where the other core is busy (a
simulator, a camera, a bridge) every product waits for it: an inference of 20 ms then took 180 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from vla_robot.policy.openvla.engine.cost import costs
from vla_robot.policy.openvla.inputs.inputs import Batch
from vla_robot.policy.openvla.network.model import OpenVLA

WORTH_SHARING_FLOPS = 1e9
"""Operations; an inference of fewer runs on one core, which does as many in 10 to 50 ms."""


@contextmanager
def threads_for(model: OpenVLA, batch: Batch) -> Iterator[None]:
    """Inside, torch uses one core for a small inference, and as many as before for a large one."""
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
