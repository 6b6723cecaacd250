"""What an inference starts on a GPU, counted with fake tensors: `python -m benchmarks.gpu.counts`.

reads    the program stops until the GPU has finished
copies   between main memory and the GPU
kernels  what the GPU is asked to start, by stage; a small batch in eager mode takes as long as its kernels are many
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.by_rule import config_of, policy_of
from benchmarks.gpu.fake_cuda import Answer, FakeCuda, Tally
from vla_robot.core.messages import Observation
from vla_robot.policy.families import family_of
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.policy import OpenVLAPolicy, load
from vla_robot.policy.openvla.prompt import OpenVLAPrompts
from vla_robot.policy.vla.engine.norms import fuse_pointwise
from vla_robot.policy.vla.loading import Loading
from vla_robot.policy.vla.policy import AnyVLAPolicy, VLAPolicy
from vla_robot.recipe.policy import VLARecipe
from vla_robot.recipe.policy_source import find_policy


@dataclass(frozen=True)
class Drive:
    """A fake inference.

    Attributes:
        rows: observations of the batch.
        corrections: passes over the guessed answer until it is settled.
        ragged: whether the prompts have different lengths.
    """

    rows: int = 1
    corrections: int = 1
    ragged: bool = False

    def answers(self, in_blocks: bool = False) -> dict[str, Answer]:
        """Return what the functions that read a number are told; blocks do not ask before the first correction."""
        return {
            "is_settled": after(self.corrections - in_blocks),
            "padded_left": self.ragged,
            "check_image_sensitivity": False,
        }


def after(corrections: int) -> Callable[[], bool]:
    """Return a function that says False so many times, then True, and begins again."""
    asked = 0

    def settled() -> bool:
        nonlocal asked
        asked = 0 if asked == corrections else asked + 1
        return asked == 0

    return settled


def nano(folder: Path, dtype: str = "bfloat16", fuse: bool | None = None) -> OpenVLAPolicy:
    """Load the shipped policy on the fake device; its self-test runs too."""
    return load(folder, Loading(dtype=dtype, device="cuda", statistics_key="lift", fuse=fuse))


def seven_billion(gpu: FakeCuda, tokenizer: OpenVLAPrompts, fuse: bool = True, **ours: Any) -> OpenVLAPolicy:
    """Return a policy of openvla-7b's sizes in bfloat16 on the fake device.

    Args:
        gpu: the device.
        tokenizer: of any policy; only the number of ids matters.
        fuse: whether the work between matrix products is joined.
        ours: keys of our block in config.json, such as `num_images`.
    """
    return policy_of(seven_billion_model(gpu, **ours), tokenizer, fuse)


def seven_billion_model(gpu: FakeCuda, **ours: Any) -> OpenVLA:
    """Return a model of openvla-7b's sizes in bfloat16 on the fake device."""
    with torch.device("meta"):
        model = OpenVLA(config_of(small=False, **ours))
    return gpu.move(model, torch.bfloat16).requires_grad_(False).eval()


def moved(gpu: FakeCuda, real: AnyVLAPolicy, fuse: bool = False, key: str | None = None) -> AnyVLAPolicy:
    """Return a policy of one of transformers' families on the fake device.

    Towers that read the frames' sizes from tensors, which have no numbers here, give features of the right shape.

    Args:
        gpu: the device.
        real: loaded to be trained, so that its layers are the library's own; its tensors are replaced.
        fuse: whether norms and gates are joined.
        key: dataset whose statistics normalise; None for the only one.
    """
    model: Any = gpu.move(real.model)
    model.is_fixed = True
    if fuse:
        fuse_pointwise(model.vlm)
    if hasattr(model, "_cell"):
        model.perceive = lambda pixels: features(model, pixels)
    return VLAPolicy(model, real.preprocessor, real.tokenizer, real.statistics, real.embodiment, key)


