"""Files beside a checkpoint's config.json that every engine reads: statistics, and the arm of the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.vla.json_files import read_json

STATISTICS, EMBODIMENT = "dataset_statistics.json", "embodiment.json"


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """Return the content of dataset_statistics.json, or None if the folder has none. Raises as `read_json`."""
    path = folder / STATISTICS
    return read_json(path) if path.is_file() else None


def read_embodiment(folder: Path) -> Embodiment | None:
    """Return the arm that the policy was trained for, or None if the folder does not say. Raises CheckpointError."""
    path = folder / EMBODIMENT
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
