"""What a run will need, said before it starts: counted from the model, and measured on one frame.

weights        bytes of all parameters
gradients      bytes of those that learn
moments        two of AdamW for each number that learns
average        one more, with `ema`
activations    what autograd keeps of one frame, times the frames that go through at once
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_robot.learn.checkpoint import learning
from vla_robot.policy.openvla.model import IGNORE, OpenVLA
from vla_robot.recipe.finetune import FinetuneRecipe

PROMPT, ANSWER = 32, 8
"""Tokens of the frame that is measured: an ordinary instruction and seven actions."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device that trains; frames that wait in main memory are not among them.

    Attributes:
        parts: name -> bytes.
        available: of the device, before the model was loaded.
        device: its name.
    """

    parts: dict[str, int]
    available: int
    device: str

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_amount(size)}" for name, size in self.parts.items())
        return f"needs about {_amount(self.needed)} ({parts}); {self.device} has {_amount(self.available)}"


def plan_memory(model: OpenVLA, recipe: FinetuneRecipe) -> MemoryPlan:
    """For a model that is on its device, with `requires_grad` where it learns."""
    device = next(model.parameters()).device
    learned = sum(p.nbytes for p in learning(model).values())
    at_once = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
    parts = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": learned,
        "moments": 2 * learned,
        "average": learned,  # kept with ema = 0 too
        "activations": at_once * _kept_of_one_frame(model, recipe, device),
    }
    return MemoryPlan(parts, _available(device), _name(device))


def _kept_of_one_frame(model: OpenVLA, recipe: FinetuneRecipe, device: torch.device) -> int:
    """Bytes that autograd keeps for the backward pass of one frame, each storage counted once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding them keeps an address from being given to another

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    counted = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with counted, torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
        model(*_one_frame(model, recipe, device), recipe.bin_smoothing)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _one_frame(
    model: OpenVLA, recipe: FinetuneRecipe, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    config = model.config
    pixels = torch.zeros(1, config.num_images, 3 * len(config.timm_model_ids), config.image_size, config.image_size)
    ids = torch.full((1, PROMPT + ANSWER), config.action_vocab_end - 1)
    labels = ids.clone()
    labels[:, :PROMPT] = IGNORE
    state = None if config.proprio_dim is None else torch.zeros(1, config.proprio_dim, device=device)
    return pixels.to(device), ids.to(device), labels.to(device), state


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this computer"


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
