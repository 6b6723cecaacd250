"""Local folders of models and tokenizers that lerobot names as on the hub. Nothing is downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from vla_robot.core.errors import CheckpointError
from vla_robot.core.untrusted import read_json, shortened


def local_folder(name: str, what: str, folders: Mapping[str, Path]) -> Path:
    """Return the folder on this computer of a name on the hub.

    Args:
        name: e.g. "google/paligemma-3b-pt-224".
        what: what is needed of it, for messages.
        folders: the recipe's table [hub].

    Raises:
        CheckpointError: it is not on this computer, or contains code of its own.
    """
    folder = folders.get(name) or _cached(name)
    if folder is None or not folder.is_dir():
        there = f"{folder} is no folder" if folder else "it is not on this computer, and nothing is downloaded"
        raise CheckpointError(
            f"the policy needs {what} of '{shortened(name)}': {there}. Put its folder into the recipe's table [hub]: "
            f'"{shortened(name)}" = "FOLDER".'
        )
    for file in sorted(folder.glob("*.json")):
        data = read_json(file, CheckpointError)
        if isinstance(data, dict) and data.get("auto_map"):
            raise CheckpointError(f"{file} names code of its own (auto_map), which is never run here.")
    return folder


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Make the hub's client refuse every request, within this process."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _cached(name: str) -> Path | None:
    """Return the folder of a name in the hub's local cache; None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        with offline():
            return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
