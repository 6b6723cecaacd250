"""Decodes stored frames: JPEG and PNG, colour, grey and depth, as TensorFlow Datasets and LeRobot store them.

The announced size of a picture is checked before a decoder gets it, since decoders allocate the memory first.
"""

from __future__ import annotations

import functools
import io
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.core.messages import Image
from vla_robot.core.untrusted import read_file
from vla_robot.data.formats.bounds import require_pixels

JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND"
_PNG_SIZE = struct.Struct(">8xI4sII")
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_CHECKSUM = 4
_PNG_FIRST = len(PNG_MAGIC) + _PNG_CHUNK.size + 13 + _PNG_CHECKSUM
"""Offset of the chunk after the header."""
_PNG_HEADER, _PNG_ANIMATION = b"IHDR", b"acTL"
_JPEG_SIZE = struct.Struct(">HBHH")
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of the segment that holds the size of a JPEG."""
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_SCAN = 0xDA
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers of segments that are skipped: tables, comments and application data."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""
TIFF_MAGICS = (b"II*\0", b"MM\0*")
_TIFF_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Type of a value -> its size [bytes]."""
_TIFF_INTEGERS = {3: "H", 4: "I"}
_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _CHANNELS, _STRIP_BYTES = 256, 257, 259, 273, 277, 279
_TILES = frozenset({322, 323, 324, 325})
_TIFF_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946})
"""None, LZW, Deflate, PackBits, and Deflate by its older number."""
MAX_TIFF_ENTRIES = 64
"""Largest number of entries of a TIFF's directory; Pillow writes about ten."""
MAX_PICTURE_BYTES = 2**26
MAX_SCANS = 64
"""Largest number of scans of a progressive JPEG. Each takes as long as a whole picture; libjpeg writes about ten."""


def image_format(data: bytes) -> str:
    """Return "jpeg" or "png", by the first bytes of the file; "" for anything else."""
    if data.startswith(JPEG_MAGIC):
        return "jpeg"
    return "png" if data.startswith(PNG_MAGIC) else ""


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) [px] of a JPEG or PNG file without decoding it; None when it is damaged."""
    if data.startswith(JPEG_MAGIC):
        return _jpeg_size(data)
    if len(data) < _PNG_SIZE.size or not data.startswith(PNG_MAGIC):
        return None
    length, chunk, width, height = _PNG_SIZE.unpack_from(data)
    return (width, height) if (length, chunk) == (13, _PNG_HEADER) and _has_sound_chunks(data) else None


def _has_sound_chunks(data: bytes) -> bool:
    """Return whether each chunk of a PNG lies inside the file, up to its end, and there is one header and no animation.

    OpenCV allocates the announced length of a chunk, up to 4 GB, before it reads the chunk. A second header, or the
    frames of an animation, would have sizes of their own.
    """
    at = _PNG_FIRST
    while at + _PNG_CHUNK.size + _PNG_CHECKSUM <= len(data):
        length, chunk = _PNG_CHUNK.unpack_from(data, at)
        if chunk == PNG_END:
            return length == 0
        if chunk in (_PNG_HEADER, _PNG_ANIMATION):
            return False
        at += _PNG_CHUNK.size + length + _PNG_CHECKSUM
    return False


def tiff_size(data: bytes, where: str) -> tuple[int, int]:
    """Return (width, height) [px] of a TIFF of one channel in strips, as depth is stored, from its directory.

    Pillow copies the values of each entry of the directory, and libtiff allocates a whole tile for any size of picture,
    so that both are checked.

    Args:
        data: the file.
        where: file, field and step, for the error message.

    Raises:
        DataError: an entry or a strip lies outside of the file, the entries hold more than the file does, or the
            picture is stored in another way (tiles, channels, another compression).
    """
    try:
        values = _tiff_values(data)
        (width,), (height,) = values[_WIDTH], values[_HEIGHT]
        strips = list(zip(values[_STRIPS], values[_STRIP_BYTES], strict=True))
    except (KeyError, ValueError, struct.error) as error:
        raise DataError(f"{where}: the depth image is a damaged TIFF ({len(data)} bytes).") from error
    if not 0 < len(strips) <= height or any(start + size > len(data) for start, size in strips):
        raise DataError(f"{where}: the depth image is a damaged TIFF: its strips lie outside of its {len(data)} bytes.")
    compression, channels = values.get(_COMPRESSION, (1,)), values.get(_CHANNELS, (1,))
    if _TILES & values.keys() or channels != (1,) or not _TIFF_COMPRESSIONS.issuperset(compression):
        tiles = "tiles" if _TILES & values.keys() else "strips"
        raise DataError(
            f"{where}: the depth image is a TIFF in {tiles} of {channels} channels, compression {compression}. Only "
            "strips of one channel are read, uncompressed or by LZW, Deflate or PackBits. lerobot writes the first."
        )
    return width, height


def _tiff_values(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return tag -> its integers, of the first directory; () for values of another type.

    Raises:
        ValueError: the directory is damaged.
        struct.error: the directory lies outside of the file.
    """
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    values: dict[int, tuple[int, ...]] = {}
    taken = 0
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at)
        size = _TIFF_VALUE_BYTES.get(kind, 0) * number
        place = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
        taken += size
        if tag in values or len(values) == MAX_TIFF_ENTRIES or not size or max(place + size, taken) > len(data):
            raise ValueError(f"tag {tag}")
        integer = _TIFF_INTEGERS.get(kind)
        values[tag] = struct.unpack_from(f"{order}{number}{integer}", data, place) if integer else ()
    return values


