"""Reads and writes the weights of a folder of transformers' layout.

    config.json  model.safetensors (or shards + their index)  tokenizer.json  preprocessor_config.json
    vla_robot.safetensors (ours: the projector of the arm's state, and the action head)
    dataset_statistics.json  embodiment.json (ours)

The library reads its own files, so that names of older versions, tied weights, buffers that are in the file and buffers
that are not are its own; every name that it could not place is an error here. Nothing is looked up elsewhere.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging

from vla_robot.core.errors import CheckpointError
from vla_robot.core.host.durable import make_folder
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla import adapters
from vla_robot.policy.vla.codecs.folder import is_in_config, write_codec
from vla_robot.policy.vla.codecs.mark import header_of, mark_of, require_mark
from vla_robot.policy.vla.heads.build import PART, new_head
from vla_robot.policy.vla.json_files import read_json, write_json
from vla_robot.policy.vla.proprio import ProprioProjector
from vla_robot.policy.vla.safetensors_files import (
    SINGLE,
    Rows,
    Stored,
    audit,
    require_floats,
    stored_at,
    stored_in,
    write_in_turn,
)
from vla_robot.policy.vlm.config import VLMConfig
from vla_robot.policy.vlm.model import TransformersModel

EXTRAS = "vla_robot.safetensors"
"""File of the parameters that transformers' model does not have."""

GENERATION = "generation_config.json"
"""File of transformers' settings of `generate`; nothing here reads it."""

