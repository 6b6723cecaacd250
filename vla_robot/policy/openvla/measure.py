"""How long inference takes, by stage, and what the machine could do at best. Used by `vla bench policy`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.baseline import Baseline
from vla_robot.policy.openvla.inputs import Batch, Stages
from vla_robot.policy.openvla.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy

BANDWIDTH_BYTES = 256 * 2**20


@dataclass
class Timing:
    """Times of one contender at one batch size.

    Attributes:
        total_ms: one number an inference.
        stages_ms: stage -> one number an inference; empty for a contender that is not ours.
        tokens: (B, action_dim), the last answer.
    """

    total_ms: list[float] = field(default_factory=list[float])
    stages_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    tokens: NDArray[np.int64] | None = None

    def percentile_ms(self, percent: float) -> float:
        """Of the whole inference."""
        return float(np.percentile(self.total_ms, percent))


Contender = Callable[[], tuple[NDArray[np.int64], Mapping[str, float]]]
"""One inference: (B, action_dim) tokens and the ms of its stages."""


def ours(policy: OpenVLAPolicy, observations: Sequence[Observation], action_dim: int) -> Contender:
    """Our engine on a batch, from frames to actions in units."""

    def infer() -> tuple[NDArray[np.int64], Mapping[str, float]]:
        stages = Stages()
        batch = policy.read(observations)
        stages.done("preprocess")
        tokens = policy.generate(batch, action_dim, stages)
        policy.action_tokens.decode(tokens)
        stages.done("detokenise")
        return tokens, stages.ms

    return infer


def plain(
    baseline: Baseline, policy: OpenVLAPolicy, observations: Sequence[Observation], cameras: Sequence[str], dims: int
) -> Contender:
    """The baseline on the same observations, one after the other, from frames to tokens."""
    batch = policy.read(observations)

    def infer() -> tuple[NDArray[np.int64], Mapping[str, float]]:
        rows = [baseline.tokens(*_row(batch, observations[i], i, cameras), dims) for i in range(len(observations))]
        return torch.stack(rows).cpu().numpy(), {}

    return infer


def _row(
    batch: Batch, observation: Observation, index: int, cameras: Sequence[str]
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64], Tensor | None]:
    state = None if batch.state is None else batch.state[index : index + 1]
    return [observation.images[name] for name in cameras], batch.prompts[index], state


def take_turns(contenders: Mapping[str, Contender], rounds: int, on_round: Callable[[], None]) -> dict[str, Timing]:
    """Every contender once a round, so that what else the machine does hits all alike; a first round is not counted."""
    timings = {name: Timing() for name in contenders}
    for counted in [False] + [True] * rounds:
        for name, infer in contenders.items():
            start = time.perf_counter()
            tokens, stages_ms = infer()
            elapsed_ms = (time.perf_counter() - start) * 1e3
            if counted:
                _book(timings[name], elapsed_ms, stages_ms, tokens)
        on_round()
    return timings


def _book(timing: Timing, elapsed_ms: float, stages_ms: Mapping[str, float], tokens: NDArray[np.int64]) -> None:
    timing.total_ms.append(elapsed_ms)
    timing.tokens = tokens
    for stage, ms in stages_ms.items():
        timing.stages_ms.setdefault(stage, []).append(ms)


@torch.inference_mode()
def matmul_flops_per_s(model: OpenVLA, tokens: Mapping[str, int], repeats: int = 5) -> dict[str, float]:
    """What the bare matrix products of a stage reach on this machine at the stage's own shapes.

    Args:
        model: its linear layers are multiplied with noise.
        tokens: stage -> rows of each product.
        repeats: the best of so many.

    Returns:
        Stage -> operations per second.
    """
    parts: dict[str, nn.Module] = {
        "towers": model.vision_backbone,
        "projector": model.projector,
        "prefill": model.language_model.model.layers,
        "decode": model.language_model.model.layers,
    }
    return {stage: _rate(parts[stage], rows, repeats) for stage, rows in tokens.items()}


def _rate(module: nn.Module, rows: int, repeats: int) -> float:
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w) for w in weights}
    flops = sum(2.0 * rows * w.numel() for w in weights)

    def once() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T)

    return flops / _best_s(once, repeats)


def memory_bytes_per_s(repeats: int = 5) -> float:
    """Reading and writing a block that no cache holds."""
    block = torch.zeros(BANDWIDTH_BYTES, dtype=torch.uint8)
    target = torch.empty_like(block)
    return 2 * BANDWIDTH_BYTES / _best_s(lambda: target.copy_(block), repeats)


def _best_s(work: Callable[[], object], repeats: int) -> float:
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
