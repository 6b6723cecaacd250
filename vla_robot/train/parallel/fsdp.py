"""One model sharded over several processes, each of which holds a part of every tensor (FSDP2).

    weight (5, 3)     rank 0 has rows 0-2, rank 1 rows 3-4; gradient, moments and average are split alike
    forward           a block's weights are gathered before it runs and freed after it
    backward          they are gathered again; each rank keeps the summed gradients of its own rows

The functions return tensors of an unsharded model unchanged, so that checkpoints have one format,
whole tensors, which any number of processes can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from vla_robot.policy.vla.model import AnyVLAModel, TrainingOutput


def shard(model: AnyVLAModel, device: torch.device, count: int) -> None:
    """Shard a model block by block and keep only this rank's part on its device, which never holds the whole model.

    Args:
        model: the model in main memory at the first rank; at the others one without weights, on torch's meta device.
        device: this rank's device.
        count: number of ranks.
    """
    is_first = dist.get_rank() == 0
    # The first rank's tensors stay in main memory until all were sent.
    tensors = dict(_tensors(model)) if is_first else {}
    _share_out(model, device, count)
    if not is_first:
        model.to_empty(device=device)
    for name, target in _tensors(model):
        put(target, _sent(tensors.get(name), target, device))


def _tensors(model: AnyVLAModel) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers; of those that are not in a checkpoint, too."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor.detach()


def _sent(whole: Tensor | None, target: Tensor, device: torch.device) -> Tensor:
    """Return a whole tensor of the first rank at every rank, on its device; one tensor is there at a time."""
    full = torch.empty(target.shape, dtype=target.dtype, device=device) if whole is None else whole.to(device)
    full = full.contiguous()
    dist.broadcast(full, src=0)
    return full


def _share_out(model: AnyVLAModel, device: torch.device, count: int) -> None:
    _look_into_outputs()
    mesh = init_device_mesh(device.type, (count,))
    for block in model.layers():
        fully_shard(block, mesh=mesh)
    # The default leaves the weights outside the blocks gathered, and a model without gradients would stay so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "answers_match")


@cache
def _look_into_outputs() -> None:
    """Register `TrainingOutput` as a pytree: FSDP gathers weights when a gradient reaches an output it can find."""
    from torch.export import register_dataclass  # its import takes time

    register_dataclass(TrainingOutput)


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether any tensor is sharded."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, sharing its memory; an unsharded tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor. Every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collected(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Return whole tensors by name; sharded ones are gathered in main memory. Every rank must call this.

    Args:
        tensors: names and tensors.
        keep: False at a rank that takes part in the gathering but gets no tensors.
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
    """Write a whole tensor into one that may be sharded; each rank writes its part, without communication.

    Raises:
        RuntimeError: the shapes differ.
    """
    if isinstance(target, DTensor):
        if full.shape != target.shape:
            raise RuntimeError(f"the shape is {tuple(full.shape)}, expected {tuple(target.shape)}")
        full = full.to(target.device, target.dtype)
        full = local(distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None))
    local(target).copy_(full)