class _LastJpeg(threading.local):
    """Header of the JPEG read last by this thread, up to its size: the frames of a camera have equal headers."""

    header = JPEG_MAGIC
    size: tuple[int, int] | None = None


_last_jpeg = _LastJpeg()


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) [px]; None where the header is damaged, or a progressive JPEG has too many scans."""
    if _last_jpeg.size is not None and data.startswith(_last_jpeg.header):
        return _last_jpeg.size
    size, end = _walk_jpeg(data)
    if end:
        _last_jpeg.header, _last_jpeg.size = data[:end], size
    return size


def _walk_jpeg(data: bytes) -> tuple[tuple[int, int] | None, int]:
    """Go from marker to marker, as libjpeg does: bytes between two segments are skipped.

    Returns:
        (width, height) or None, and the number of first bytes that it depends on; 0 when it depends on all bytes.
    """
    at, last = 2, len(data) - _JPEG_SIZE.size - 2
    while at < last and data[at] == 0xFF and data[at + 1] in _JPEG_TABLES:  # a fast path for most files
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        marker, at = data[at + 1], at + 1
        if marker == 0xFF:
            continue
        at += 1
        if marker in _JPEG_ALONE or marker == 0:
            continue
        if marker == _JPEG_SCAN or at + _JPEG_SIZE.size > len(data):
            return None, 0
        length, _, height, width = _JPEG_SIZE.unpack_from(data, at)
        if marker in _JPEG_PROGRESSIVE and data.count(bytes((0xFF, _JPEG_SCAN))) > MAX_SCANS:
            return None, 0
        if marker in _JPEG_FRAMES:
            return (width, height), 0 if marker in _JPEG_PROGRESSIVE else at + _JPEG_SIZE.size
        at += length
    return None, 0


def decode_image(data: bytes, dtype: str, where: str, declared: tuple[int | None, ...] = ()) -> NDArray[Any]:
    """Decode one stored frame.

    Args:
        data: a JPEG or PNG file.
        dtype: "uint8" for colour or grey; "uint16" for depth in a PNG of 16 bits; "float32" for depth whose four bytes
            are the four channels of a PNG, as TensorFlow Datasets stores it.
        where: file, field and step, for the error message.
        declared: shape of a frame in the dataset's description, where there is one; see `bounds.require_pixels`.

    Returns:
        (H, W, 3) uint8; grey frames get three equal channels. (H, W, 1) uint16 or float32 for depth.

    Raises:
        DataError: the frame is absent, damaged, or larger than declared or allowed. Its header is checked before
            memory is allocated.
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


def read_picture(path: Path) -> Image:
    """Read a JPEG or PNG file. Return (H, W, 3) uint8.

    Raises:
        DataError: it cannot be read, is no picture, or is too large.
        MissingDependencyError: as `decode_image`.
    """
    try:
        data = read_file(path, MAX_PICTURE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_image(data, "uint8", str(path))


def require_whole(data: bytes, where: str) -> None:
    """Raise DataError unless a frame begins and ends as a JPEG or PNG does."""
    if not _is_whole(data):
        what = image_format(data)
        reason = f"a {what.upper()} that is cut off" if what else "no JPEG or PNG"
        raise DataError(f"{where}: the frame is {reason} ({len(data)} bytes).")


def _is_whole(data: bytes) -> bool:
    """Return whether a file has its end; OpenCV fills missing pixels with grey without an error."""
    if data.startswith(JPEG_MAGIC):
        return data.endswith(JPEG_END) or data.rstrip(b"\0").endswith(JPEG_END)
    return data.startswith(PNG_MAGIC) and PNG_END in data[-32:]


def _colour(data: bytes) -> NDArray[np.uint8] | None:
    """Decode colour by OpenCV: the same pixels as by pillow, 1.4 (PNG) to 2.6 (JPEG) times as fast at 112 x 112."""
    cv2, flags = _opencv()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # e.g. a height of 0
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


@functools.cache
def _opencv() -> tuple[Any, int]:
    """Return OpenCV and its flags for a frame. They are cached, since decoding a frame takes only 50 microseconds."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "decoding frames needs the package 'opencv-python-headless', which is not installed. "
            "Install it with `pip install 'vla_robot[data]'`, or run `make setup` in a checkout."
        ) from error
    # Without the second flag, OpenCV turns a JPEG by its metadata; TensorFlow does not.
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
