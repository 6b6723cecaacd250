"""Stored frames to pixels: JPEG and PNG, colour, grey and depth, as TensorFlow Datasets and LeRobot store them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, MissingDependencyError

JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND"


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
        MissingDependencyError: the extra [data] is not installed.
    """
    if not _is_whole(data):
        what = image_format(data)
        reason = f"a {what.upper()} that is cut off" if what else "no JPEG or PNG"
        raise DataError(f"{where}: the frame is {reason} ({len(data)} bytes).")
    pixels = _colour(data) if dtype == "uint8" else _depth(data, dtype)
    if pixels is None:
        raise DataError(f"{where}: the frame is a damaged {image_format(data).upper()} ({len(data)} bytes).")
    return pixels


def _is_whole(data: bytes) -> bool:
    """OpenCV fills up what is missing with grey and says nothing, so that must be noticed before."""
    if data.startswith(JPEG_MAGIC):
        return data.endswith(JPEG_END) or data.rstrip(b"\0").endswith(JPEG_END)
    return data.startswith(PNG_MAGIC) and PNG_END in data[-32:]


def _colour(data: bytes) -> NDArray[np.uint8] | None:
    """OpenCV gives the same pixels as pillow, 1.4 (PNG) to 2.6 (JPEG) times as fast at 112 x 112."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "decoding frames needs the package 'opencv-python-headless', which is not installed. "
            "Install it with `pip install 'vla_robot[data]'`, or run `make setup` in a checkout."
        ) from error
    # Without the second flag, a JPEG from a phone is turned as its metadata says; TensorFlow does not.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _depth(data: bytes, dtype: str) -> NDArray[Any] | None:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=("PNG",))
        if dtype == "uint16":
            return np.asarray(image, dtype=np.uint16)[..., None]
        return np.ascontiguousarray(image.convert("RGBA")).view(np.float32)
    except (OSError, ValueError, SyntaxError):  # pillow raises SyntaxError for some broken chunks
        return None
