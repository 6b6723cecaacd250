"""One model sharded over several processes, each of which holds a part of every tensor (FSDP2).

    weight (5, 3)     rank 0 has rows 0-2, rank 1 rows 3-4; gradient, moments and average are split alike
    forward           a block's weights are gathered before it runs and freed after it
    backward          they are gathered again; each rank keeps the summed gradients of its own rows

Weights are gathered again when a gradient reaches an output of their block. A flow-matching head reads each layer's
keys and values, and of the last layer nothing else, so that these are outputs of it for FSDP.

The functions return tensors of an unsharded model unchanged, so that one trainer trains both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.model import AnyVLAModel, TrainingOutput
from vla_robot.policy.vla.reason.text_reasoner import RowCache
from vla_robot.policy.vla.safetensors_files import Rows


def shard(model: AnyVLAModel, device: torch.device, count: int, stored: Mapping[str, Rows]) -> None:
    """Shard a model block by block; each rank reads its own rows of the weights, and none ever holds the whole model.

    Args:
        model: on torch's meta device; tensors that have values, such as new adapters, are the same at all ranks.
        device: this rank's device.
        count: number of ranks.
        stored: reads rows of a tensor, by its name in the model before `adapt`; see `Family.rows`.

    Raises:
        CheckpointError: a file ends too early, or holds numbers that are not finite.
    """
    _share_out(model, device, count)
    empty = {name for name, tensor in _tensors(model) if tensor.is_meta}
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    buffers = dict(model.named_buffers())
    for name, tensor in _tensors(model):
        plain = plain_name(name)
        if name in empty or (name in buffers and plain in stored):
            _read(stored[plain], tensor, plain)


def plain_name(name: str) -> str:
    """Return the name that a tensor had before peft put adapters beside it.

    >>> plain_name("q_proj.base_layer.weight")
    'q_proj.weight'
    """
    return name.replace(".base_layer.", ".")


def _tensors(model: AnyVLAModel) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers; of those that are not in a checkpoint, too."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tensor.detach()


def _read(rows: Rows, target: Tensor, name: str) -> None:
    """Read this rank's rows of a tensor."""
    into, first = local(target), first_row(target)
    if into.numel() == 0:
        return
    found = rows(first, first + (len(into) if into.ndim else 1))
    if not found.isfinite().all():
        raise CheckpointError(f"the start policy's '{name}' holds numbers that are not finite. Copy the folder again.")
    into.copy_(found)


def first_row(tensor: Tensor) -> int:
    """Return the number of the first row that this process holds of a tensor that FSDP shares."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh = tensor.device_mesh
    return min(mesh.get_local_rank() * math.ceil(tensor.shape[0] / mesh.size()), tensor.shape[0])


def _share_out(model: AnyVLAModel, device: torch.device, count: int) -> None:
    _look_into_outputs()
    mesh = init_device_mesh(device.type, (count,))
    *others, last = model.layers()
    for block in others:
        fully_shard(block, mesh=mesh)
    last.register_forward_hook(_with_keys_values, with_kwargs=True)
    fully_shard(last, mesh=mesh)
    last.register_forward_hook(_without_keys_values)  # hooks run in the order in which they were registered
    # The default leaves the weights outside the blocks gathered, and a model without gradients would stay so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "answers_match")


def _with_keys_values(
    block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor
) -> tuple[Tensor, ...]:
    """Return a decoder layer's hidden states, and its keys and values if a cache keeps them."""
    caches = (each for each in (*args, *kwargs.values()) if isinstance(each, RowCache))
    return hidden, *(tensor for cache in caches for tensor in cache.tensors[-2:])


def _without_keys_values(block: nn.Module, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0]


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
