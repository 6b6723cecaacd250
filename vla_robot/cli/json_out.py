"""`--json FILE`: one convention for every command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_robot.core.errors import VlaError
from vla_robot.record.provenance import document


def write_json(path: Path, command: str, rows: Sequence[Mapping[str, Any]], **more: object) -> None:
    """Write {"command", "versions", "machine", "rows", ...}; the file appears whole or not at all.

    Raises:
        VlaError: it cannot be written.
    """
    text = json.dumps(document(command, rows, **more), indent=2, ensure_ascii=False, allow_nan=False)
    part = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise VlaError(f"cannot write {path}: {error.strerror}. Choose another file with --json.") from error
