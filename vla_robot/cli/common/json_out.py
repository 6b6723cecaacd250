"""Write the files of `--json FILE` and `--plot FILE`, in the same way for every command."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_robot.core.errors import DataError
from vla_robot.core.host.durable import write_whole, writing
from vla_robot.core.host.provenance import document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def write_json(path: Path, command: str, rows: Sequence[Mapping[str, Any]], **more: object) -> None:
    """Write {"command", "versions", "machine", "rows", ...}, atomically.

    Raises:
        DataError: it cannot be written.
    """
    text = json.dumps(document(command, rows, **more), indent=2, ensure_ascii=False, allow_nan=False)
    with writing(path):
        write_whole(path, text.encode() + b"\n")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a drawing, in the format of the path's suffix, atomically.

    Raises:
        DataError: it cannot be written, or matplotlib does not know the suffix.
    """
    file = io.BytesIO()
    try:
        figure.savefig(file, dpi=DOTS_PER_INCH, format=path.suffix.removeprefix(".") or "png")
    except ValueError as error:  # "Format 'foo' is not supported (supported formats: eps, jpeg, ...)"
        raise DataError(f"cannot draw {path}: {error}.") from error
    with writing(path):
        write_whole(path, file.getvalue())
