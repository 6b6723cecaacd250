"""Component files of OpenVLA-OFT's layout, each with one module's tensors beside the merged OpenVLA.

    action_head--<step>_checkpoint.pt         the action head
    proprio_projector--<step>_checkpoint.pt   the state as one token, when the policy reads it

They are read with `weights_only`, so that no code in them runs. Those written here have "latest" for the step, as
upstream names them when a training keeps its newest checkpoint alone.

Source: moojink/openvla-oft @213c5ff8, experiments/robot/openvla_utils.py and vla-scripts/finetune.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_robot.core.errors import CheckpointError
from vla_robot.core.host.durable import rename, sync_path
from vla_robot.policy.vla.safetensors_files import audit

ACTION_HEAD, PROPRIO_PROJECTOR = "action_head", "proprio_projector"
_PREFIX, _NEWEST = "module.", "--latest_checkpoint.pt"


def component_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a component, any number of them."""
    return sorted(folder.glob(f"{name}--*checkpoint.pt"))


def component_file(folder: Path, name: str) -> Path:
    """Return the only file of a component. Raises CheckpointError if there is none, or several."""
    files = component_files(folder, name)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise CheckpointError(f"{folder} must hold one {name}--<step>_checkpoint.pt, found: {names}.")
    return files[0]


def read_component(folder: Path, name: str, module: nn.Module, described_by: str) -> dict[str, Tensor]:
    """Read the tensors of one component file and check them against the module that they are for.

    Args:
        folder: folder of the file.
        name: name of the component.
        module: its parameters have the wanted names and shapes.
        described_by: what says the wanted shapes, for the message.

    Raises:
        CheckpointError: the file is absent, ambiguous or damaged, or does not fit.
    """
    file = component_file(folder, name)
    tensors = {key.removeprefix(_PREFIX): value for key, value in _read_pt(file).items()}
    wanted = {key: tuple(p.shape) for key, p in module.named_parameters()}
    audit(file, wanted, {key: tuple(t.shape) for key, t in tensors.items()}, {}, described_by)
    return tensors


def write_component(folder: Path, name: str, parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Write a module as the published files are: a state dictionary, its names as a distributed run saves them."""
    tensors = {f"{_PREFIX}{key}": p.detach().cpu().clone() for key, p in parameters}
    path = folder / f"{name}{_NEWEST}"
    partial = path.with_suffix(".tmp")
    torch.save(tensors, partial)
    sync_path(partial)
    rename(partial, path)


def _read_pt(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary saved by torch without running code in it.

    Raises:
        CheckpointError: the file is damaged, holds more than floating-point tensors, or could run code.
    """
    refused = f"{path} is not a plain file of tensors"
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{refused}: it is truncated or of a format before torch 1.6. Copy it again.")
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, pickle's and zip's errors here
        raise CheckpointError(
            f"{refused}: it is damaged, or loading it could run code, so it is refused ({type(error).__name__}). "
            "Save the module's state_dict() alone."
        ) from error
    if not isinstance(data, Mapping) or not all(isinstance(v, Tensor) and v.is_floating_point() for v in data.values()):
        raise CheckpointError(f"{refused}: expected names with floating-point tensors.")
    return {str(key): value for key, value in data.items()}
