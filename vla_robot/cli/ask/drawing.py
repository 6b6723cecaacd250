"""Draws boxes on a copy of a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.durable import write_whole, writing
from vla_robot.core.language.boxes import Box
from vla_robot.core.messages import Image

SMALLEST_EDGE_PX = 448
"""A smaller picture is enlarged by a whole number, so that lines and names can be read."""
COLOURS = ("#ffd400", "#00e0ff", "#ff5cf4", "#7dff5c")
"""Of the first box, the second ... and from the beginning again."""


def require_png(path: Path) -> None:
    """Raise RecipeError unless a picture can be written under this name."""
    if path.suffix.lower() != ".png":
        raise RecipeError(f"--out {path}: the picture is written as PNG; name it {path.with_suffix('.png').name}.")


def drawn(image: Image, boxes: Sequence[Box]) -> Image:
    """Return a copy of an (H, W, 3) uint8 picture with boxes and their names, enlarged if it is small."""
    factor = max(1, -(-SMALLEST_EDGE_PX // min(image.shape[:2])))
    height, width = (factor * edge for edge in image.shape[:2])
    canvas = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.NEAREST)
    pen = PIL.ImageDraw.Draw(canvas)
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        x_min, y_min, x_max, y_max = box.in_pixels(height, width)
        pen.rectangle((x_min, y_min, x_max, y_max), outline=colour, width=2)
        pen.text((x_min + 4, max(0.0, y_min - 14)), box.name, fill=colour)
    return np.asarray(canvas)


def write_drawn(path: Path, image: Image, boxes: Sequence[Box]) -> None:
    """Write `drawn` as PNG, atomically. Raises DataError if it cannot be written."""
    file = io.BytesIO()
    PIL.Image.fromarray(drawn(image, boxes)).save(file, "PNG")
    with writing(path):
        write_whole(path, file.getvalue())
