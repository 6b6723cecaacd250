"""LoRA adapters that lie unmerged beside base weights, in the files of peft's `save_pretrained`.

    adapter_config.json   adapter_model.safetensors

The base weights alone would be another policy, so the adapters are merged while loading: W + s B A, with
s = alpha / r, or alpha / sqrt(r) with `use_rslora`. peft itself is not used: its configuration may name other places.

Sources: LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732), and peft's documented file layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.vla.json_files import read_json

CONFIG, SAFETENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""Prefix that peft writes before each module's path."""

MERGE = "Merge them first: peft's `merge_and_unload()`, then `save_pretrained` into a new folder."

DIFFERENT = (
    "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
    "trainable_token_indices", "target_parameters", "use_qalora", "alora_invocation_tokens", "use_bdlora",
)  # fmt: skip
"""Options of peft with which an adapter is not W + s B A with one s for all matrices."""


def are_in(folder: Path) -> bool:
    """Return whether the folder itself holds unmerged adapters."""
    return any((folder / name).exists() for name in (CONFIG, SAFETENSORS, PICKLE))


def merge(folder: Path, weights: Mapping[str, Tensor], unused: Mapping[str, tuple[int, ...]]) -> int:
    """Add the adapters of a folder to its weights, in place.

    Args:
        folder: folder of the base weights and adapters.
        weights: weights by their name in the base file; adapted ones are (out, in) matrices.
        unused: name -> shape of weights that are not loaded, since they are never used; their adapters are skipped.

    Returns:
        Number of matrices that were changed.

    Raises:
        CheckpointError: the adapters are not plain LoRA in safetensors, or do not fit the weights.
    """
    scale, pairs = fitting(folder, {name: tuple(W.shape) for name, W in weights.items()}, unused)
    for target, (A, B) in pairs.items():
        W = weights[target]
        W.copy_(W.float() + scale * (B @ A).to(W.device))
    return len(pairs)


def fitting(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], unused: Mapping[str, tuple[int, ...]]
) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """Return s, and A and B in fp32 by the name of their matrix in the base file.

    Args:
        folder: folder of the base weights and adapters.
        shapes: name -> shape of the base weights.
        unused: as of `merge`.

    Raises:
        CheckpointError: as `merge`.
    """
    scale, rank = _scale(folder)
    pairs = _pairs(folder)
    for target, (A, B) in pairs.items():
        shape = shapes.get(target, unused.get(target))
        if shape is None:
            raise CheckpointError(f"{folder / SAFETENSORS} adapts '{target}', which the base weights do not have.")
        if A.ndim != 2 or B.ndim != 2 or (B.shape[0], A.shape[1]) != shape or not A.shape[0] == B.shape[1] == rank:
            raise CheckpointError(
                f"{folder / SAFETENSORS}: B {list(B.shape)} and A {list(A.shape)} with r = {rank} do not fit "
                f"'{target}' {list(shape)}."
            )
    return scale, {target: (A.float(), B.float()) for target, (A, B) in pairs.items() if target in shapes}


def _scale(folder: Path) -> tuple[float, int]:
    """Return the factor s of B A, and the rank r."""
    path = folder / CONFIG
    config = read_json(path)
    kind, rank, alpha = config.get("peft_type"), config.get("r"), config.get("lora_alpha")
    different = [key for key in DIFFERENT if config.get(key)]
    if config.get("bias", "none") != "none":
        different.append("bias")
    if kind != "LORA" or different:
        what = f"with {', '.join(different)}" if kind == "LORA" else f"of peft_type {kind!r}"
        raise CheckpointError(f"{folder} holds adapters {what}, which are not merged here. {MERGE}")
    if not isinstance(rank, int) or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha is {alpha!r}; two positive numbers are needed.")
    if not math.isfinite(alpha):
        raise CheckpointError(f"{path}: lora_alpha is {alpha!r}; a finite number is needed.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank


def _pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A (r, in) and B (out, r) by the name of their matrix in the base file."""
    path = folder / SAFETENSORS
    if not path.is_file():
        found = (
            f"{PICKLE} could run code when it is read" if (folder / PICKLE).exists() else f"{SAFETENSORS} is missing"
        )
        raise CheckpointError(f"{folder} holds adapters that cannot be read: {found}. {MERGE}")
    try:
        tensors: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not safetensors ({error}). Copy the file again.") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or half not in ("A.weight", "B.weight"):
            raise CheckpointError(f"{path} holds '{name}', which is not a LoRA matrix. {MERGE}")
        halves.setdefault(f"{module}.weight", {})[half[0]] = tensor
    lonely = [target for target, half in halves.items() if len(half) != 2]
    if lonely or not halves:
        raise CheckpointError(f"{path} lacks one half of the adapter of '{lonely[0] if lonely else 'any matrix'}'.")
    return {target: (half["A"], half["B"]) for target, half in halves.items()}
