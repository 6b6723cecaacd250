"""The file of a pre-trained tower, and how a new model takes it over.

FOLDER/tower.safetensors    the parameters of the part "vision" by their names; the metadata name the family
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_robot.core.errors import CheckpointError, RecipeError
from vla_robot.core.host.durable import make_folder
from vla_robot.policy.families import family_named
from vla_robot.policy.vla.codecs.mark import header_of
from vla_robot.recipe.finetune import Architecture
from vla_robot.train.contrastive.model import vision_parameters

FILE, FAMILY = "tower.safetensors", "family"


def write_tower(folder: Path, architecture: Architecture, parameters: Mapping[str, Tensor]) -> None:
    """Write a tower's parameters."""
    make_folder(folder)
    plain = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    save_file(plain, folder / FILE, metadata={"format": "pt", FAMILY: architecture.family})


def take_over(folder: Path, architecture: Architecture) -> None:
    """Replace the random tower of a new model by that of `architecture.tower`; everything else stays bit by bit.

    Args:
        folder: the model's folder, which is rewritten.
        architecture: of the model.

    Raises:
        CheckpointError: the tower's file is missing or damaged.
        RecipeError: it is of another family or of other sizes.
    """
    assert architecture.tower is not None
    path = architecture.tower / FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; `vla pretrain` writes it to FOLDER/final.")
    made_for = header_of(path)[1].get(FAMILY)
    if made_for != architecture.family:
        raise RecipeError(
            f"{path} is a tower of the family {made_for!r}, and the new model is a {architecture.family}."
        )
    stored = load_file(path)
    family = family_named(architecture.family)
    random = folder.with_name(f"{folder.name}.random")
    shutil.rmtree(random, ignore_errors=True)
    shutil.copytree(folder, random)
    model = family.load_model(random, torch.float32, torch.device("cpu"))
    wanted = vision_parameters(model)
    different = sorted(
        name
        for name in wanted.keys() | stored.keys()
        if name not in wanted or name not in stored or wanted[name].shape != stored[name].shape
    )
    if different:
        raise RecipeError(
            f"{path} does not fit the tower of [architecture]: {len(different)} of its parameters differ in name or "
            f"shape, such as {different[0]}. Give both recipes the same family, image_size and tower_... sizes."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
    family.save_model(model, folder, random)
    shutil.rmtree(random)
