"""The random numbers of a policy: each row of a batch has its own, so that it gets the answer that it gets alone.

A row's seed depends on the episode's seed and the observation's step only. Drawn alone, the numbers are those of
lerobot's own call after `torch.manual_seed(seed)` on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def row_seed(seed: int, step: int) -> int:
    """Return the seed of one answer, 0 to 2^63 - 1."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a generator for each row."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Return (B, *shape) normal noise, one row from each generator."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


class SeededScheduler:
    """A diffusion scheduler whose steps draw from the rows' generators.

    lerobot gives its scheduler no generator, so that a batch would draw from torch's own.

    Attributes:
        generators: one for each row of the present batch.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.generators: list[torch.Generator] = []

    def step(self, *args: Any, **options: Any) -> Any:
        return self._scheduler.step(*args, **{**options, "generator": self.generators})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)
