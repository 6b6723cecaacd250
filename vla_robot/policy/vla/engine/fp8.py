"""A matrix of 8-bit floating-point numbers that can replace the plain weight of a linear layer.

Weights are e4m3 with one fp32 scale for each row, made once. Activations are rounded likewise, with one scale for each
token, in each product:

    y[t, n] = scale_x[t] * scale_w[n] * sum over k of x8[t, k] * w8[n, k]      summed in fp32

A GPU of compute capability 8.9 or more multiplies such numbers at twice the rate of bf16 (`torch._scaled_mm`). A CPU
computes the same formula from unpacked numbers, which is slow: there it says how a policy will act in fp8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vla_robot.policy.vla.engine.packed import PackedMatrix

LARGEST = 448.0
"""Largest number of e4m3."""
STEP = 16
"""Rows and columns of a matrix that the product takes are multiples of this."""

type Rounds = Callable[[Tensor], tuple[Tensor, Tensor]]


def in_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round (R, K) numbers to e4m3, with an (R, 1) fp32 scale for each row; a row of zeros has a tiny one."""
    x32 = x.float()
    scale = (x32.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=1e-12)
    return (x32 / scale).to(torch.float8_e4m3fn), scale


class EightBitMatrix(PackedMatrix):
    """See `PackedMatrix`."""

    PARTS = ("numbers", "scales")
    BITS = "eight"

    numbers: Tensor
    """(N, K) float8_e4m3fn."""
    scales: Tensor
    """(N, 1) float32."""
    rounds: Rounds
    """Rounds the activations; `in_rows`, or its fused form."""

    @staticmethod
    def pack(matrix: Tensor, rounds: Rounds = in_rows) -> EightBitMatrix:
        """Round a matrix.

        Args:
            matrix: (N, K) floating point, both multiples of STEP.
            rounds: rounds the activations of a product.
        """
        made = EightBitMatrix.like(matrix)
        made.numbers, made.scales = in_rows(matrix.detach())
        made.rounds = rounds
        return made

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `PackedMatrix`."""
        values, scales = self.rounds(x.reshape(-1, x.shape[-1]))
        if x.device.type == "cuda":
            kind = torch.bfloat16  # the only one that rows with scales of their own come out in
            y = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
                values, self.numbers.t(), scales, self.scales.t(), None if bias is None else bias.to(kind),
                out_dtype=kind, use_fast_accum=True,
            )  # fmt: skip
        else:
            y = (values.float() @ self.numbers.float().t()) * scales * self.scales.t()
            y = y if bias is None else y + bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])
