"""Reads and writes weights in the published folder layout.

    config.json  model.safetensors (or shards + model.safetensors.index.json)  tokenizer.json
    preprocessor_config.json  dataset_statistics.json  embodiment.json (ours: the arm the policy was trained for)
    adapter_config.json  adapter_model.safetensors (peft's, when LoRA adapters were not merged; see `adapters`)

Tensors are read one at a time through one buffer into their own memory, in the wanted precision and on the device, so
that memory peaks at the model's own size plus the largest tensor's. (A memory map would keep the pages that were
read resident beside the model, up to the size of the file. A buffer for each tensor would leave gaps that
are too small for the next one: memory grew by up to 0.7 of the model.) Only safetensors is read: no code in a
checkpoint is ever executed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial as bound
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_robot.core.host.durable import make_folder, rename, sync_path
from vla_robot.policy.openvla.components import (
    ACTION_HEAD,
    PROPRIO_PROJECTOR,
    component_file,
    component_files,
    read_component,
    write_component,
)
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.model import OpenVLA
from vla_robot.policy.openvla.network.perceive import build_vit
from vla_robot.policy.openvla.network.reason import fused_with
from vla_robot.policy.vla import adapters, layout
from vla_robot.policy.vla.codecs.folder import write_codec
from vla_robot.policy.vla.codecs.mark import mark_of, require_mark
from vla_robot.policy.vla.json_files import write_json
from vla_robot.policy.vla.safetensors_files import (
    SINGLE,
    Rows,
    Stored,
    audit,
    require_floats,
    stored_in,
    write_in_turn,
)

_LOG = logging.getLogger(__name__)

TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


def file_name(module_name: str) -> str:
    """Return a parameter's name in the file: `scale_factor` for LayerScale, since older loaders rewrote `gamma`."""
    return module_name.replace(".ls1.gamma", ".ls1.scale_factor").replace(".ls2.gamma", ".ls2.scale_factor")


def load_model(
    folder: Path,
    config: OpenVLAConfig,
    dtype: torch.dtype,
    device: torch.device,
    beside: Mapping[str, Tensor] | None = None,
    acting: bool = False,
    matrices_stay: bool = False,
) -> OpenVLA:
    """Load the model of a checkpoint folder, in evaluation mode.

    Args:
        folder: folder of the safetensors.
        config: sizes of the model.
        dtype: precision of the weights.
        device: device of the weights; on torch's meta device they have no content, only headers of files are read, and
            buffers are in main memory.
        beside: parameters by module name that are in other files (OpenVLA-OFT's), already of the right shape; those of
            a head that config.json names are read here.
        acting: use the fastest layout for acting, which cannot be trained; see `layout`.
        matrices_stay: leave the matrices of towers and decoder in main memory, for `quantise` to fetch.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, unexpected or of the wrong shape; the
            message lists them by group.
    """
    require_mark(folder / SINGLE, config.codec)
    with torch.device("meta"):
        model = OpenVLA(config)
    beside = {**_components(folder, model), **(beside or {})}
    parameters = {name: p for name, p in model.named_parameters() if name not in beside}
    wanted = {file_name(name): name for name in parameters}
    found = require_weights(folder, config, parameters)
    tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in beside.items()}
    for_products = acting and layout.is_for(dtype, device)
    by_columns = layout.matrices(model, model.language_model.lm_head) if for_products else ()
    memory = _allocate(parameters, dtype, device, by_columns, _matrices_of_layers(model) if matrices_stay else ())
    by_file_name = {name: memory[wanted[name]] for name in wanted}
    if device.type != "meta":
        _fill(by_file_name, found)
    if device.type != "meta" and adapters.are_in(folder):
        merged = adapters.merge(folder, by_file_name, unused_names(config))
        _LOG.info("%s: LoRA adapters of %d matrices were merged into the base weights.", folder, merged)
    _assign(model, tensors | memory)
    rebuild_buffers(model, torch.device("cpu") if device.type == "meta" else device)
    if for_products:
        layout.add_biases_afterwards(model)
    return model.requires_grad_(False).eval()


