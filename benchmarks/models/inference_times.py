"""What takes turns in `vla bench policy`, in torch, and the machine's limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.models.plain_inference import Baseline
from benchmarks.models.plain_vlm import PlainVLM
from benchmarks.models.turns import Contender, window
from vla_robot.core.messages import Observation
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy
from vla_robot.policy.vla.codecs.rows import decoded
from vla_robot.policy.vla.heads.policy import HeadPolicy
from vla_robot.policy.vla.policy import AnyVLAPolicy
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.policy.vlm.family import VLMPolicy

BANDWIDTH_BYTES = 256 * 2**20


def action_dim(policy: AnyVLAPolicy) -> int:
    """Return the numbers of an action, by the policy's first statistics."""
    return len(policy.action_stats(next(iter(policy.statistics))))


def answer_tokens(policy: AnyVLAPolicy) -> int:
    """Return the most tokens of an answer of a policy that says its actions in tokens."""
    return policy.codec.tokens(action_dim(policy))


def ours(policy: AnyVLAPolicy, scenes: Sequence[Observation], batch_size: int) -> Contender:
    """Return this package's inference of a batch, from frames to normalised actions."""
    dim = action_dim(policy)

    def infer(number: int) -> tuple[NDArray[Any], StageTimer]:
        stages = policy.model.timer()
        seen = window(scenes, number, batch_size)
        batch = policy.read(seen)
        stages.lap("preprocess")
        if isinstance(policy, HeadPolicy):
            return policy.predict(batch, np.array([o.step for o in seen], dtype=np.int64), stages), stages
        tokens = policy.generate(batch, answer_tokens(policy), stages)
        for row in tokens:
            decoded(policy.codec, row, dim)
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
