"""A matrix of 4-bit numbers that can replace the plain weight of a linear layer.

bitsandbytes packs it as NF4 (Dettmers et al., QLoRA, 2023): 16 levels that suit normally distributed weights, with one
scale for each block of 64. It has kernels for CPUs and for CUDA.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from vla_robot.policy.vla.engine.packed import PackedMatrix

BLOCK = 64
"""Neighbouring numbers of a row-major matrix that share a scale."""


class FourBitMatrix(PackedMatrix):
    """See `PackedMatrix`."""

    PARTS = ("packed", "scales")
    BITS = "four"

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
        made = FourBitMatrix.like(matrix)
        made.packed, made.scales, made.state = packed, state.absmax, state
        return made

    def plain(self) -> Tensor:
        """Return the (N, K) dequantised numbers."""
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

        return dequantize_4bit(self.packed, self.state).view(self.shape)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `PackedMatrix`."""
        from bitsandbytes import matmul_4bit  # pyright: ignore[reportMissingImports]

        if self.shape[1] % BLOCK:
            return functional.linear(x, self.plain(), bias)
        return matmul_4bit(x, self.packed, self.state, bias=bias)
