"""The mark of a codec: a file of weights says for which codec they were trained, lest another is read with them."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from vla_robot.core.errors import CheckpointError
from vla_robot.core.ports import ActionCodec
from vla_robot.policy.vla.codecs.folder import fingerprint, is_in_config

MARK = "codec"
"""Key of a safetensors file's metadata."""


def mark_of(codec: ActionCodec) -> dict[str, str]:
    """Return the metadata that mark weights; none for a codec that config.json alone says, as published folders do."""
    return {} if is_in_config(codec) else {MARK: fingerprint(codec)}


def require_mark(path: Path, codec: ActionCodec) -> None:
    """Raise CheckpointError unless the weights of a file were trained for this codec, or it is damaged."""
    marked = header_of(path)[1].get(MARK) if path.is_file() else None
    if marked != mark_of(codec).get(MARK):
        raise CheckpointError(
            f"the weights in {path.parent} were trained for another action codec than its config.json and codec.json "
            "describe: every action would be another motion. Copy the whole folder again."
        )


def header_of(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return names of the tensors and metadata of a safetensors file. Raises CheckpointError for a damaged one."""
    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys()), dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own and the system's
        raise CheckpointError(f"{path} is damaged or not safetensors ({error}). Copy the file again.") from error
