"""The phases of `vla bench gpu`: each measures one thing, and returns numbers by name."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.by_rule import (
    TEXT_TOKENS,
    TOKENS,
    batch_of,
    by_transformers,
    config_of,
    model_by_rule,
    policy_of,
    row_of,
)
from vla_robot.policy.cards import Card
from vla_robot.policy.openvla.engine.chunk_regression import ChunkRegression
from vla_robot.policy.openvla.network.parallel_decoding import ParallelGenerator
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.roofline import PRECISIONS, floor_of
from vla_robot.policy.vla.engine.compiler import is_fused
from vla_robot.policy.vla.heads.l1 import L1Head
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.model import IGNORE
from vla_robot.policy.vla.reason.stage_timer import StageTimer
from vla_robot.recipe.finetune import DemosFinetuneRecipe
from vla_robot.train.batches.frames import Batch as TrainingBatch
from vla_robot.train.lora import adapt
from vla_robot.train.parallel.ddp import Ranks
from vla_robot.train.parallel.memory_plan import plan_memory
from vla_robot.train.sparse_last_layer import only_what_is_read
from vla_robot.train.trainer import Trainer

TRANSFORMERS_UP_TO = 4
"""Largest batch that is also measured with transformers' `generate`."""

BF16 = PRECISIONS[0]

type Numbers = dict[str, Any]


