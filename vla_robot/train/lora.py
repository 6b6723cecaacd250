"""Selects the trained parameters of a model: all, those of some parts, or low-rank matrices beside frozen ones (LoRA).

An action head is always trained, and never through LoRA: it is new, and small. The same holds for the projector of the
state beside a head, in a training of the projector.

Source of LoRA's settings: OpenVLA's `vla-scripts/finetune.py`: rank 32, alpha 16, every linear layer but the head,
Gaussian initialisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.policy.vla.heads.build import PART
from vla_robot.policy.vla.model import AnyVLAModel
from vla_robot.policy.vla.safetensors_files import Rows
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.train.checkpoint import learning
from vla_robot.train.parallel.fsdp import is_sharded, plain_name, whole

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
        if model.weight.is_meta:
            _begin_adapters(model, recipe)
        prefixes = ()
    for name, parameter in model.named_parameters():
        if name.startswith((*prefixes, *whole)):
            parameter.requires_grad_(True)
    return model


def _begin_adapters(model: AnyVLAModel, recipe: FinetuneRecipe) -> None:
    """Make the adapters of a model without weights in main memory, with the numbers that those of one with weights get.

    They are new, so that no file has them, and small.
    """
    from peft.tuners.lora import Linear

    torch.manual_seed(recipe.seed)
    for layer in model.modules():
        if isinstance(layer, Linear):
            base: Any = layer.get_base_layer()
            layer.lora_A[ADAPTER] = nn.Linear(base.in_features, recipe.lora_rank, bias=False)
            layer.lora_B[ADAPTER] = nn.Linear(recipe.lora_rank, base.out_features, bias=False)
            layer.reset_lora_parameters(ADAPTER, "gaussian")


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


def is_plain(model: AnyVLAModel) -> bool:
    """Return whether a model is whole, in fp32 and without adapters, so that it can be saved as it is."""
    names = (name for name, _ in model.named_parameters())
    return (
        not is_sharded(model.parameters())
        and all(p.dtype is torch.float32 for p in model.parameters())
        and not any("lora_" in name for name in names)
    )


@torch.no_grad()
def merged(model: AnyVLAModel, stored: Mapping[str, Rows], keep: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of the start policy's files as it is after training, whole and in main memory, one at a time.

    Adapters are merged into the weights of the files, so that the training's device need not hold the model in fp32.

    Args:
        model: the model that `adapt` returned. If it is sharded, every rank must take all that this yields.
        stored: reads the start's tensors; see `Family.rows`.
        keep: False at a rank that takes part in the gathering but gets no tensors.
    """
    learned = learning(model)
    shapes = {plain_name(name): t.shape for name, t in (*model.named_parameters(), *model.named_buffers())}
    for name, rows in stored.items():
        module = name.removesuffix(".weight")
        A, B = (learned.get(f"{module}.lora_{half}.{ADAPTER}.weight") for half in "AB")
        found = [whole(tensor) for tensor in (learned.get(name), A, B) if tensor is not None]
        if not keep:
            continue
        if A is None or B is None:
            yield name, found[0].cpu() if found else _all(rows, shapes[name])
        else:
            delta = (found[1] @ found[0]) * _scaling(model, module)
            yield name, _all(rows, shapes[name]).float() + delta.cpu()


def _all(rows: Rows, shape: Sequence[int]) -> Tensor:
    return rows(0, shape[0] if shape else 1)


def _scaling(model: AnyVLAModel, name: str) -> float:
    adapted: Any = model.get_submodule(name)
    return adapted.scaling[ADAPTER]


def _is_target(name: str, module: nn.Module, prefixes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return isinstance(module, nn.Linear) and name.startswith(prefixes) and not name.startswith(others)
