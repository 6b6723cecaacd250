"""Table of GPUs: memory, its bandwidth, and the rate of matrix products, for arithmetic before one buys or rents."""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.core.errors import RecipeError, unknown


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        model: its name.
        memory_gb: size of its memory [GB]; a Jetson shares it with the CPU.
        bandwidth_gb_s: rate at which its memory is read [GB/s].
        bf16_tflops: rate of dense matrix products in bfloat16, summed in fp32 [TFLOP/s].
        fp8_tflops: the same in fp8; None for a card without it.
        source: where bandwidth and rates are from.
    """

    model: str
    memory_gb: float
    bandwidth_gb_s: float
    bf16_tflops: float
    fp8_tflops: float | None
    source: str = "data sheet"


CARDS: dict[str, Card] = {
    "h100": Card("NVIDIA H100 SXM", 80, 3000, 798, 1597, "measured; data sheet 3350 GB/s, 989 and 1979 TFLOP/s"),
    "h200": Card("NVIDIA H200 SXM", 141, 4800, 989, 1979),
    "b200": Card("NVIDIA B200", 180, 8000, 2250, 4500),
    "a100": Card("NVIDIA A100 SXM 80 GB", 80, 2039, 312, None),
    "a100-40": Card("NVIDIA A100 SXM 40 GB", 40, 1555, 312, None),
    "l40s": Card("NVIDIA L40S", 48, 864, 362, 733),
    "4090": Card("NVIDIA GeForce RTX 4090", 24, 1008, 165, 330),
    "orin": Card("NVIDIA Jetson AGX Orin 64 GB", 64, 205, 42, None, "data sheet; bf16 derived from int8"),
    "thor": Card("NVIDIA Jetson AGX Thor", 128, 273, 258, 517, "data sheet; rates derived from 2070 sparse in fp4"),
}


def card_named(name: str) -> Card:
    """Return a card by its short name. Raises RecipeError for an unknown one."""
    if name.lower() not in CARDS:
        raise RecipeError(unknown("card", name, CARDS))
    return CARDS[name.lower()]
