"""Stored frames to pixels: JPEG and PNG, colour, grey and depth, as TensorFlow Datasets and LeRobot store them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def image_format(data: bytes) -> str:
    """ "jpeg" or "png", by what the file begins with; "" for anything else."""
    if data.startswith(JPEG_MAGIC):
        return "jpeg"
    return "png" if data.startswith(PNG_MAGIC) else ""


def decode_image(data: bytes, dtype: str, where: str) -> NDArray[Any]:
    """One stored frame as pixels.

    Args:
        data: a JPEG or PNG file.
        dtype: "uint8" for colour or grey; "uint16" for depth in a PNG of 16 bits; "float32" for depth whose four bytes
            stand in the four channels of a PNG, as TensorFlow Datasets stores it.
        where: file, field and step, for the error message.

    Returns:
        (H, W, 3) uint8; grey frames get three equal channels. (H, W, 1) uint16 or float32 for depth.

    Raises:
        DataError: the frame is absent or damaged.
    """
    import PIL.Image

    try:
        # Named formats only: pillow knows many more, and some of them run other programs.
        image = PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if dtype == "uint16":
            return np.asarray(image, dtype=np.uint16)[..., None]
        if dtype == "float32":
            return np.ascontiguousarray(image.convert("RGBA")).view(np.float32)
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # pillow raises SyntaxError for some broken chunks
        raise DataError(f"{where}: the frame is no readable JPEG or PNG ({len(data)} bytes): {error}.") from error