def require_complete(folder: Path, config: OpenVLAConfig, beside: Collection[str] = ()) -> None:
    """Raise CheckpointError unless the folder has all weights; reads only the headers of its files.

    Args:
        folder: folder of the safetensors.
        config: sizes of the model.
        beside: prefixes of the names of parameters that are in other files.
    """
    require_mark(folder / SINGLE, config.codec)
    with torch.device("meta"):
        model = OpenVLA(config)
    others = (*beside, *(f"{name}." for name in _component_names(folder, model)))
    require_weights(folder, config, {n: p for n, p in model.named_parameters() if not n.startswith(others)})


def require_weights(folder: Path, config: OpenVLAConfig, parameters: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Return where the folder stores each tensor, by its name in the file.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, unexpected or of the wrong shape.
    """
    shapes = {file_name(name): tuple(p.shape) for name, p in parameters.items()}
    found = stored_in(folder)
    audit(folder, shapes, {name: stored.shape for name, stored in found.items()}, unused_names(config))
    require_floats(found[name] for name in shapes)
    return found


def rows_of(folder: Path, config: OpenVLAConfig) -> dict[str, Rows]:
    """See `Family.rows`. Component files are read whole; adapters are merged into the rows that are read."""
    with torch.device("meta"):
        model = OpenVLA(config)
    beside = _components(folder, model)
    parameters = {name: p for name, p in model.named_parameters() if name not in beside}
    found = require_weights(folder, config, parameters)
    rows: dict[str, Rows] = {name: found[file_name(name)].rows for name in parameters}
    if adapters.are_in(folder):
        shapes = {file_name(name): tuple(p.shape) for name, p in parameters.items()}
        scale, pairs = adapters.fitting(folder, shapes, unused_names(config))
        adapted = {name: pairs[file_name(name)] for name in parameters if file_name(name) in pairs}
        rows |= {name: bound(_adapted, rows[name], scale, A, B) for name, (A, B) in adapted.items()}
    return rows | {name: bound(_sliced, tensor) for name, tensor in beside.items()}


def _adapted(base: Rows, scale: float, A: Tensor, B: Tensor, first: int, last: int) -> Tensor:
    return base(first, last).float() + scale * (B[first:last] @ A)


def _sliced(tensor: Tensor, first: int, last: int) -> Tensor:
    return tensor[first:last]


def _components(folder: Path, model: OpenVLA) -> dict[str, Tensor]:
    """Return the tensors of component files by module name; none without a head."""
    return {
        f"{name}.{key}": tensor
        for name in _component_names(folder, model)
        for key, tensor in read_component(folder, name, model.get_submodule(name), "its config.json").items()
    }


def _component_names(folder: Path, model: OpenVLA) -> list[str]:
    """Return the modules of a model with a head that are in component files. Raises CheckpointError if one is missing.

    A projector of the state that the policy had before it got its head stays among its other weights.
    """
    if model.action_head is None:
        return []
    component_file(folder, ACTION_HEAD)
    has_own = model.proprio_projector is not None and component_files(folder, PROPRIO_PROJECTOR)
    return [ACTION_HEAD, PROPRIO_PROJECTOR] if has_own else [ACTION_HEAD]


def _assign(model: OpenVLA, tensors: dict[str, Tensor]) -> None:
    """Make the tensors the model's parameters; a head that is the table of embeddings has no tensor of its own."""
    text = model.language_model
    tied = text.config.tie_word_embeddings
    if tied:
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True, assign=True)
    if tied:
        text.lm_head.weight = text.model.embed_tokens.weight  # one parameter, whose gradients add up


def _matrices_of_layers(model: OpenVLA) -> set[str]:
    """Return the names of the towers' and the decoder's matrices, which are most of the model."""
    inside = ("vision_backbone.", "language_model.model.layers.")
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {f"{name}.weight" for name in linear if name.startswith(inside)}


def _allocate(
    parameters: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    by_columns: Collection[str],
    in_main_memory: Collection[str] = (),
) -> dict[str, Tensor]:
    """Allocate memory for each parameter, by name; matrices that the decoder fuses lie one after another.

    Matrices named in `by_columns` have the same shape but are stored column by column.
    """
    memory: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if name not in memory:
            together = fused_with(name)
            rows = [len(parameters[n]) for n in together]
            shape = sum(rows), *parameter.shape[1:]
            empty = layout.empty_by_columns if name in by_columns else torch.empty
            place = torch.device("cpu") if name in in_main_memory else device
            block = empty(shape, dtype=dtype, device=place)
            memory |= zip(together, block.split(rows), strict=True)
    return memory


