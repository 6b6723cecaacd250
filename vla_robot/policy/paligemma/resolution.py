"""Another resolution for a PaliGemma: its tower's table of positions is interpolated, everything else stays.

    84 px: 6 x 6 rows of the table  --bicubic, as transformers' SigLIP--> 8 x 8 rows, 112 px

PaliGemma's second stage trains on from 224 px at 448 px, then at 896 px.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_robot.core.errors import RecipeError
from vla_robot.policy.vla.json_files import OUR_BLOCK, read_json, write_json
from vla_robot.policy.vlm.square_images import image_processor_files
from vla_robot.policy.vlm.weights import load_vlm, replace_weights

TABLE = "vision_tower.embeddings.position_embedding.weight"
"""End of the name of the (P, D) table."""


def resized(folder: Path, vlm_class: Any, published: Mapping[str, Any], edge: int) -> None:
    """Rewrite a folder for frames of an edge [px].

    Args:
        folder: folder of config.json, preprocessor_config.json and safetensors.
        vlm_class: transformers' class.
        published: content of config.json, checked.
        edge: new edge [px].

    Raises:
        RecipeError: the edge is no multiple of the patches.
        CheckpointError: as `load_vlm`.
    """
    vision = published["vision_config"]
    patch = vision.get("patch_size", 16)
    if edge % patch:
        raise RecipeError(f"resolution is {edge}, which is no multiple of the tower's patches of {patch} px.")
    count = (edge // patch) ** 2
    dtype = getattr(torch, str(published.get("dtype", published.get("torch_dtype", "float32"))))
    old = load_vlm(folder, vlm_class, published, dtype)
    embeddings = old.model.vision_tower.embeddings
    with torch.no_grad():
        patches = torch.zeros(1, count, vision["hidden_size"], dtype=dtype)  # of which only the number is read
        table = embeddings.interpolate_pos_encoding(patches, edge, edge)[0]
    counts = {key: count for key in ("num_image_tokens",) if key in vision}
    new = vlm_class(
        vlm_class.config_class.from_dict({**published, "vision_config": {**vision, "image_size": edge, **counts}})
    ).to(dtype)
    weights = {name: table if name.endswith(TABLE) else tensor for name, tensor in old.state_dict().items()}
    new.load_state_dict(weights)
    ours = read_json(folder / "config.json").get(OUR_BLOCK)
    replace_weights(folder, new)
    if ours is not None:
        write_json(folder / "config.json", {**read_json(folder / "config.json"), OUR_BLOCK: ours})
    for path, data in image_processor_files(folder):
        write_json(path, _read_at(data, edge, count))


def _read_at(data: Mapping[str, Any], edge: int, count: int) -> dict[str, Any]:
    """Return the content of an image processor's file with another size, and number of tokens where it says one."""
    inner = data.get("image_processor")
    if isinstance(inner, dict):
        return {**data, "image_processor": _read_at(inner, edge, count)}
    tokens = {"image_seq_length": count} if "image_seq_length" in data else {}
    return {**data, "size": {"height": edge, "width": edge}, **tokens}
