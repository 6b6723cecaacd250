"""Frames as PNG: lossless, so that a failure is studied, and a policy trained, on exactly the pixels that were seen."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError
from vla_robot.core.messages import Image
from vla_robot.data.formats.bounds import require_pixels
from vla_robot.data.formats.images import picture_size

LEVEL = 1
"""zlib's fastest: several times quicker than its default, at a tenth more bytes for rendered frames."""


def encode(image: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    """(H, W, 3) uint8 -> PNG. (H, W, 1) float32 depth -> PNG whose four channels hold the four bytes of each number."""
    import PIL.Image  # not at the top: the control loop imports this room and may never write a frame

    pixels = np.ascontiguousarray(image).view(np.uint8) if image.dtype == np.float32 else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=LEVEL)
    return buffer.getvalue()


def decode(data: bytes) -> Image:
    """PNG -> (H, W, 3) uint8.

    Raises:
        DataError: not a PNG, a damaged one, or one of more than `bounds.MAX_PIXELS`.
    """
    import PIL.Image

    size = picture_size(data) if isinstance(data, bytes) else None
    if size is None:
        raise DataError("a stored frame is no readable PNG: its header is damaged.")
    require_pixels(*size, (), "a stored PNG")
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # pillow raises SyntaxError for some broken chunks
        raise DataError(f"a stored frame is no readable PNG: {error}.") from error
