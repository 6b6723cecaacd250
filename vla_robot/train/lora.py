"""Selects the trained parameters of a model: all, those of some parts, or low-rank matrices beside frozen ones (LoRA).

An action head is always trained, and never through LoRA: it is new, and small. The same holds for the projector of the
state beside a head, in a training of the projector.

Source of LoRA's settings: OpenVLA's `vla-scripts/finetune.py`: rank 32, alpha 16, every linear layer but the head,
Gaussian initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.families import family_of
from vla_robot.policy.vla.heads.build import PART
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.checkpoint import learning
from vla_robot.train.parallel.fsdp import is_sharded

ADAPTER = "default"


def adapt[M: AnyVLAModel](model: M, recipe: FinetuneRecipe) -> M:
    """Make the parts that the recipe names trainable, through LoRA if `lora_rank` is set, and freeze the rest."""
    prefixes = tuple(prefix for part in recipe.train for prefix in model.PARTS[part])
    whole = () if model.action_head is None else (f"{PART}.", *({"proprio_projector."} & set(prefixes)))
    model.requires_grad_(False).train()
    if recipe.lora_rank:
        from peft import LoraConfig, inject_adapter_in_model  # only adapters need it, and its import takes time

        torch.manual_seed(recipe.seed)
        alpha = min(recipe.lora_rank, 16)
        targets = [name for name, m in model.named_modules() if _is_target(name, m, prefixes, (model.HEAD, *whole))]
        config = LoraConfig(
            r=recipe.lora_rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian", lora_dropout=0.0
        )
        inject_adapter_in_model(config, model, ADAPTER)
        prefixes = ()
    for name, parameter in model.named_parameters():
        if name.startswith((*prefixes, *whole)):
            parameter.requires_grad_(True)
    return model


def freeze_in_bf16(model: AnyVLAModel) -> None:
    """Keep frozen matrices in bfloat16 for a training that computes in it: half of their memory, and no copies.

    Autocast would round the same matrices in every pass, so the results stay the same bit for bit. Weights that it does
    not round stay in fp32: embeddings, also where the head shares theirs, norms, and everything that is trained.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and id(parameter) not in looked_up:
                    parameter.data = parameter.data.to(torch.bfloat16)


@torch.no_grad()
def merged(model: AnyVLAModel, start: Path, learned: Mapping[str, Tensor] | None = None) -> AnyVLAModel:
    """Return the whole model without adapters, in fp32: itself, or the start's with the trained weights merged in.

    The start's weights are read into main memory, so that the training's device need not hold the model twice.

    Args:
        model: the model that `adapt` returned.
        start: folder of the policy before training.
        learned: its trained weights, unsharded; required for a sharded model, by default read from `model`.

    Raises:
        CheckpointError: the start policy is damaged.
    """
    learned = learned or dict(learning(model))
    is_whole = not is_sharded(model.parameters()) and all(p.dtype is torch.float32 for p in model.parameters())
    if is_whole and not any("lora_" in name for name in learned):
        return model
    plain = family_of(start).load_model(start, torch.float32, torch.device("cpu"))
    for name, tensor in learned.items():
        before, adapter, _ = name.partition(f".lora_B.{ADAPTER}")
        if adapter:
            delta = tensor @ learned[f"{before}.lora_A.{ADAPTER}.weight"]
            _linear(plain, before, start).weight.add_((delta * _scaling(model, before)).cpu())
        elif "lora_" not in name:
            plain.get_parameter(name).copy_(tensor)
    return plain


def _linear(plain: AnyVLAModel, name: str, start: Path) -> nn.Linear:
    linear = plain.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise CheckpointError(f"'{name}' of {start} is not a linear layer, so its adapter cannot be merged.")
    return linear


def _scaling(model: AnyVLAModel, name: str) -> float:
    adapted: Any = model.get_submodule(name)
    return adapted.scaling[ADAPTER]


def _is_target(name: str, module: nn.Module, prefixes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return isinstance(module, nn.Linear) and name.startswith(prefixes) and not name.startswith(others)
