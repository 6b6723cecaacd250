"""Builds lerobot's model of a policy folder, and checks every tensor of the file and of the model before it acts.

lerobot's own `from_pretrained` logs tensors that are missing and goes on with random numbers in their place.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_robot.core.errors import CheckpointError, in_words
from vla_robot.core.untrusted import shortened
from vla_robot.policy.lerobot.folder import CONFIG, PolicyFolder
from vla_robot.policy.lerobot.hub import local_folder, offline
from vla_robot.policy.lerobot.newer_transformers import adapt

SHOWN = 5
"""Most tensors that a message names."""


def build_model(folder: PolicyFolder, hub: Mapping[str, Path], device: str) -> Any:
    """Return lerobot's policy with its weights, frozen and in evaluation mode.

    Args:
        folder: the checked folder.
        hub: the recipe's table [hub].
        device: torch's device.

    Raises:
        CheckpointError: lerobot refuses the configuration, something from the hub is not here, or tensors do not fit.
    """
    audit(folder, hub)  # before memory is allocated
    model = _new_model(folder, hub, device)
    tensors = _renamed(model, _read(folder.weights))
    _require_same(model, tensors, folder.weights)
    if folder.config.get("load_vlm_weights"):
        # lerobot loads such a backbone in bfloat16, and the file's tensors into it: the file has that precision.
        _take_precision(model, tensors)
    model.load_state_dict(tensors, strict=False)  # tensors that the model has twice are in the file once
    return model.to(device).eval().requires_grad_(False)


def audit(folder: PolicyFolder, hub: Mapping[str, Path]) -> None:
    """Raise CheckpointError unless the file has the model's tensors; only the file's header is read."""
    with torch.device("meta"):
        model = _new_model(folder, hub, "meta")
        tensors = {name: torch.empty(shape, dtype=_dtype(kind)) for name, (shape, kind) in _header(folder).items()}
        tensors = _renamed(model, tensors)
    _require_same(model, tensors, folder.weights)


def _new_model(folder: PolicyFolder, hub: Mapping[str, Path], device: str) -> Any:
    from lerobot.policies.factory import get_policy_class

    adapt()
    config = new_config(folder, hub, device)
    try:
        with offline(), contextlib.redirect_stdout(sys.stderr):
            model = get_policy_class(folder.kind)(config)
    except Exception as error:
        raise CheckpointError(f"{folder.path}: lerobot cannot build this policy: {in_words(error)}.") from error
    return model


def _take_precision(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give each parameter the precision of its tensor in the file; buffers, such as rotary frequencies, keep theirs."""
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.data = parameter.data.to(tensors[name].dtype)


def new_config(folder: PolicyFolder, hub: Mapping[str, Path], device: str) -> Any:
    """Return lerobot's configuration, with the settings that are fixed here.

    Raises:
        CheckpointError: lerobot refuses it, or something from the hub is not here.
    """
    import draccus
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    local = {
        name: str(local_folder(folder.config[name], "the model", hub))
        for name in folder.family.hub_fields
        if name in folder.config
    }
    fields = {**folder.config, **folder.family.settings, **local, "device": "cpu", "pretrained_path": None}
    try:
        config: Any = draccus.decode(PreTrainedConfig.get_choice_class(folder.kind), fields)
    except Exception as error:
        reason = f"{shortened(error)} {shortened(error.__cause__ or '')}".strip()
        raise CheckpointError(f"{folder.path / CONFIG}: lerobot refuses it: {reason}") from error
    config.device = device
    if folder.family.has_rtc:
        config.rtc_config = config.rtc_config or RTCConfig()
        config.rtc_config.enabled = True  # without committed actions it changes nothing
    return config


def _header(folder: PolicyFolder) -> dict[str, tuple[list[int], str]]:
    """Return tensor -> (shape, dtype) of the weights' file."""
    try:
        with safe_open(folder.weights, "pt") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder.weights} is no safetensors file: {shortened(error)}.") from error


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {shortened(error)}.") from error


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if name.startswith(("F", "BF")) else torch.int64


def _renamed(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the model's names: a file of openpi's port has others, which lerobot's own class maps."""
    if not hasattr(model, "_fix_pytorch_state_dict_keys"):
        return tensors
    fixed = model._fix_pytorch_state_dict_keys(tensors, model.config)
    return {name if name.startswith("model.") else f"model.{name}": tensor for name, tensor in fixed.items()}


def _require_same(model: Any, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise CheckpointError with every tensor that is missing, unexpected, or of another shape or kind of number."""
    ours: dict[str, Tensor] = model.state_dict(keep_vars=True)
    there = {id(ours[name]) for name in tensors if name in ours}
    missing = [name for name, tensor in ours.items() if name not in tensors and id(tensor) not in there]
    unexpected = [name for name in tensors if name not in ours]
    others = [
        f"{name} {list(tensor.shape)}, expected {list(ours[name].shape)}"
        for name, tensor in tensors.items()
        if name in ours
        and (tensor.shape != ours[name].shape or tensor.is_floating_point() != ours[name].is_floating_point())
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", others))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where} does not hold this policy's tensors: {'; '.join(problems)}.")
