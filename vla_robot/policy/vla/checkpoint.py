"""The small files of a checkpoint folder, which say how its weights are used, as every family has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError, unknown
from vla_robot.policy.vla.inputs.preprocess import FramePreprocessor
from vla_robot.policy.vla.inputs.prompts import Prompts
from vla_robot.policy.vla.json_files import read_json
from vla_robot.policy.vla.model import VLAConfig

OUR_BLOCK = "vla_robot"
"""Key of config.json with what this project adds to a published layout."""


@dataclass(frozen=True)
class Checkpoint[C: VLAConfig, T: Prompts, F: FramePreprocessor]:
    """The small files of a folder.

    Attributes:
        config: sizes and statistics; those of dataset_statistics.json, when present, replace those in config.json.
        preprocessor: turns frames into pixels.
        tokenizer: turns instructions into ids, or None when tokenizer.json is absent.
        embodiment: the arm the policy was trained for, or None for a published checkpoint, which does not say.
    """

    config: C
    preprocessor: F
    tokenizer: T | None
    embodiment: Embodiment | None


type AnyCheckpoint = Checkpoint[Any, Any, Any]
"""The small files of a folder of any family."""


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """Return the content of dataset_statistics.json, or None if the folder has none. Raises as `read_json`."""
    path = folder / "dataset_statistics.json"
    return read_json(path) if path.is_file() else None


def read_embodiment(folder: Path) -> Embodiment | None:
    """Return the arm that the policy was trained for, or None if the folder does not say. Raises CheckpointError."""
    path = folder / "embodiment.json"
    if not path.is_file():
        return None
    try:
        return Embodiment.from_dict(read_json(path))
    except ContractError as error:
        raise CheckpointError(f"{path}: {error}") from error


def table_of(source: str, data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key of a JSON file, empty if it is absent. Raises CheckpointError for anything else."""
    table = data.get(key) or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"{source}: {key} must be an object, got a {type(table).__name__}.")
    return table


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return torch's precision of this name. Raises ContractError for another name."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ContractError(unknown("dtype", name, known))
    return known[name]