def _fill(targets: Mapping[str, Tensor], found: Mapping[str, Stored]) -> None:
    """Read each tensor, by its name in the file, into its memory."""
    buffer = torch.empty(max(found[name].size for name in targets), dtype=torch.uint8)
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb")) for path in {found[name].path for name in targets}}
        # Reads in the order of the file, which is fastest.
        for name in sorted(targets, key=lambda n: (found[n].path, found[n].begin)):
            targets[name].copy_(found[name].read(files[found[name].path], buffer))


def save_model(model: OpenVLA, folder: Path, carry_from: Path | None = None) -> None:
    """Write config.json and model.safetensors, and the component files of a model with a head, as OpenVLA-OFT has them.

    The reference refuses a file without the tensors that inference never uses, so they are written too: copied from
    `carry_from` if it has them, zeros otherwise.
    """
    make_folder(folder)
    dtype = model.projector.fc1.weight.dtype
    apart = _written_apart(model)
    for name in apart:
        write_component(folder, name, model.get_submodule(name).named_parameters())
    merged = {n: p for n, p in model.named_parameters() if n.partition(".")[0] not in apart}
    tensors = {file_name(name): p.detach().cpu().contiguous() for name, p in merged.items()}
    tensors |= dict(_unused_tensors(model.config, carry_from, dtype))
    with _replaced(folder / SINGLE) as partial:
        save_file(
            {name: _own(t) for name, t in sorted(tensors.items())},
            partial,
            metadata=_metadata(model.config),
        )
    _write_config(model.config, folder)


def save_in_turn(start: Path, folder: Path, config: OpenVLAConfig, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """See `Family.save_in_turn`."""
    with torch.device("meta"):
        model = OpenVLA(config)
    make_folder(folder)
    apart = _written_apart(model)
    parameters = {n: p for n, p in model.named_parameters() if n.partition(".")[0] not in apart}
    shapes = {file_name(name): tuple(p.shape) for name, p in parameters.items()} | unused_names(config)
    beside: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in apart}

    def others() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            module, _, key = name.partition(".")
            if module in beside:  # of the start's components, or, before it had a head, of its other weights
                beside[module].append((key, tensor))
            else:
                yield file_name(name), tensor

    with _replaced(folder / SINGLE) as partial:
        carried = _unused_tensors(config, start, torch.float32)
        write_in_turn(partial, shapes, chain(others(), carried), _metadata(config))
    for name, parts in beside.items():
        write_component(folder, name, parts)
    _write_config(config, folder)


def _written_apart(model: OpenVLA) -> tuple[str, ...]:
    """Return the modules of a model with a head that are written as component files; none without a head."""
    if model.action_head is None:
        return ()
    return (ACTION_HEAD,) if model.proprio_projector is None else (ACTION_HEAD, PROPRIO_PROJECTOR)


def _metadata(config: OpenVLAConfig) -> dict[str, str]:
    return {"format": "pt", **mark_of(config.codec)}


@contextmanager
def _replaced(path: Path) -> Generator[Path]:
    """Yield the path of a new file, which then replaces `path` at once."""
    partial = path.with_name(f"{path.name}.tmp")
    yield partial
    partial.chmod(0o644)  # safetensors makes it readable by its owner only
    sync_path(partial)
    rename(partial, path)


def _write_config(config: OpenVLAConfig, folder: Path) -> None:
    write_codec(config.codec, folder)
    write_json(folder / "config.json", config.to_dict())


def _own(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is part of a larger one (a fused matrix): safetensors refuses shared memory."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def unused_names(config: OpenVLAConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by file name, of tensors that the published layout holds and inference never uses.

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
    found = stored_in(carry_from) if carry_from else {}
    for name, shape in unused_names(config).items():
        if name in found:
            with found[name].path.open("rb") as file:
                yield name, found[name].read(file, torch.empty(found[name].size, dtype=torch.uint8))
        else:
            yield name, torch.zeros(shape, dtype=dtype)


def rebuild_buffers(model: OpenVLA, device: torch.device) -> None:
    """Recompute the rotary frequencies, which are not stored and are empty on the meta device."""
    rotary = model.language_model.model.rotary_emb
    model.language_model.model.rotary_emb = type(rotary)(model.language_model.config).to(device)
