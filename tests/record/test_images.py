"""Stored frames to pixels."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.record import images, png
from vla_robot.record.bounds import MAX_PIXELS
from vla_robot.record.images import decode_image, image_format, picture_size

FRAME = np.random.default_rng(0).integers(0, 256, (17, 13, 3), dtype=np.uint8)


def encode(image: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_those_of_pillow(kind: str) -> None:
    data = encode(FRAME, kind)
    assert image_format(data) == kind.lower()
    np.testing.assert_array_equal(decode_image(data, "uint8", ""), np.asarray(PIL.Image.open(io.BytesIO(data))))


def test_grey_frames_get_three_channels() -> None:
    grey = decode_image(encode(FRAME[..., 0], "PNG"), "uint8", "")
    np.testing.assert_array_equal(grey, np.repeat(FRAME[..., :1], 3, axis=2))


def test_a_note_about_orientation_turns_nothing() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    assert decode_image(encode(FRAME, "JPEG", exif=exif), "uint8", "").shape == FRAME.shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_frame_that_is_cut_off_is_refused(kind: str, kept: float) -> None:
    data = encode(FRAME, kind)
    with pytest.raises(DataError, match=rf"here: the frame is a {kind} that is cut off \(\d+ bytes\)"):
        decode_image(data[: int(kept * len(data))], "uint8", "here")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_damaged_frame_is_refused(dtype: str) -> None:
    data = bytearray(encode(FRAME, "PNG"))
    data[16:24] = b"\0" * 8  # a size of nothing
    with pytest.raises(DataError, match=r"here: the frame is a damaged PNG"):
        decode_image(bytes(data), dtype, "here")


@pytest.mark.parametrize("data", [b"", b"text", b"BM" + b"\0" * 100])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"the frame is no JPEG or PNG"):
        decode_image(data, "uint8", "here")


def test_without_the_decoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(images, "_opencv", images._opencv.__wrapped__)  # another test may have found it
    with pytest.raises(MissingDependencyError, match=r"vla_robot\[data\]"):
        decode_image(encode(FRAME, "PNG"), "uint8", "here")


# -- pictures that announce more than they are -----------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces a size, around the pixels of a small one."""
    data = bytearray(encode(FRAME, "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_of(width: int, height: int, **options: object) -> bytes:
    data = bytearray(encode(FRAME, "JPEG", **options))
    place = next(data.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def peak_bytes(act: Callable[[], object]) -> int:
    """Of numpy and Python; what OpenCV takes besides is not seen, and nothing may have reached it."""
    tracemalloc.start()
    with pytest.raises(DataError):
        act()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [FRAME.shape[:2][::-1], (1, 1), (640, 480)])
def test_the_size_of_a_picture_is_read_from_its_header(kind: str, size: tuple[int, int]) -> None:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    assert picture_size(encode(image, kind)) == size
    if kind == "JPEG":
        thumbnail = PIL.Image.Exif()
        thumbnail[0x010E] = "\xff\xc0 what looks like a header" * 3
        assert picture_size(encode(image, kind, exif=thumbnail, progressive=True, comment=b"\xff\xd8\xff")) == size


@pytest.mark.parametrize("data", [png_of(30_000, 30_000), jpeg_of(65_000, 65_000), png_of(2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_picture_that_announces_gigabytes_is_refused_before_memory_is_taken(data: bytes, dtype: str) -> None:
    with pytest.raises(DataError, match=rf"here: the frame has \d+ x \d+ pixels; at most {MAX_PIXELS} are decoded"):
        decode_image(data, dtype, "here")
    assert peak_bytes(lambda: decode_image(data, dtype, "here")) < 1e6


def test_a_stored_png_that_announces_gigabytes_is_refused() -> None:
    with pytest.raises(DataError, match="30000 x 30000 pixels"):
        png.decode(png_of(30_000, 30_000))


def test_a_frame_larger_than_its_dataset_declares_is_refused_unless_it_is_small() -> None:
    large = encode(np.zeros((1100, 1100, 3), np.uint8), "PNG")
    with pytest.raises(
        DataError, match=r"here: the frame has 1100 x 1100 pixels, and the dataset declares 84 x 84 x 3"
    ):
        decode_image(large, "uint8", "here", (84, 84, 3))
    assert decode_image(large, "uint8", "here", (1100, 1100, 3)).shape == (1100, 1100, 3)
    assert decode_image(large, "uint8", "here", (None, None, 3)).shape == (1100, 1100, 3)
    assert decode_image(encode(FRAME, "PNG"), "uint8", "here", (8, 8, 3)).shape == FRAME.shape


def test_a_progressive_jpeg_of_endless_scans_is_refused() -> None:
    data = encode(FRAME, "JPEG", progressive=True)
    assert decode_image(data, "uint8", "here").shape == FRAME.shape
    start = data.rfind(b"\xff\xda")
    many = data[:start] + 100 * data[start:-2] + data[-2:]
    with pytest.raises(DataError, match="a damaged JPEG"):
        decode_image(many, "uint8", "here")
