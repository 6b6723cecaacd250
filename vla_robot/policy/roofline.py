"""The shortest time that a card needs for an inference, and the memory: arithmetic, without the card.

A stage takes at least the time of its operations at the card's rate, and at least the time in which its weights and the
cache are read from memory; the longer of the two is its floor. No launch, no copy and no preprocessing is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_robot.policy.cards import Card
from vla_robot.policy.outline import Outline

RESERVED_GB = 1.5
"""Memory of the driver's context, libraries and work space [GB]."""

CORRECTIONS = 2
"""Passes that correct the guessed tokens of an action; a trained policy needs one to two (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Precision:
    """How weights are stored and multiplied.

    Attributes:
        name: "bf16", "fp8", "int8" or "int4".
        weight_bytes: bytes of a weight of a matrix; everything else has two.
        in_fp8: whether products are computed in fp8; else in bf16, to which fewer bits are unpacked.
    """

    name: str
    weight_bytes: float
    in_fp8: bool = False


PRECISIONS = (
    Precision("bf16", 2),
    Precision("fp8", 1, in_fp8=True),
    Precision("int8", 1),
    Precision("int4", 0.5 + 4 / 64),
)
"""int4 has a scale of 4 bytes for every 64 numbers."""


@dataclass(frozen=True)
class Cost:
    """What one stage asks of a computer, for a whole batch.

    Attributes:
        flops: operations; a multiplication or an addition is one.
        weight_bytes: size of the weights, which are read at least once [bytes].
        cache_bytes: keys and values that are read [bytes].
    """

    flops: float
    weight_bytes: float
    cache_bytes: float = 0.0

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Return the least time [s] at a rate of operations and of reading."""
        return max(self.flops / flops_per_s, (self.weight_bytes + self.cache_bytes) / bytes_per_s)


def costs_of(outline: Outline, batch: int, text_tokens: int, answer: int, weight_bytes: float = 2.0) -> dict[str, Cost]:
    """Return the costs of "towers", "projector", "prefill" and "decode", which is one pass over the guessed answer.

    The prefill reads a guess of the answer with the prompt.

    Args:
        outline: of the model.
        batch: observations.
        text_tokens: tokens of the instruction's prompt.
        answer: tokens of an action.
        weight_bytes: bytes of a matrix's weight.
    """
    prompt, guess = outline.image_tokens + text_tokens, answer - 1
    first, decoder = prompt + guess, outline.layers + outline.head
    causal = 4.0 * outline.attention * first * (first + 1) / 2  # a query attends to half of the keys on average
    prefill = 2.0 * outline.layers * first + causal + 2.0 * outline.head * answer
    decode = guess * (2.0 * decoder + 4.0 * outline.attention * (prompt + answer / 2))
    towers = outline.frames * sum(tower.flops() for tower in outline.towers)
    in_towers = sum(tower.weights for tower in outline.towers)
    patches = outline.image_tokens - bool(outline.state)
    projected = 2.0 * (outline.projector * patches + outline.state)
    return {
        "towers": Cost(batch * towers, in_towers * weight_bytes),
        "projector": Cost(batch * projected, (outline.projector + outline.state) * weight_bytes),
        "prefill": Cost(batch * prefill, decoder * weight_bytes),
        "decode": Cost(batch * decode, decoder * weight_bytes, 2.0 * batch * outline.cached * first),
    }


@dataclass(frozen=True)
class Floor:
    """Floors of one batch.

    Attributes:
        towers_ms: vision towers [ms].
        projector_ms: projector [ms].
        prefill_ms: the pass over the prompt and a guess of the action [ms].
        correction_ms: one pass over the guess [ms].
        memory_gb: weights, cache and work space [GB].
        batch: observations.
    """

    towers_ms: float
    projector_ms: float
    prefill_ms: float
    correction_ms: float
    memory_gb: float
    batch: int

    def act_ms(self, corrections: int = CORRECTIONS) -> float:
        """Return the floor of an answer [ms]."""
        return self.towers_ms + self.projector_ms + self.prefill_ms + corrections * self.correction_ms

    def per_s(self, corrections: int = CORRECTIONS) -> float:
        """Return the most answers per second, over the whole batch."""
        return 1e3 * self.batch / self.act_ms(corrections)


def floor_of(
    outline: Outline, card: Card, precision: Precision, batch: int = 1, text_tokens: int = 20, answer: int = 7
) -> Floor:
    """Return the floors of a batch.

    Args:
        outline: of the model.
        card: the GPU.
        precision: of the weights.
        batch: observations.
        text_tokens: tokens of the instruction's prompt.
        answer: tokens of an action.
    """
    rate = (card.fp8_tflops if precision.in_fp8 and card.fp8_tflops else card.bf16_tflops) * 1e12
    stages = costs_of(outline, batch, text_tokens, answer, precision.weight_bytes)
    least_ms = {name: cost.seconds(rate, card.bandwidth_gb_s * 1e9) * 1e3 for name, cost in stages.items()}
    weights = outline.matrices * precision.weight_bytes + 2.0 * outline.other
    return Floor(
        towers_ms=least_ms["towers"],
        projector_ms=least_ms["projector"],
        prefill_ms=least_ms["prefill"],
        correction_ms=least_ms["decode"],
        memory_gb=(weights + stages["decode"].cache_bytes) / 1e9 + RESERVED_GB,
        batch=batch,
    )
