"""Weights: the published folder layout, read and written.

    config.json  model.safetensors (or shards + model.safetensors.index.json)  tokenizer.json
    preprocessor_config.json  dataset_statistics.json  embodiment.json (ours: what the policy was trained to drive)

Tensors are read through a memory map, one at a time, straight to the wanted precision and device. Only safetensors is
read: nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_robot.core.errors import CheckpointError
from vla_robot.policy.openvla.config import OpenVLAConfig, read_json
from vla_robot.policy.openvla.model import OpenVLA
from vla_robot.policy.openvla.perceive import build_vit

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


def file_name(module_name: str) -> str:
    """A parameter's name in the file: LayerScale is `scale_factor` there, since older loaders rewrote `gamma`."""
    return module_name.replace(".ls1.gamma", ".ls1.scale_factor").replace(".ls2.gamma", ".ls2.scale_factor")


def load_model(
    folder: Path,
    config: OpenVLAConfig,
    dtype: torch.dtype,
    device: torch.device,
    beside: Mapping[str, Tensor] | None = None,
) -> OpenVLA:
    """The model of a checkpoint folder, in evaluation mode.

    Args:
        folder: where the safetensors are.
        config: sizes.
        dtype: precision of the weights.
        device: where they go.
        beside: parameters by module name that stand in other files (OpenVLA-OFT's), already of the right shape.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, unexpected or of the wrong shape; the
            message lists them by group.
    """
    with torch.device("meta"):
        model = OpenVLA(config)
    beside = beside or {}
    parameters = {name: p for name, p in model.named_parameters() if name not in beside}
    wanted = {file_name(name): name for name in parameters}
    shapes = {file_name(name): tuple(p.shape) for name, p in parameters.items()}
    with ExitStack() as stack:
        found = _open_all(folder, stack)
        audit(folder, shapes, {name: _shape(f, name) for name, f in found.items()}, unused_names(config))
        tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in beside.items()}
        for name in list(wanted):
            tensors[wanted[name]] = _read(found[name], name, dtype, device)
    model.load_state_dict(tensors, strict=True, assign=True)
    _rebuild_buffers(model, device)
    return model.requires_grad_(False).eval()


def save_model(model: OpenVLA, folder: Path, carry_from: Path | None = None) -> None:
    """Write config.json and model.safetensors.

    The reference refuses a file without the tensors that inference never uses, so they are written too: those of
    `carry_from` when it has them, zeros otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = model.projector.fc1.weight.dtype
    tensors = {file_name(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    tensors |= dict(_unused_tensors(model.config, carry_from, dtype))
    partial = folder / f"{SINGLE}.tmp"
    save_file({name: t.clone() for name, t in sorted(tensors.items())}, partial, metadata={"format": "pt"})
    partial.replace(folder / SINGLE)
    write_json(folder / "config.json", model.config.to_dict())


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of one."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def unused_names(config: OpenVLAConfig) -> dict[str, tuple[int, ...]]:
    """File name -> shape of the tensors that the published layout holds and inference never uses.

    They are the towers' last block and final norm, and SigLIP's pooling head: 43 tensors in openvla-7b.
    """
    names: dict[str, tuple[int, ...]] = {}
    for index in range(len(config.timm_model_ids)):
        with torch.device("meta"):
            vit = build_vit(config, index)
        last = f"blocks.{len(vit.blocks) - 1}."
        for name, parameter in vit.named_parameters():
            if name.startswith((last, "norm.", "fc_norm.", "attn_pool.")):
                names[file_name(TOWERS[index] + name)] = tuple(parameter.shape)
    return names


def _unused_tensors(config: OpenVLAConfig, carry_from: Path | None, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    with ExitStack() as stack:
        found = _open_all(carry_from, stack) if carry_from else {}
        for name, shape in unused_names(config).items():
            yield name, found[name].get_tensor(name) if name in found else torch.zeros(shape, dtype=dtype)


def _rebuild_buffers(model: OpenVLA, device: torch.device) -> None:
    """Rotary frequencies are computed, not stored; on the meta device they came out empty."""
    rotary = model.language_model.model.rotary_emb
    model.language_model.model.rotary_emb = type(rotary)(model.language_model.config).to(device)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        files = sorted({folder / Path(name).name for name in index.get("weight_map", {}).values()})
    else:
        files = [folder / SINGLE]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise CheckpointError(f"{folder} lacks {', '.join(missing) or 'weight files'}; download or copy them again.")
    return files


def _open_all(folder: Path, stack: ExitStack) -> dict[str, safe_open]:
    """Tensor name -> the open file that holds it."""
    found: dict[str, safe_open] = {}
    for path in _weight_files(folder):
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError, struct.error) as error:
            raise CheckpointError(
                f"{path} is damaged or not safetensors ({error}). Copy the file again and compare its size."
            ) from error
        found |= dict.fromkeys(handle.keys(), handle)
    return found


def _shape(handle: safe_open, name: str) -> tuple[int, ...]:
    return tuple(handle.get_slice(name).get_shape())


def _read(handle: safe_open, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = handle.get_tensor(name)
    if not tensor.is_floating_point():
        raise CheckpointError(f"tensor '{name}' is {tensor.dtype}, expected floating point.")
    # `clone` when nothing was converted: a view would keep the whole file mapped and read-only.
    moved = tensor.to(device=device, dtype=dtype)
    return moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved


def audit(
    place: Path,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    unused: Mapping[str, tuple[int, ...]],
    described_by: str = "its config.json",
) -> None:
    """Raise CheckpointError, with every difference by group, unless the tensors found are those wanted.

    Args:
        place: the folder or file that was read.
        wanted: name -> shape.
        found: name -> shape.
        unused: name -> shape of tensors that may be there and are ignored.
        described_by: what asks for the shapes.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted and name not in unused]
    wrong = [f"{n} {list(found[n])} (expected {list(s)})" for n, s in wanted.items() if n in found and found[n] != s]
    if missing or unexpected or wrong:
        parts = [
            f"{len(names)} {what}: {_by_group(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if names
        ]
        raise CheckpointError(f"the weights in {place} do not fit {described_by}. " + ". ".join(parts) + ".")


def _by_group(names: Iterable[str]) -> str:
    """ "group (count, first name)" for each top-level part of the model."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[".".join(name.split(".")[:2])].append(name)
    return "; ".join(f"{group} ({len(members)}, e.g. {members[0]})" for group, members in sorted(groups.items()))
