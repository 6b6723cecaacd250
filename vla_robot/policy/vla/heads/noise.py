"""The random numbers of a policy: each row of a batch has its own, so that it gets the answer that it gets alone.

A row's seed depends on the episode's seed and the observation's step only; in training, on the run's seed and the
sample's number. Drawn alone, the numbers are those of `torch.randn` after `torch.manual_seed(seed)` on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

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
