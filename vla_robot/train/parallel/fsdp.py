"""One model over several processes, each of which holds a part of every tensor (FSDP2).

    weight (5, 3)     rank 0 has rows 0-2, rank 1 rows 3-4; so have its gradient, moments and average
    forward           a block's weights are gathered before it runs and let go behind it
    backward          gathered again; each rank keeps the sum of gradients for its own rows

Tensors of a model that is not sharded go through the same functions unchanged, so that there is one format of
checkpoints, whole tensors, which any number of processes can read.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from vla_robot.policy.openvla.network.model import OpenVLA, TrainingOutput
from vla_robot.train.parallel.activation_checkpointing import blocks


def shard(model: OpenVLA, device: torch.device, count: int) -> None:
    """Keep this rank's part of a model alone, on its device; block by block, so that the whole is never there.

    Args:
        model: in main memory, the same at all ranks.
        device: of this rank.
        count: of ranks.
    """
    _look_into_outputs()
    mesh = init_device_mesh(device.type, (count,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    # The default leaves what lies outside the blocks gathered, and a model without gradients would stay so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "answers_match")


@cache
def _look_into_outputs() -> None:
    """FSDP gathers weights for the backward pass when a gradient reaches an output, and must find the loss in ours."""
    from torch.export import register_dataclass  # its import takes time

    register_dataclass(TrainingOutput)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether each rank has a part of them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, in place: all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it. Every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collected(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, those that were sharded in main memory; one after the other, and every rank must ask.

    Args:
        tensors: with their names.
        keep: False at a rank that only takes part, and gets none.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if isinstance(tensor, DTensor):
            full = whole(tensor)
            kept |= {name: full.cpu()} if keep else {}
        elif keep:
            kept[name] = tensor
    return kept


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Write a whole tensor into one that may be sharded: each rank its part, without asking the others.

    Raises:
        RuntimeError: the shapes differ.
    """
    if isinstance(target, DTensor):
        if full.shape != target.shape:
            raise RuntimeError(f"the shape is {tuple(full.shape)}, expected {tuple(target.shape)}")
        full = full.to(target.device, target.dtype)
        full = local(distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None))
    local(target).copy_(full)
