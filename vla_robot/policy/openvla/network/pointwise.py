"""The work between a layer's matrix products: each function here is one kernel once it is fused.

    decoder   norm  [qkv]  rotate  attention  [out]  add_norm  [gate, up]  gate  [down]  add_norm
    tower     norm  [qkv]  attention  [out]  scaled_add_norm  [fc1]  gelu  [fc2]  scaled_add_norm

Run one by one, these operations read and write every activation six times in a norm alone. `fused` lets torch.compile
join them; matrix products and attention stay the libraries' own. Sums are added in another order, so the last bits of
a result may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from vla_robot.policy.vla.engine.compiler import fused


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Apply the root mean square norm in the fewest operations; as in Llama, the mean is fp32 in any precision."""
    x32 = x.float()
    norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    scale = torch.rsqrt(torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]))  # 1 / sqrt(mean(x^2) + eps)
    return weight * (x32 * scale).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding in fp32 in any precision: bf16 tables changed about 1 % of actions."""
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return torch.addcmul(x32 * cos, torch.cat([second, first], dim=-1), sin).to(x.dtype)


def gate(gate_up: Tensor) -> Tensor:
    """Map (..., 2 F) to (..., F): the first half, through SiLU, times the second."""
    first, second = gate_up.chunk(2, dim=-1)
    return silu(first) * second


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual stream after an addition, and its norm."""
    x = x + more
    return x, rms_norm(x, weight, eps)


def scaled_add_norm(
    x: Tensor, more: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return a tower's residual stream after an addition, with LayerScale or without, and its layer norm."""
    x = x + (more if scale is None else more * scale)
    return x, layer_norm(x, weight.shape, weight, bias, eps)


@dataclass(frozen=True)
class Pointwise:
    """The functions that a decoder uses, plain or fused."""

    norm: Callable[[Tensor, Tensor, Tensor], Tensor] = rms_norm
    add_norm: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = add_norm
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
    gate: Callable[[Tensor], Tensor] = gate


def fused_pointwise() -> Pointwise:
    """Return the functions, each compiled when it first runs."""
    return Pointwise(fused(rms_norm), fused(add_norm), fused(rotate), fused(gate))
