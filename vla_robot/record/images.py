"""Stored frames to pixels: JPEG and PNG, colour, grey and depth, as TensorFlow Datasets and LeRobot store them."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.record.bounds import require_pixels

JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND"
_PNG_SIZE = struct.Struct(">8xI4sII")
_JPEG_SIZE = struct.Struct(">HBHH")
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of the segment that says how large a JPEG is."""
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_SCAN = 0xDA
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers of segments that are passed over: tables, comments, and what applications add."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment behind them."""
MAX_SCANS = 64
"""Of a progressive JPEG. Each scan costs as much as a whole picture; libjpeg itself writes about ten."""


def image_format(data: bytes) -> str:
    """ "jpeg" or "png", by what the file begins with; "" for anything else."""
    if data.startswith(JPEG_MAGIC):
        return "jpeg"
    return "png" if data.startswith(PNG_MAGIC) else ""


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of a JPEG or PNG file, by its header alone; None when that is damaged."""
    if data.startswith(JPEG_MAGIC):
        return _jpeg_size(data)
    if len(data) < _PNG_SIZE.size or not data.startswith(PNG_MAGIC):
        return None
    length, chunk, width, height = _PNG_SIZE.unpack_from(data)
    return (width, height) if (length, chunk) == (13, b"IHDR") else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walks from marker to marker, as libjpeg does: what stands between two segments is skipped."""
    at, last = 2, len(data) - _JPEG_SIZE.size - 2
    while at < last and data[at] == 0xFF and data[at + 1] in _JPEG_TABLES:  # what most files begin with, quickly
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker, at = data[at + 1], at + 1
        if marker == 0xFF:
            continue
        at += 1
        if marker in _JPEG_ALONE or marker == 0:
            continue
        if marker == _JPEG_SCAN or at + _JPEG_SIZE.size > len(data):
            return None
        length, _, height, width = _JPEG_SIZE.unpack_from(data, at)
        if marker in _JPEG_PROGRESSIVE and data.count(bytes((0xFF, _JPEG_SCAN))) > MAX_SCANS:
            return None
        if marker in _JPEG_FRAMES:
            return width, height
        at += length
    return None


def decode_image(data: bytes, dtype: str, where: str, declared: tuple[int | None, ...] = ()) -> NDArray[Any]:
    """One stored frame as pixels.

    Args:
        data: a JPEG or PNG file.
        dtype: "uint8" for colour or grey; "uint16" for depth in a PNG of 16 bits; "float32" for depth whose four bytes
            stand in the four channels of a PNG, as TensorFlow Datasets stores it.
        where: file, field and step, for the error message.
        declared: shape of a frame in the dataset's description, where there is one; see `bounds.require_pixels`.

    Returns:
        (H, W, 3) uint8; grey frames get three equal channels. (H, W, 1) uint16 or float32 for depth.

    Raises:
        DataError: the frame is absent, damaged, or larger than declared or allowed. Its header is looked at before
            memory is taken.
        MissingDependencyError: the extra [data] is not installed.
    """
    require_whole(data, where)
    size = picture_size(data)
    if size is not None:
        require_pixels(*size, declared, where)
    pixels = None if size is None else _colour(data) if dtype == "uint8" else _depth(data, dtype)
    if pixels is None:
        raise DataError(f"{where}: the frame is a damaged {image_format(data).upper()} ({len(data)} bytes).")
    return pixels


def require_whole(data: bytes, where: str) -> None:
    """Raise DataError unless a frame begins and ends as a JPEG or PNG does."""
    if not _is_whole(data):
        what = image_format(data)
        reason = f"a {what.upper()} that is cut off" if what else "no JPEG or PNG"
        raise DataError(f"{where}: the frame is {reason} ({len(data)} bytes).")


def _is_whole(data: bytes) -> bool:
    """OpenCV fills up what is missing with grey and says nothing, so that must be noticed before."""
    if data.startswith(JPEG_MAGIC):
        return data.endswith(JPEG_END) or data.rstrip(b"\0").endswith(JPEG_END)
    return data.startswith(PNG_MAGIC) and PNG_END in data[-32:]


def _colour(data: bytes) -> NDArray[np.uint8] | None:
    """OpenCV gives the same pixels as pillow, 1.4 (PNG) to 2.6 (JPEG) times as fast at 112 x 112."""
    cv2, flags = _opencv()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # e.g. a height of 0
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


@functools.cache
def _opencv() -> tuple[Any, int]:
    """The module and the flags for a frame, looked up once: a frame takes 50 microseconds."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "decoding frames needs the package 'opencv-python-headless', which is not installed. "
            "Install it with `pip install 'vla_robot[data]'`, or run `make setup` in a checkout."
        ) from error
    # Without the second flag, a JPEG from a phone is turned as its metadata says; TensorFlow does not.
    return cv2, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def _depth(data: bytes, dtype: str) -> NDArray[Any] | None:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=("PNG",))
        if dtype == "uint16":
            pixels = np.asarray(image, dtype=np.uint16)
            return pixels[..., None] if pixels.ndim == 2 else None
        return np.ascontiguousarray(image.convert("RGBA")).view(np.float32)
    except (OSError, ValueError, SyntaxError):  # pillow raises SyntaxError for some broken chunks
        return None