def features(model: Any, pixels: Tensor) -> Tensor:
    """Return features of the right shape for towers that read the frames' sizes."""
    tokens = pixels.shape[1] * (pixels.shape[-2] // model._cell) * (pixels.shape[-1] // model._cell)
    width = model._text.config.hidden_size if model.config.published["model_type"] == "gemma4" else model.width
    return pixels.new_empty(len(pixels), tokens, width)


def observations(policy: AnyVLAPolicy, drive: Drive, size: tuple[int, int] = (84, 84)) -> list[Observation]:
    """Return black frames of a size [px] for each camera, and instructions of one length or of three."""
    cameras = [c.name for c in policy.embodiment.cameras] if policy.embodiment else ["front"]
    frames = {name: np.zeros((*size, 3), np.uint8) for name in cameras}
    state = np.zeros(policy.model.config.inputs.proprio_dim or 0)
    texts = ["lift the red cube", "lift", "lift the red cube and the can"] if drive.ragged else ["lift the red cube"]
    return [Observation(frames, state, texts[row % len(texts)], 0, 0) for row in range(drive.rows)]


def infer(gpu: FakeCuda, policy: AnyVLAPolicy, seen: Sequence[Observation], tokens: int = 7) -> None:
    """Read observations and generate their answers; the stages begin anew."""
    gpu.lap("before")
    gpu.stages.clear()
    stages = gpu.timer()
    batch = policy.read(seen)
    stages.lap("preprocess")
    policy.generate(batch, tokens, stages)


def row_of(gpu: FakeCuda) -> dict[str, int]:
    """Return the counts of an inference as a row of a table."""
    total, repeated = gpu.total(), gpu.repeated
    return {
        "reads": total.reads.total(),
        "copies up": total.copies["cpu->cuda"],
        "copies down": total.copies["cuda->cpu"],
        "bytes up": total.uploaded_bytes,
        "calls": total.kernels.total(),
        "kernels": total.kernels.total() - total.kernels["graph"] + repeated.kernels.total(),
        "masks": sum(tally.masks.total() - tally.masks["none"] for tally in (total, repeated)),
    }


SHIPPED = ("paligemma_nano", "gemma4_nano", "qwen_vl_nano")
"""Shipped policies whose layers are transformers'."""


def rows_of_families(
    policies: Path, names: Sequence[str] = SHIPPED, fused: Sequence[bool] = (False, True)
) -> dict[str, dict[str, int]]:
    """Return the kernels of shipped policies' graphs, plain and fused; one row, in blocks."""
    rows: dict[str, dict[str, int]] = {}
    for name in names:
        folder = policies / name
        recipe = find_policy(folder).recipe
        assert isinstance(recipe, VLARecipe)
        for fuse in fused:
            real = family_of(folder).load(folder, Loading(statistics_key=recipe.statistics_key, trainable=True))
            with FakeCuda(Drive().answers(in_blocks=True)) as gpu:
                policy = moved(gpu, real, fuse, recipe.statistics_key)
                infer(gpu, policy, observations(policy, Drive()))
            kernels = {graph: tally.kernels.total() for graph, tally in gpu.graphs.items()}
            rows[f"{name}{', fused' * fuse}"] = {graph: kernels.get(graph, 0) for graph in ("see", "begin", "correct")}
    return rows


def rows_of(folder: Path) -> dict[str, dict[str, int]]:
    """Return the rows of all cases, on a fake device."""
    rows: dict[str, dict[str, int]] = {}
    for name in ("nano", "7B"):
        for fuse in (False, True):
            with FakeCuda(Drive().answers()) as gpu:
                policy = nano(folder, fuse=fuse)
                policy = seven_billion(gpu, policy.tokenizer, fuse) if name == "7B" else policy
            for drive in (Drive(), Drive(rows=16, ragged=True)):
                for in_blocks in (False, True):
                    how = ("blocks" if in_blocks else "eager") + ", fused" * fuse
                    ragged = " ragged" if drive.ragged else ""
                    rows[f"{name}, {drive.rows}{ragged}, {how}"] = _counted(policy, drive, in_blocks, gpu)
    return rows


def _counted(policy: OpenVLAPolicy, drive: Drive, in_blocks: bool, gpu: FakeCuda) -> dict[str, int]:
    policy.in_blocks = in_blocks
    with FakeCuda(drive.answers(in_blocks), mode=gpu.mode) as here:
        if in_blocks:
            infer(here, policy, observations(policy, drive))  # makes the block
            here.repeated = Tally()
        infer(here, policy, observations(policy, drive))
    return row_of(here)


def table(rows: Mapping[str, Mapping[str, int]]) -> str:
    """Return the rows as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    lines += [f"| {case} | {' | '.join(f'{row[name]:,}' for name in names)} |" for case, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    policies = Path(sys.argv[1] if len(sys.argv) > 1 else "policies")
    print(table(rows_of(policies / "openvla_nano")), table(rows_of_families(policies)), sep="\n\n")
