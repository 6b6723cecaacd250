"""Data-parallel training: torchrun or SLURM starts several processes, each with the model or a part of it.

Every rank takes its share of each step's batch, and gradients are averaged while they are computed. The recipe's
batch is that of all ranks together, so the number of ranks does not change a run and may change when it resumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from vla_robot.core.errors import RecipeError
from vla_robot.policy.device import torch_device

PATIENCE = timedelta(hours=2)
"""How long ranks wait for the first one, which reads the datasets' shards before the others."""

_GROUPS: list[object] = []
"""The groups that this process has joined. torch frees one that Python holds without the interpreter's lock. Where a
DistributedDataParallel held the last reference, it was freed with the lock, and waited for its own thread, which waited
for the lock to free a tensor: the process never ended."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, and the number of ranks.

    Attributes:
        rank: counted from 0.
        count: number of ranks.
        local: rank on this computer, which is the index of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """Read RANK, WORLD_SIZE and LOCAL_RANK, which a launcher sets; without them this is the only process."""
        rank, count, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        return cls(rank, count, local)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the named device; "auto" and "cuda" are this rank's own GPU.

        Raises:
            ContractError: there is no such device on this computer.
            RecipeError: the name is that of one GPU, and there are several ranks.
        """
        device = torch_device(name, self.local)
        if self.count > 1 and name.startswith("cuda:"):
            raise RecipeError(
                f"device is '{name}', but {self.count} processes need a GPU each: write 'cuda' or 'auto', and choose "
                "GPUs with CUDA_VISIBLE_DEVICES."
            )
        return device

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect with the other ranks while the block runs, in which the device is torch's current GPU."""
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if self.count == 1:
                yield
                return
            _join(device)
            try:
                yield
                dist.barrier()  # a rank that leaves early would close the first one's connection
            finally:
                dist.destroy_process_group()

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Run the block at the first rank, then at the others, which find its files."""
        if self.count > 1 and not self.first:
            dist.barrier()
        yield
        if self.count > 1 and self.first:
            dist.barrier()

    def share(self, rows: int) -> int:
        """Return the rows of a step that each rank takes.

        Raises:
            RecipeError: the rows cannot be shared equally, so that some frames would weigh more.
        """
        if rows % self.count:
            raise RecipeError(f"a step has {rows} frames, which {self.count} processes cannot share equally.")
        return rows // self.count

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all ranks."""
        if self.count == 1:
            return values
        dist.all_reduce(values)
        return values / self.count

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set at any rank, so that all ranks stop together."""
        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)


def _join(device: torch.device) -> None:
    """Make the group of all ranks. NCCL is told this rank's GPU: without it, barriers guess one."""
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE, device_id=device if on_gpu else None)
    _GROUPS.append(dist.group.WORLD)