COMPUTED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Patterns of buffers that old files hold and transformers computes."""


def load_vlm(folder: Path, vlm_class: Any, published: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load transformers' model of a folder.

    Args:
        folder: folder of config.json and safetensors.
        vlm_class: transformers' class.
        published: content of config.json, checked.
        dtype: precision of the weights.

    Raises:
        CheckpointError: weights are missing, unexpected, of another shape, damaged, or LoRA adapters lie beside them.
    """
    config = require_weights(folder, vlm_class, published)
    try:
        with _without_bars():
            vlm, told = vlm_class.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # the library's and safetensors' own, of many types
        raise CheckpointError(f"the weights in {folder} cannot be read as {vlm_class.__name__}: {error}") from error
    wrong = {what: sorted(map(str, told[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        parts = [f"{what.replace('_', ' ')}: {', '.join(n[:5])} ({len(n)})" for what, n in wrong.items() if n]
        raise CheckpointError(f"the weights in {folder} do not fit its config.json. {'. '.join(parts)}.")
    return vlm


def rows_of(model: TransformersModel, folder: Path) -> dict[str, Rows]:
    """See `Family.rows`.

    Args:
        model: the folder's model on torch's meta device.
        folder: folder of config.json and safetensors.
    """
    return {name: stored.rows for name, stored in _stored(model, folder).items()}


def save_in_turn(model: TransformersModel, start: Path, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """See `Family.save_in_turn`; names in the files are those of the start's.

    Args:
        model: the start's model on torch's meta device.
        start, folder, tensors: as there.
    """
    make_folder(folder)
    stored = _stored(model, start)
    own = {one.name: one.shape for one in stored.values() if one.path.name != EXTRAS}
    given = ((stored[name].name, tensor) for name, tensor in islice(tensors, len(own)))
    write_in_turn(folder / SINGLE, own, given, {"format": "pt"})
    published = {key: value for key, value in read_json(start / "config.json").items() if key != "torch_dtype"}
    write_json(folder / "config.json", {**published, "dtype": "float32"})
    if (start / GENERATION).is_file():
        shutil.copyfile(start / GENERATION, folder / GENERATION)
    _write_extras({name: tensor.detach().cpu() for name, tensor in tensors}, model.config, folder)


def _stored(model: TransformersModel, folder: Path) -> dict[str, Stored]:
    """Return where a folder has each parameter and buffer of a model, by their names in it; extras come last."""
    found = {f"vlm.{name}": stored for name, stored in _stored_by_name(model.vlm, folder).items()}
    return {**found, **stored_at(folder / EXTRAS)} if _require_extras(model, folder) else found


def _stored_by_name(vlm: Any, folder: Path) -> dict[str, Stored]:
    """Return where the files have each parameter and buffer, by its first name in this version of transformers.

    Raises:
        CheckpointError: one is missing, unexpected or of another shape, or the library would compute it from others.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in vlm.state_dict().items()}
    rules = get_model_conversion_mapping(vlm)
    found = {_renamed(name, vlm, rules, wanted, folder): stored for name, stored in stored_in(folder).items()}
    found |= {name: found[one] for one, name in _tied(vlm) if one in found and name not in found}
    ignored = re.compile("|".join([*(vlm._keys_to_ignore_on_load_unexpected or ()), *COMPUTED]))
    shapes = {name: stored.shape for name, stored in found.items() if name in wanted or not ignored.search(name)}
    audit(folder, wanted, shapes, {})
    require_floats(found[name] for name in wanted)
    once = {name for name, _ in (*vlm.named_parameters(), *vlm.named_buffers())}
    return {name: found[name] for name in wanted if name in once}


def _renamed(name: str, vlm: Any, rules: Sequence[Any], wanted: Mapping[str, Any], folder: Path) -> str:
    """Return the name that the library gives to a tensor of a file."""
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    new, converted = rename_source_key(name, renamings, converters, vlm.base_model_prefix, dict(wanted))
    if new not in wanted and name in wanted:
        return name
    if new in wanted and converted is not None:
        raise CheckpointError(
            f"'{name}' in {folder} is of an older layout, from which transformers computes its weights: load and save "
            'the model once with transformers, or train it without "shard".'
        )
    return new


def _tied(vlm: Any) -> list[tuple[str, str]]:
    """Return the pairs of names of one parameter."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in vlm.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [pair for same in names.values() for pair in permutations(same, 2)]


def fill_extras(model: TransformersModel, folder: Path) -> None:
    """Read the parameters that transformers' model does not have into their memory.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit.
    """
    if not _require_extras(model, folder):
        return
    found = _read_extras(folder / EXTRAS)
    with torch.no_grad():
        for name, parameter in _extras(model):
            parameter.copy_(found[name])


def _require_extras(model: TransformersModel, folder: Path) -> bool:
    """Return whether there must be a file of extras. Raises CheckpointError unless its header fits the model."""
    wanted = {name: tuple(p.shape) for name, p in _extras(model)}
    path = folder / EXTRAS
    require_mark(path, model.config.codec)
    if not wanted:
        if path.is_file() and header_of(path)[0]:
            raise CheckpointError(
                f"{path} is there, but config.json names no proprio_dim and no head; one of the two is wrong."
            )
        return False
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; it holds the projector of the arm's state and the action head. Copy it again."
        )
    audit(path, wanted, {name: stored.shape for name, stored in stored_at(path).items()}, {})
    return True


def _read_extras(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own and the system's
        raise CheckpointError(f"{path} is damaged or not safetensors ({error}). Copy the file again.") from error


def add_extras(folder: Path, config: VLMConfig, text: Any) -> None:
    """Write a new head beside the weights of a folder, and a projector of the state if the folder had none.

    Args:
        folder: folder of a policy.
        config: names the head and the state.
        text: transformers' configuration of the language model.
    """
    path = folder / EXTRAS
    there = _read_extras(path) if path.is_file() else {}
    new: dict[str, nn.Module | None] = {PART: new_head(config.head, config.chunk, text)}
    if config.proprio_dim is not None and not there:
        new["proprio_projector"] = ProprioProjector(config.proprio_dim, text.hidden_size)
    modules = {name: module for name, module in new.items() if module is not None}
    named = {f"{name}.{key}": p.detach() for name, module in modules.items() for key, p in module.named_parameters()}
    save_file({**there, **named}, path, metadata={"format": "pt", **mark_of(config.codec)})


def save_vlm(model: TransformersModel, folder: Path) -> None:
    """Write config.json with our block, and the weights."""
    make_folder(folder)
    with _without_bars():
        model.vlm.save_pretrained(str(folder))
    write_json(folder / "config.json", model.config.with_block(read_json(folder / "config.json")))
    _write_extras({name: p.detach().cpu().contiguous() for name, p in _extras(model)}, model.config, folder)


def _write_extras(extras: Mapping[str, Tensor], config: VLMConfig, folder: Path) -> None:
    """Write the parameters that transformers' model does not have, and the codec."""
    if extras or not is_in_config(config.codec):
        save_file(dict(extras), folder / EXTRAS, metadata={"format": "pt", **mark_of(config.codec)})
    write_codec(config.codec, folder)


def grow(folder: Path, vlm_class: Any, published: Mapping[str, Any], vocabulary: int) -> None:
    """Give the model of a folder a larger vocabulary; its old rows and the logits of them stay bit by bit.

    New rows begin as the library's initialisation has them. The whole model is read and written once, in its precision.

    Args:
        folder: folder of config.json and safetensors, which are rewritten.
        vlm_class: transformers' class.
        published: content of config.json, checked.
        vocabulary: rows afterwards.

    Raises:
        CheckpointError: as `load_vlm`.
    """
    dtype = getattr(torch, str(published.get("dtype", published.get("torch_dtype", "float32"))))
    vlm = load_vlm(folder, vlm_class, published, dtype)
    torch.manual_seed(0)
    vlm.resize_token_embeddings(vocabulary, mean_resizing=False)
    replace_weights(folder, vlm)


def replace_weights(folder: Path, vlm: Any) -> None:
    """Write the weights and the config.json of transformers' model in the place of those of a folder."""
    for old in (*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")):
        old.unlink()
    with _without_bars():
        vlm.save_pretrained(str(folder))


def mark_codec(folder: Path, codec: ActionCodec) -> None:
    """Write which codec weights are trained for beside weights that hold no mark yet."""
    if not is_in_config(codec):
        save_file({}, folder / EXTRAS, metadata={"format": "pt", **mark_of(codec)})


@contextmanager
def _without_bars() -> Iterator[None]:
    """Return a context without the library's progress bars, which fill a log and show a second's work."""
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _extras(model: TransformersModel) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not name.startswith("vlm.")]


def require_weights(folder: Path, vlm_class: Any, published: Mapping[str, Any]) -> Any:
    """Return transformers' configuration, if the folder's files can hold its model; reads only their headers.

    Args:
        folder: folder of config.json and safetensors.
        vlm_class: transformers' class.
        published: content of config.json, checked.

    Raises:
        CheckpointError: the configuration makes no model, a file is missing or damaged, the files hold fewer numbers
            than the model has, or LoRA adapters lie beside them.
    """
    if adapters.are_in(folder):
        raise CheckpointError(f"{folder} holds adapters, which are not merged here. {adapters.MERGE}")
    there = sum(torch.Size(stored.shape).numel() for stored in stored_in(folder).values())
    try:
        config = vlm_class.config_class.from_dict(dict(published))
        with torch.device("meta"):
            empty = vlm_class(config)
    except Exception as error:  # transformers validates in many ways
        raise CheckpointError(f"{folder / 'config.json'} does not make a {vlm_class.__name__}: {error}.") from error
    needed = sum(p.numel() for p in empty.parameters())  # a tied one is counted once
    if there < needed:
        raise CheckpointError(
            f"the files in {folder} hold {there:,} numbers, but a model of its config.json has {needed:,}: some "
            "weights are missing. Copy the folder again."
        )
    return config
