"""lerobot's schedulers, with each row's own random numbers; `policy.vla.heads.noise` draws them."""

from __future__ import annotations

from typing import Any

import torch


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
