"""JSON files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_robot.core.errors import CheckpointError
from vla_robot.core.host.durable import write_whole
from vla_robot.core.untrusted import read_file

OUR_BLOCK = "vla_robot"
"""Key of config.json with what this project adds to a published layout."""

MAX_JSON_BYTES = 64 * 1024**2
"""Largest JSON file of a checkpoint; openvla-7b's statistics of 25 datasets take 0.1 MB."""


def require_folder(folder: Path) -> None:
    """Raise CheckpointError unless the folder exists."""
    if not folder.is_dir():
        raise CheckpointError(f"policy folder {folder} does not exist. Run `vla list policies`.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint file.

    Raises:
        CheckpointError: the file is absent, not a regular file, too large, not JSON, or not an object.
    """
    try:
        data = json.loads(read_file(path, MAX_JSON_BYTES, CheckpointError).decode())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    # ValueError: also bytes that are not UTF-8, and a number of thousands of digits; RecursionError: as many brackets.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected an object.")
    return data


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write JSON atomically: a crash leaves the old file or the new one. Raises OSError."""
    write_whole(path, json.dumps(data, indent=2, sort_keys=True).encode() + b"\n")


def whole(source: str, key: str, value: object, largest: int, smallest: int = 1) -> int:
    """Return `value` if it is a whole number within bounds.

    Args:
        source: file, for the message.
        key: key of the file, for the message.
        value: the value as read.
        largest: upper bound, inclusive.
        smallest: lower bound, inclusive.

    Raises:
        CheckpointError: it is not a whole number, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise CheckpointError(
            f"{source}: {key} is {shown(value)}; expected a whole number from {smallest} to {largest}."
        )
    return value


def shown(value: object, longest: int = 80) -> str:
    """Return the value's repr, shortened: an untrusted value may be a megabyte."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python converts
        return f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= longest else f"{text[:longest]}..."
