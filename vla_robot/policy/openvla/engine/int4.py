"""A matrix of 4-bit numbers that can replace the plain weight of a linear layer.

bitsandbytes packs it as NF4 (Dettmers et al., QLoRA, 2023): 16 levels that suit normally distributed weights, with one
scale for each block of 64. It has kernels for CPUs and for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Neighbouring numbers of a row-major matrix that share a scale."""


class FourBitMatrix(Tensor):
    """(N, K) weights of a linear map. It supports products, and queries of shape, dtype and device."""

    packed: Tensor
    """(N K / 2, 1) uint8, two numbers per byte."""
    scales: Tensor
    """(N K / BLOCK,) float32."""
    state: Any
    """bitsandbytes' quantisation state of both, for the matrix or for its numbers in rows of BLOCK; see `pack`."""

    @staticmethod
    def pack(matrix: Tensor) -> FourBitMatrix:
        """Quantise a matrix.

        bitsandbytes 0.50 unpacks a matrix wrongly on CPUs with AVX-512 where its rows are not whole blocks, such as the
        4304 columns of SigLIP: it takes the scale of another block. Such a matrix is packed as rows of one block each.

        Args:
            matrix: (N, K) floating point, N K a multiple of BLOCK.
        """
        from bitsandbytes.functional import quantize_4bit  # pyright: ignore[reportMissingImports]

        plain = matrix.detach().contiguous()
        rows = plain if plain.shape[1] % BLOCK == 0 else plain.view(-1, BLOCK)
        packed, state = quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4")
        made: Any = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            FourBitMatrix, matrix.shape, dtype=matrix.dtype, device=matrix.device
        )
        made.packed, made.scales, made.state = packed, state.absmax, state
        return made

    def plain(self) -> Tensor:
        """Return the (N, K) dequantised numbers."""
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

        return dequantize_4bit(self.packed, self.state).view(self.shape)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Return the names of the plain tensors it consists of, as torch requires."""
        return ["packed", "scales"], None

    def __repr__(self, *, tensor_contents: None = None) -> str:
        return f"FourBitMatrix{tuple(self.shape)}"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"a matrix of four bits cannot do {func}")


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    from bitsandbytes import matmul_4bit  # pyright: ignore[reportMissingImports]

    if weight.shape[1] % BLOCK:
        return functional.linear(x, weight.plain(), bias)
    return matmul_4bit(x, weight.packed, weight.state, bias=bias)
