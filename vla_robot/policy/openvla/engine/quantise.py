"""Weight-only int8 and int4: matrices take a quarter and an eighth of fp32's memory, and tokens may differ.

int8 (torchao) keeps one scale for each row of a matrix, int4 (bitsandbytes' NF4) one for each 64 numbers; activations
stay in the policy's precision. Weights that are read by index (embeddings, the action rows) or small (norms, biases)
are not quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.core.errors import PolicyError, unknown
from vla_robot.core.host.optional import require
from vla_robot.policy.openvla.engine.int4 import BLOCK, FourBitMatrix
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.reason import Decoder

PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}
"""Quantisation -> the package that does it."""


def require_quantiser(how: str, device: torch.device) -> None:
    """Raise an error unless weights can be quantised this way on a device here.

    Raises:
        PolicyError: the quantisation is unknown, or its package has no kernels for the device.
        MissingDependencyError: its package is absent.
    """
    if how not in PACKAGES:
        raise PolicyError(unknown("quantisation", how, list(PACKAGES)))
    if device.type not in ("cpu", "cuda"):
        raise PolicyError(
            f"quantise = '{how}': {PACKAGES[how]} multiplies on a CPU or with CUDA, not on '{device.type}'. Choose "
            "device = 'cpu', or leave quantise out."
        )
    require(PACKAGES[how], "quantise", f"quantise = '{how}'")


def quantise(model: OpenVLA, decoder: Decoder, how: str) -> None:
    """Replace the matrices of the towers, the projectors and the decoder, in place.

    Afterwards the model acts, but cannot be trained or saved: the language model's own matrices are gone.

    Raises:
        PolicyError, MissingDependencyError: as `require_quantiser`.
    """
    require_quantiser(how, model.weight.device)
    convert: Callable[[Tensor], Tensor] = _int4 if how == "int4" else _int8
    for part in (model.vision_backbone, model.projector, model.proprio_projector):
        for module in _linears(part):
            module.weight = _fixed(convert(module.weight))
    for module in _linears(model.language_model.model.layers):
        # The layer's shape is still read; its numbers live on in the decoder.
        module.weight = _fixed(module.weight.detach().to("meta"))
    decoder.convert(convert)


def _linears(part: nn.Module | None) -> list[nn.Linear]:
    return [module for module in part.modules() if isinstance(module, nn.Linear)] if part is not None else []


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _int4(matrix: Tensor) -> Tensor:
    return matrix if matrix.numel() % BLOCK else FourBitMatrix.pack(matrix)


def _int8(matrix: Tensor) -> Tensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    holder = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    holder.weight = _fixed(matrix.detach())
    quantize_(holder, Int8WeightOnlyConfig())
    return holder.weight.detach()


def memory_bytes(model: OpenVLA, decoder: Decoder) -> int:
    """Return the bytes that the weights occupy; shared memory is counted once."""
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers(), *decoder.matrices()):
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
