"""Several processes that train one model: torchrun or SLURM starts them, and each holds the model, or a part of it.

Every rank takes its share of each step's batch, and gradients are averaged while they are computed. The recipe's batch
is that of all ranks together, so a run means the same whatever their number, and may go on with another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vla_robot.core.errors import RecipeError

PATIENCE = timedelta(hours=2)
"""How long ranks wait for the first one, which reads the datasets' shards before the others may."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many.

    Attributes:
        rank: from 0.
        count: all of them.
        local: rank on this computer, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """As the launcher says; one process without one."""
        rank, count, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        return cls(rank, count, local)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """As asked; for "auto" this rank's GPU where there is one."""
        if name != "auto":
            return torch.device(name)
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connected with the others for the length of the block."""
        if self.count == 1:
            yield
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield
            dist.barrier()  # a rank that leaves early would take the first one's connection away
        finally:
            dist.destroy_process_group()

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """The first rank does the block alone, then the others, who find its files."""
        if self.count > 1 and not self.first:
            dist.barrier()
        yield
        if self.count > 1 and self.first:
            dist.barrier()

    def share(self, rows: int) -> int:
        """Rows of a step that fall to each rank.

        Raises:
            RecipeError: they cannot be shared equally, so that some frames would weigh more.
        """
        if rows % self.count:
            raise RecipeError(f"a step has {rows} frames, which {self.count} processes cannot share equally.")
        return rows // self.count

    def mean(self, values: Tensor) -> Tensor:
        """Of all ranks."""
        if self.count == 1:
            return values
        dist.all_reduce(values)
        return values / self.count

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so at one rank or more: all of them stop together."""
        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)
