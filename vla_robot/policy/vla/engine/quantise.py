"""fp8, int8 and int4: matrices take a quarter, a quarter and an eighth of fp32's memory, and tokens may differ.

fp8 and int8 (torchao) keep one scale for each row of a matrix, int4 (bitsandbytes' NF4) one for each 64 numbers. With
fp8 activations are rounded too (`fp8`); with the others they stay in the policy's precision. Weights that are read by
index (embeddings, the action rows) or small (norms, biases) are not quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.core.errors import PolicyError, unknown
from vla_robot.core.host.optional import require
from vla_robot.policy.vla.engine.compiler import fused
from vla_robot.policy.vla.engine.fp8 import STEP, EightBitMatrix, Rounds, in_rows
from vla_robot.policy.vla.engine.int4 import BLOCK, FourBitMatrix

PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}
"""Quantisation -> the package that does it."""
FP8 = "fp8"
WAYS = (FP8, *PACKAGES)
FP8_CAPABILITY = (8, 9)
"""Compute capability from which a GPU multiplies numbers of fp8: Ada, Hopper, Blackwell."""


def require_quantiser(how: str, device: torch.device) -> None:
    """Raise an error unless weights can be quantised this way on a device here.

    Raises:
        PolicyError: the quantisation is unknown, or there are no kernels for the device.
        MissingDependencyError: its package is absent.
    """
    if how not in WAYS:
        raise PolicyError(unknown("quantisation", how, WAYS))
    if device.type not in ("cpu", "cuda"):
        raise PolicyError(
            f"quantise = '{how}': {PACKAGES.get(how, 'torch')} multiplies on a CPU or with CUDA, not on "
            f"'{device.type}'. Choose device = 'cpu', or leave quantise out."
        )
    if how == FP8:
        _require_fp8(device)
    else:
        require(PACKAGES[how], "quantise", f"quantise = '{how}'")


def _require_fp8(device: torch.device) -> None:
    if device.type == "cuda" and (there := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        raise PolicyError(
            f"quantise = 'fp8' needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell); {device} has "
            f"{there[0]}.{there[1]}. Choose 'int8', or leave quantise out."
        )


type Convert = Callable[[Tensor], Tensor]
"""Maps a matrix to another form of it, which `linear` takes."""


def converter(how: str, device: torch.device, fuse: bool = False) -> Convert:
    """Return how a matrix is quantised; with `fuse`, the rounding of activations for fp8 is compiled.

    Raises:
        PolicyError, MissingDependencyError: as `require_quantiser`.
    """
    require_quantiser(how, device)
    return {FP8: partial(_fp8, rounds=fused(in_rows) if fuse else in_rows), "int8": _int8, "int4": _int4}[how]


def arriving(convert: Convert, device: torch.device) -> Convert:
    """Return a conversion of matrices that may still be in main memory: each is copied to the device by itself.

    So a device need never hold all plain matrices, which may be more than it has room for.
    """
    return lambda matrix: convert(matrix.to(device))


def move_the_rest(model: nn.Module, device: torch.device) -> None:
    """Move what is not on a device yet, in place, tied parameters as one; matrices of fewer bits are there already."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.device not in (device, torch.device("meta")):
                    there = fixed(tensor.detach().to(device)) if isinstance(tensor, nn.Parameter) else tensor.to(device)
                    table[name] = moved.setdefault(id(tensor), there)  # type: ignore[assignment]


def quantise_linears(layers: Iterable[nn.Linear], convert: Convert) -> None:
    """Replace the matrices of linear layers, in place; afterwards they cannot be trained or saved."""
    for layer in layers:
        layer.weight = fixed(convert(layer.weight))


def linears(part: nn.Module | None) -> list[nn.Linear]:
    """Return the linear layers of a part of a model, if it is there."""
    return [module for module in part.modules() if isinstance(module, nn.Linear)] if part is not None else []


def fixed(weight: Tensor) -> nn.Parameter:
    """Return a parameter that is never trained."""
    return nn.Parameter(weight, requires_grad=False)


def _fp8(matrix: Tensor, rounds: Rounds) -> Tensor:
    return matrix if any(side % STEP for side in matrix.shape) else EightBitMatrix.pack(matrix, rounds)


def _int4(matrix: Tensor) -> Tensor:
    return matrix if matrix.numel() % BLOCK else FourBitMatrix.pack(matrix)


def _int8(matrix: Tensor) -> Tensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    holder = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    holder.weight = fixed(matrix.detach())
    quantize_(holder, Int8WeightOnlyConfig())
    return holder.weight.detach()


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors occupy; shared memory is counted once."""
    seen: dict[int, int] = {}
    for tensor in tensors:
        for part in _parts(tensor):
            if part.device.type != "meta":
                storage = part.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _parts(tensor: Any) -> list[Tensor]:
    """Return the plain tensors that a quantised one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]
