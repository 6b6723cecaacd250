"""Measures inference time by stage, and the machine's limits. Used by `vla bench policy`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.models.plain_inference import Baseline
from benchmarks.models.plain_vlm import PlainVLM
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vlm.family import VLMPolicy

BANDWIDTH_BYTES = 256 * 2**20


@dataclass
class Timing:
    """Times of one contender at one batch size.

    Attributes:
        total_ms: one number per inference [ms].
        stages: one per inference; without any stage for a contender other than this package.
        tokens: (B, action_dim), one answer per inference.
    """

    total_ms: list[float] = field(default_factory=list[float])
    stages: list[StageTimer] = field(default_factory=list[StageTimer])
    tokens: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])

    def stages_ms(self) -> dict[str, list[float]]:
        """Return one number per inference by stage [ms]; empty for a contender other than this package."""
        names = dict.fromkeys(name for stages in self.stages for name in stages.ms)
        return {name: [stages.ms[name] for stages in self.stages] for name in names}

    @property
    def passes(self) -> float:
        """Mean number of passes over an answer, without the one that read the prompt."""
        return float(np.mean([stages.passes for stages in self.stages]))

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the whole inference [ms]."""
        return float(np.percentile(self.total_ms, percent))

    def book(self, total_ms: float, stages: StageTimer, tokens: NDArray[np.int64]) -> None:
        """Add one inference."""
        self.total_ms.append(total_ms)
        self.stages.append(stages)
        self.tokens.append(tokens)


Contender = Callable[[int], tuple[NDArray[np.int64], StageTimer]]
"""Maps a round's number to (B, action_dim) tokens and the times of its stages."""


def ours(policy: AnyVLAPolicy, scenes: Sequence[Observation], batch_size: int, action_dim: int) -> Contender:
    """Return this package's inference of a batch, from frames to actions in units."""

    def infer(number: int) -> tuple[NDArray[np.int64], StageTimer]:
        stages = policy.model.timer()
        batch = policy.read(_window(scenes, number, batch_size))
        stages.lap("preprocess")
        tokens = policy.generate(batch, action_dim, stages)
        policy.codec.values[policy.codec.rows(tokens)]
        stages.lap("detokenise")
        return tokens, stages

    return infer


def plain_vlm(policy: VLMPolicy, scenes: Sequence[Observation], dims: int) -> Contender:
    """Return transformers' own inference of one observation, from frames to tokens."""
    baseline = PlainVLM(policy)

    def infer(number: int) -> tuple[NDArray[np.int64], StageTimer]:
        return baseline.tokens(scenes[number % len(scenes)], dims)[None].cpu().numpy(), StageTimer()

    return infer


def plain(
    baseline: Baseline, policy: OpenVLAPolicy, scenes: Sequence[Observation], cameras: Sequence[str], dims: int
) -> Contender:
    """Return the baseline's inference of one observation, from frames to tokens, without making prompt and state."""
    batch = policy.read(scenes)

    def infer(number: int) -> tuple[NDArray[np.int64], StageTimer]:
        index = number % len(scenes)
        images = [scenes[index].images[name] for name in cameras]
        state = None if batch.state is None else batch.state[index : index + 1]
        tokens = baseline.tokens(images, batch.prompts[index], state, dims)
        return tokens[None].cpu().numpy(), StageTimer()

    return infer


def without_stages(contender: Contender) -> Contender:
    """Return the contender without the times of its stages, which a wall clock measures."""

    def infer(number: int) -> tuple[NDArray[np.int64], StageTimer]:
        tokens, stages = contender(number)
        bare = StageTimer()
        bare.passes = stages.passes
        return tokens, bare

    return infer


def _window(scenes: Sequence[Observation], number: int, size: int) -> list[Observation]:
    """Return the scenes of a round; the first one is the same for every size."""
    return [scenes[(number + row) % len(scenes)] for row in range(size)]


def take_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    on_round: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contender once per round, so that other load hits all alike; the first round is not counted.

    Their order is shuffled each round, since the one after a large batch finds its weights evicted from the caches.

    Args:
        contenders: name -> contender.
        rounds: counted rounds.
        on_round: called after each round.
        clock: gives the time [s]; `time.process_time` counts what this process's threads ran, not what they waited.
    """
    timings = {name: Timing() for name in contenders}
    order, rng = list(contenders), np.random.default_rng(0)
    for number in range(-1, rounds):
        rng.shuffle(order)
        for name in order:
            start = clock()
            tokens, stages = contenders[name](max(number, 0))
            elapsed_ms = (clock() - start) * 1e3
            if number >= 0:
                timings[name].book(elapsed_ms, stages, tokens)
        on_round()
    return timings


@torch.inference_mode()
def matmul_flops_per_s(model: OpenVLA, tokens: Mapping[str, int], repeats: int = 5) -> dict[str, float]:
    """Measure the rate of a stage's bare matrix products on this machine, at the stage's own shapes.

    Args:
        model: its linear layers are multiplied with random numbers.
        tokens: stage -> rows of each product.
        repeats: the best of so many runs counts.

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

    return flops / _best_s(once, weights[0].device, repeats)


def memory_bytes_per_s(device: torch.device, repeats: int = 5) -> float:
    """Measure the bandwidth [B/s] of copying a block that no cache holds, in a device's own memory."""
    block = torch.zeros(BANDWIDTH_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    return 2 * BANDWIDTH_BYTES / _best_s(lambda: target.copy_(block), device, repeats)


def _best_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
