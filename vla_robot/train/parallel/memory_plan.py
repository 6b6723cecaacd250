"""Memory that a run will need, computed before it starts: counted from the model, and measured on a few frames.

weights        bytes of all parameters
gradients      bytes of the trained parameters
moments        two of AdamW for each trained number; Muon keeps one of a matrix, and two are counted
average        one more for each trained number
activations    what autograd keeps of each frame of one forward pass; with `activation_checkpointing` the
               inputs of blocks and one block's activations
casts          what it keeps once for all frames: with `bf16`, the matrices that autocast rounds
With `shard` each rank has its part of all but the activations, and one block's whole weights at a time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.hooks import RemovableHandle

from vla_robot.core.errors import RecipeError
from vla_robot.policy.vla.model import IGNORE, AnyVLAModel
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.checkpoint import learning
from vla_robot.train.mixed_precision import mixed_precision
from vla_robot.train.parallel.activation_checkpointing import checkpointed

PROMPT, ANSWER = 32, 8
"""Tokens of the measured frame: an ordinary instruction, and one action of seven numbers with end-of-sequence."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the training device; frames that wait in main memory are not counted.

    Attributes:
        parts: name -> size [bytes].
        available: the device's memory [bytes], before the model is loaded.
        device: the device's name.
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


def plan_memory(
    model: AnyVLAModel, recipe: FinetuneRecipe, device: torch.device | None = None, count: int = 1
) -> MemoryPlan:
    """Plan the memory of a model whose `requires_grad` is set, before it is sharded or checkpoints activations.

    Args:
        model: the whole model.
        recipe: how it will be trained.
        device: device of the training; by default the model's.
        count: number of ranks that will share the model.
    """
    here = next(model.parameters()).device
    return plan_of(parts_of(model, recipe, count), device or here)


def plan_of(parts: dict[str, int], device: torch.device) -> MemoryPlan:
    """Return the plan of a training whose parts are known, on a device of this computer."""
    return MemoryPlan(parts, _available(device), _name(device))


def parts_of(model: AnyVLAModel, recipe: FinetuneRecipe, count: int = 1) -> dict[str, int]:
    """Return the parts of `MemoryPlan`, in the order of this module's list; arguments as of `plan_memory`."""
    here = next(model.parameters()).device
    at_once = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
    # Not of one frame, of which some tensors are kept without the copies that a batch needs.
    two, three = (_Kept.of(frames, model, recipe, here).bytes(recipe.activation_checkpointing) for frames in (2, 3))
    each = three - two
    return counted(model, count) | {"activations": at_once * each, "casts": max(two - 2 * each, 0)}


def require_room(model: AnyVLAModel, device: torch.device) -> None:
    """Raise RecipeError if a model, its gradients and its moments do not fit on a device, before it moves there."""
    plan = plan_of(counted(model, 1), device)
    if plan.needed > plan.available:
        raise RecipeError(
            f"the training {plan}, and the activations come on top. Train LoRA matrices (`lora_rank`) or fewer parts "
            "(`train`), with `bf16`, or share the model among GPUs (`shard`)."
        )


def counted(model: AnyVLAModel, count: int) -> dict[str, int]:
    """Return the sizes that follow from the model alone [bytes]."""
    learned = sum(p.nbytes for p in learning(model).values())
    return {
        "weights": sum(p.nbytes for p in model.parameters()) // count + (_largest_gathered(model) if count > 1 else 0),
        "gradients": learned // count,
        "moments": 2 * learned // count,
        "average": learned // count,  # kept with ema = 0 too
    }


def _largest_gathered(model: AnyVLAModel) -> int:
    """Return the bytes of the largest block and the weights outside all blocks, gathered at one time."""
    sizes = [sum(p.nbytes for p in block.parameters()) for block in model.layers()]
    return max(sizes) + sum(p.nbytes for p in model.parameters()) - sum(sizes)


class _Kept:
    """Tensors that autograd keeps of some frames for the backward pass; each storage is counted once."""

    def __init__(self, model: AnyVLAModel) -> None:
        self._weights = {_storage(p) for p in model.parameters()}
        self._block: int | None = None
        self._owner: dict[int, int | None] = {}
        self._tensors: dict[int, Tensor] = {}  # a reference keeps its address from being reused
        self._inputs: set[int] = set()

    @classmethod
    def of(cls, frames: int, model: AnyVLAModel, recipe: FinetuneRecipe, device: torch.device) -> _Kept:
        kept = cls(model)
        hooks = [hook for number, block in enumerate(checkpointed(model)) for hook in kept._watch(number, block)]
        counted = torch.autograd.graph.saved_tensors_hooks(kept._note, lambda tensor: tensor)
        with counted, mixed_precision(device, recipe.bf16):
            model(*_some_frames(frames, model, device), recipe.bin_smoothing, *_some_actions(frames, model, device))
        for hook in hooks:
            hook.remove()
        return kept

    def bytes(self, checkpointing: bool) -> int:
        """Return the bytes kept; with checkpointing: of block inputs, outside blocks and of the largest block."""
        by_block: dict[int | None, int] = defaultdict(int)
        for address, tensor in self._tensors.items():
            is_input = checkpointing and address in self._inputs
            by_block[None if is_input else self._owner[address]] += tensor.untyped_storage().nbytes()
        outside = by_block.pop(None, 0)
        return outside + (max(by_block.values(), default=0) if checkpointing else sum(by_block.values()))

    def _watch(self, number: int, block: nn.Module) -> Iterator[RemovableHandle]:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._block = number
            if args[0].requires_grad:  # a block whose input needs no gradient is not recomputed
                place = _storage(args[0])
                self._tensors[place] = args[0]
                self._owner.setdefault(place, None)
                self._inputs.add(place)

        def leave(*_: Any) -> None:
            self._block = None

        yield block.register_forward_pre_hook(enter)
        yield block.register_forward_hook(leave)

    def _note(self, tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place not in self._weights:
            self._tensors[place] = tensor
            self._owner.setdefault(place, self._block)
        return tensor


def _storage(tensor: Tensor) -> int:
    """Return what tells the storages of living tensors apart; those without numbers have no address."""
    storage: Any = tensor.untyped_storage()
    return storage._cdata


def _some_frames(frames: int, model: AnyVLAModel, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    config = model.config
    pixels = torch.zeros(frames, *model.pixel_shape())
    answer = 1 if config.head is not None else (ANSWER - 1) * config.chunk + 1
    ids = torch.full((frames, PROMPT + answer), int(config.codec.ids[-1]))
    with unset_fake_temporarily():  # labels are looked at, also those of a model without numbers
        labels = torch.from_numpy(np.tile(np.r_[[IGNORE] * PROMPT, [config.codec.ids[-1]] * answer], (frames, 1)))
    dim = config.inputs.proprio_dim
    state = None if dim is None else torch.zeros(frames, dim, device=device)
    return pixels.to(device), ids.to(device), labels, state


def _some_actions(frames: int, model: AnyVLAModel, device: torch.device) -> tuple[Tensor, Tensor] | tuple[()]:
    """Return the actions and seeds of the frames, for an action head."""
    head = model.action_head
    if head is None:
        return ()
    with unset_fake_temporarily():  # seeds are looked at
        seeds = torch.zeros(frames, dtype=torch.int64)
    return torch.zeros(frames, head.chunk, head.dimension, device=device), seeds


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this computer"


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