@dataclass
class Bench:
    """What the phases share.

    Attributes:
        device: the GPU, or the CPU for a trial of the check itself.
        tiny: small models and few repetitions, whose times mean nothing.
        nano: folder of the shipped policy.
        flops_per_s: measured rate of bf16 matrix products; set by `machine`.
        bytes_per_s: measured rate of a large copy, read and written; set by `machine`.
    """

    device: torch.device
    tiny: bool
    nano: Path
    flops_per_s: float = 1e12
    bytes_per_s: float = 1e11
    large: OpenVLAPolicy | None = None

    @property
    def can_fuse(self) -> bool:
        return is_fused(None, self.device)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def card(self) -> Card:
        """Return this card, with the rates that `machine` measured; its memory is not asked for."""
        return Card("this one", math.inf, self.bytes_per_s / 1e9, self.flops_per_s / 1e12, None, "measured")

    def policy(self) -> OpenVLAPolicy:
        """Return the policy of openvla-7b's sizes in bf16; made once."""
        if self.large is None:
            self.large = policy_of(model_by_rule(config_of(self.tiny), torch.bfloat16, self.device))
        return self.large

    def ms(self, work: Callable[[], object], repeats: int = 15, warm: int = 3) -> float:
        """Return the median time of some work, started and finished [ms]."""
        times: list[float] = []
        for number in range(1 if self.tiny else warm + repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            if self.tiny or number >= warm:
                times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def peak_gb(self) -> float | None:
        """Return the most memory in use since the last call [GB]; None on a CPU."""
        if not self.on_cuda:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def machine(bench: Bench) -> Numbers:
    """Measure the ceilings of this card: matrix products and copies."""
    side, size = (256, 2**22) if bench.tiny else (8192, 2**30)
    x = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    y = torch.empty_like(x)
    p = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    bench.bytes_per_s = 2 * size / bench.ms(lambda: y.copy_(x)) * 1e3
    bench.flops_per_s = 2 * side**3 / bench.ms(lambda: p @ p) * 1e3
    name = torch.cuda.get_device_name(bench.device) if bench.on_cuda else "cpu"
    return {"device": name, "bf16_tflops": bench.flops_per_s / 1e12, "copy_tb_s": bench.bytes_per_s / 1e12}


def shipped(bench: Bench) -> Numbers:
    """Compare the shipped policy's fp32 tokens with those of the CPU, which tests hold to the reference."""
    cpu, here = (load(bench.nano, Loading(device=d, statistics_key="lift")) for d in ("cpu", str(bench.device)))
    rows = 3 if bench.tiny else 16
    rng = np.random.default_rng(0)
    size, cameras = here.model.config.image_size, here.model.config.num_images
    images = [[rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(cameras)] for _ in range(rows)]
    ids = [np.r_[1, rng.integers(3, 400, 12 + row % 5)].astype(np.int64) for row in range(rows)]
    state = rng.uniform(-1, 1, (rows, here.model.config.proprio_dim or 0))
    wanted = cpu.generate_tokens(images, ids, state)
    found: Numbers = {}
    for in_blocks in (True, False):
        here.in_blocks = in_blocks
        found["blocks" if in_blocks else "eager"] = _share(here.generate_tokens(images, ids, state), wanted)
    return found


def small(bench: Bench) -> Numbers:
    """Compare a small fp32 model's tokens with transformers' `generate`, by row, ragged and in blocks."""
    policy = policy_of(model_by_rule(config_of(small=True), torch.float32, bench.device))
    return _parity(policy, 2 if bench.tiny else 8)


def large(bench: Bench) -> Numbers:
    """Compare the large bf16 model's tokens in the same way. Near ties may differ: the smallest lead is told."""
    policy = bench.policy()
    with torch.inference_mode():
        logits = policy._first_logits(batch_of(policy, 4)).float()
    best = logits.topk(2).values
    return {**_parity(policy, 2 if bench.tiny else 4), "smallest_lead": float((best[:, 0] - best[:, 1]).min())}


def _parity(policy: OpenVLAPolicy, rows: int) -> Numbers:
    even, ragged = batch_of(policy, rows), batch_of(policy, rows, (14, 20, 17), seed=1)
    policy.in_blocks = False
    eager, uneven = policy.generate(even, TOKENS), policy.generate(ragged, TOKENS)
    alone = np.concatenate([policy.generate(row_of(ragged, row), TOKENS) for row in range(rows)])
    policy.in_blocks = True
    return {
        "eager_vs_transformers": _share(eager, by_transformers(policy, even)),
        "blocks_vs_eager": _share(policy.generate(even, TOKENS), eager),
        "ragged_blocks_vs_eager": _share(policy.generate(ragged, TOKENS), uneven),
        "ragged_vs_alone": _share(uneven, alone),
        "distinct": len(np.unique(eager)),
    }


def _share(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    return float((one == other).mean())


def speed(bench: Bench, rows: int) -> Numbers:
    """Time a batch by stage: plain, in blocks, in fused blocks and with transformers, beside the card's least time."""
    policy, model = bench.policy(), bench.policy().model
    batch = batch_of(policy, rows)
    bench.peak_gb()
    found: Numbers = {"batch": rows}
    for name in ("eager", "blocks", "fused") if bench.can_fuse else ("eager", "blocks"):
        policy.fuse(name == "fused")
        policy.in_blocks = name != "eager"
        found[f"{name}_ms"] = bench.ms(lambda: policy.generate(batch, TOKENS))
        stages = model.timer()
        policy.generate(batch, TOKENS, stages)
        found |= {f"{name}_{stage}_ms": ms for stage, ms in stages.ms.items()}
        found["passes"] = stages.passes
    if rows <= TRANSFORMERS_UP_TO:
        found["transformers_ms"] = bench.ms(lambda: by_transformers(policy, batch), repeats=3, warm=1)
    floor, best = _floor_ms(bench, rows, found["passes"]), min(found["blocks_ms"], found.get("fused_ms", math.inf))
    return found | {
        "floor_ms": floor,
        "of_floor": floor / best,
        "actions_per_s": rows / best * 1e3,
        "peak_gb": bench.peak_gb(),
    }


def _floor_ms(bench: Bench, rows: int, passes: int) -> float:
    """Return the least time by the arithmetic of `vla plan`, at the rates that were measured."""
    return floor_of(bench.policy().outline, bench.card(), BF16, rows, TEXT_TOKENS, TOKENS).act_ms(passes)


def fp8(bench: Bench) -> Numbers:
    """Time a batch with weights and activations in fp8, and compare its tokens with those of bf16."""
    policy, rows = bench.policy(), (1, 2) if bench.tiny else (1, 16)
    policy.in_blocks = True
    policy.fuse(bench.can_fuse)
    batches = {n: batch_of(policy, n) for n in rows}
    wanted = {n: policy.generate(batch, TOKENS) for n, batch in batches.items()}
    policy.quantise("fp8")
    bench.large = None  # no later phase may find it in fp8
    found: Numbers = {}
    for n, batch in batches.items():
        found[f"batch_{n}_equal"] = _share(policy.generate(batch, TOKENS), wanted[n])
        found[f"batch_{n}_ms"] = bench.ms(lambda batch=batch: policy.generate(batch, TOKENS))
    return found


def oft(bench: Bench) -> Numbers:
    """Time a chunk of 8 actions by regression, two cameras and the arm's state; blocks and plain give one answer."""
    ours = model_by_rule(config_of(bench.tiny, num_images=2, proprio_dim=8), torch.bfloat16, bench.device)
    policy = policy_of(ours, fuse=bench.can_fuse)
    head = L1Head(ours.language_model.config.hidden_size, 7).to(bench.device, torch.bfloat16).eval()
    generator = ParallelGenerator(policy._decoder, head, 8, 7, eos=2)
    regression = ChunkRegression(ours, generator)
    found: Numbers = {}
    for rows in (1, 2) if bench.tiny else (1, 16):
        batch, answers = batch_of(policy, rows), dict[bool, Any]()
        for in_blocks in (False, True):
            regression.in_blocks = in_blocks
            answers[in_blocks] = regression(batch, StageTimer()).float().cpu()
        ms = bench.ms(lambda batch=batch: regression(batch, StageTimer()).cpu(), repeats=7)
        found |= {f"batch_{rows}_ms": ms, f"batch_{rows}_actions_per_s": 8 * rows / ms * 1e3}
        found[f"batch_{rows}_largest_difference"] = float((answers[True] - answers[False]).abs().max())
        text = TEXT_TOKENS + 8 * 7 + 1
        floor = floor_of(policy.outline, bench.card(), BF16, rows, text, answer=1).act_ms(0)
        found |= {f"batch_{rows}_floor_ms": floor, f"batch_{rows}_of_floor": floor / ms}
    return found


def lora(bench: Bench) -> Numbers:
    """Take LoRA steps in bf16, and compare the memory with the plan."""
    rows, steps = (2, 1) if bench.tiny else (8, 5)
    recipe = DemosFinetuneRecipe(
        data=(Path("none"),), lora_rank=32, bf16=True, batch_size=rows, steps=100, bin_smoothing=0.0, warmup_steps=1
    )
    model = model_by_rule(config_of(bench.tiny), torch.float32, bench.device)
    model = adapt(model, recipe).to(bench.device)
    only_what_is_read(model)
    plan = plan_memory(model, recipe, bench.device)
    bench.peak_gb()
    with TemporaryDirectory() as out:
        data: Any = _OneBatch(_training_batch(model, rows))
        trainer = Trainer(recipe, Path(out), model, data, Ranks())
        losses = [trainer.advance()["loss"]]
        bench.wait()
        start = time.perf_counter()
        losses += [trainer.advance()["loss"] for _ in range(steps)]
        bench.wait()
        seconds = time.perf_counter() - start
        trainer.close()
    return {
        "samples_per_s": rows * steps / seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "planned_gb": plan.needed / 1e9,
        "peak_gb": bench.peak_gb(),
    }


@dataclass(frozen=True)
class _OneBatch:
    rows: TrainingBatch

    def batch(self, step: int) -> TrainingBatch:
        return self.rows


def _training_batch(model: Any, rows: int) -> TrainingBatch:
    ids = torch.randint(3, 30_000, (rows, 40))
    ids[:, 32:39] = model.config.action_vocab_end - 100
    labels = ids.clone()
    labels[:, :32] = IGNORE
    return TrainingBatch(torch.randn(rows, *model.pixel_shape()), ids, labels, None)


def phases_of(bench: Bench) -> Mapping[str, tuple[Callable[[], Numbers], float]]:
    """Return phase -> its work and about how long it takes on an H100 [s], in their order."""
    batches = (1, 2) if bench.tiny else (1, 4, 16, 64)
    phases: dict[str, tuple[Callable[[], Numbers], float]] = {
        "machine": (lambda: machine(bench), 5),
        "shipped policy": (lambda: shipped(bench), 15),
        "small model": (lambda: small(bench), 10),
        "7B tokens": (lambda: large(bench), 30),
    }
    for rows in batches:
        phases[f"7B batch {rows}"] = (lambda rows=rows: speed(bench, rows), 25)
    phases["7B in fp8"] = (lambda: fp8(bench), 25)
    phases["OFT"] = (lambda: oft(bench), 30)
    phases["LoRA"] = (lambda: _after_the_large_one(bench), 60)
    return phases


def _after_the_large_one(bench: Bench) -> Numbers:
    bench.large = None
    if bench.on_cuda:
        torch.cuda.empty_cache()
    return lora(bench)
