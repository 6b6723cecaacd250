"""Policies of a few thousand weights, in our own layout and in OpenVLA-OFT's, and what they see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_robot.core.embodiment import Dim
from vla_robot.core.messages import Observation
from vla_robot.data.pipeline.stats import dataset_statistics
from vla_robot.policy.openvla.create import create
from vla_robot.recipe.finetune import Architecture
from vla_robot.recipe.policy import OFTRecipe
from vla_robot.testing import TOOL_AXES, toy_embodiment

ARM = toy_embodiment(
    axes=[Dim(name, "m", -1.0, 1.0) for name in TOOL_AXES],
    gripper=Dim("gripper", "m", -1.0, 1.0),
    state=(Dim("x", "m", -1.0, 1.0), Dim("width", "m", 0.0, 1.0)),
    cameras=("front", "wrist"),
    height=32,
    width=32,
)
TINY = Architecture(
    image_size=28, tower_dim=24, tower_depth=2, tower_heads=2, llm_dim=32, llm_layers=2, llm_heads=2, llm_ff_dim=48,
    text_vocab=320, max_positions=128,
    initializer_range=0.02,  # the tests' tolerances were set for these weights
)  # fmt: skip
LLM = 32
OFT = OFTRecipe(chunk=3, action_dim=7, normalisation="bounds_q99", cameras=("front", "wrist"), proprio_dim=2)
HEAD, PROPRIO = "action_head--150_checkpoint.pt", "proprio_projector--150_checkpoint.pt"


def create_policy(folder: Path, architecture: Architecture = TINY, text_type: str = "llama") -> Path:
    """A new policy of two cameras and two state numbers."""
    rng = np.random.default_rng(0)
    statistics = dataset_statistics("toy", rng.normal(size=(50, 7)), rng.normal(size=(50, 2)), 5)
    create(folder, architecture, ARM, statistics, ["lift the red cube", "open the door"], 0, text_type)
    return folder


def observation(instruction: str = "lift the red cube", seed: int = 0, step: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    frames = {n: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in ("front", "wrist")}
    return Observation(frames, rng.normal(size=2), instruction, stamp_ns=11 + step, step=step)


def head_weights(action_dim: int = 7) -> dict[str, Tensor]:
    """The published file's names and shapes, written out by hand."""
    wide = LLM * action_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.layer_norm1.weight": (wide,), "model.layer_norm1.bias": (wide,),
        "model.fc1.weight": (LLM, wide), "model.fc1.bias": (LLM,),
        "model.layer_norm2.weight": (LLM,), "model.layer_norm2.bias": (LLM,),
        "model.fc2.weight": (action_dim, LLM), "model.fc2.bias": (action_dim,),
    }  # fmt: skip
    for block in range(2):
        ffn = f"model.mlp_resnet_blocks.{block}.ffn"
        shapes |= {f"{ffn}.0.weight": (LLM,), f"{ffn}.0.bias": (LLM,)}
        shapes |= {f"{ffn}.1.weight": (LLM, LLM), f"{ffn}.1.bias": (LLM,)}
    generator = torch.Generator().manual_seed(1)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def publish(tiny: Path, folder: Path) -> Path:
    """The tiny checkpoint in OFT's layout: merged weights, and component files as a distributed run saves them."""
    for name in ("preprocessor_config.json", "dataset_statistics.json", "tokenizer.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    config = json.loads((tiny / "config.json").read_text())
    config["vla_robot"] = {"tower_overrides": config["vla_robot"]["tower_overrides"]}  # sizes only, as upstream
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny / "model.safetensors")
    proprio = {n.removeprefix("proprio_projector."): t for n, t in tensors.items() if n.startswith("proprio")}
    save_file({n: t for n, t in tensors.items() if not n.startswith("proprio")}, folder / "model.safetensors")
    torch.save({f"module.{name}": value for name, value in proprio.items()}, folder / PROPRIO)
    torch.save({f"module.{name}": value for name, value in head_weights().items()}, folder / HEAD)
    return folder
