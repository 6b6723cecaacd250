"""Tests of decoding stored frames."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.data.formats import images, png
from vla_robot.data.formats.bounds import MAX_PIXELS
from vla_robot.data.formats.images import MAX_TIFF_ENTRIES, decode_image, image_format, picture_size, tiff_size
from vla_robot.data.formats.lerobot.video import DepthImages

from ..conftest import traced

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


def test_orientation_in_metadata_is_ignored() -> None:
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
def test_other_bytes_than_a_frame_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"the frame is no JPEG or PNG"):
        decode_image(data, "uint8", "here")


def test_without_the_decoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(images, "_opencv", images._opencv.__wrapped__)  # another test may have found it
    with pytest.raises(MissingDependencyError, match=r"vla_robot\[data\]"):
        decode_image(encode(FRAME, "PNG"), "uint8", "here")


# -- pictures that announce a wrong size -----------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG whose header announces another size."""
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
    """Return the peak memory of numpy and Python. OpenCV's is not measured, and OpenCV must not be called."""
    with traced() as memory, pytest.raises(DataError):
        act()
    return memory.peak_bytes


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


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    stated = len(content) if length is None else length
    return struct.pack(">I", stated) + name + content + struct.pack(">I", zlib.crc32(name + content))


PNG_FILE = encode(FRAME, "PNG")
HEADER_END = 33


def with_chunk(added: bytes) -> bytes:
    """Return a PNG with a further chunk after its header."""
    return PNG_FILE[:HEADER_END] + added + PNG_FILE[HEADER_END:]


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 64, len(PNG_FILE)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_chunk_longer_than_its_png_is_refused_before_memory_is_taken(length: int, dtype: str) -> None:
    with pytest.raises(DataError, match="here: the frame is a damaged PNG"):
        decode_image(with_chunk(chunk(b"teXt", b"a", length)), dtype, "here")


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", 2**20, 0)) + chunk(b"fcTL", struct.pack(">IIIIIHHBB", *9 * [1])),
    ],
)
def test_a_png_of_a_second_header_or_of_several_pictures_is_refused(added: bytes) -> None:
    for read in (lambda data: decode_image(data, "uint8", "here"), png.decode):
        with pytest.raises(DataError, match=r"damaged"):
            read(with_chunk(added))


def test_a_png_of_many_chunks_of_every_kind_is_read() -> None:
    data = with_chunk(chunk(b"tEXt", b"Title\0lift") + 20 * chunk(b"prVt", bytes(100)))
    np.testing.assert_array_equal(decode_image(data, "uint8", ""), FRAME)


# -- depth in TIFF files ---------------------------------------------------------------------------------------

DEPTH = np.arange(12, dtype=np.float32).reshape(3, 4)


def metres(data: bytes) -> np.ndarray:
    return DepthImages([data], "mm", (3, 4, 1), "here").decode(0)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
def test_depth_in_a_tiff_is_read_as_it_is_commonly_stored(compression: str | None, dtype: type) -> None:
    depth = DEPTH.astype(dtype)
    np.testing.assert_allclose(metres(encode(depth, "TIFF", compression=compression))[..., 0], DEPTH / 1e3, rtol=1e-6)


def tiff(*extra: tuple[int, int, int, int], order: str = "<", size: tuple[int, int] = (4, 3)) -> bytes:
    """Return the depth above as TIFF with other entries, each (tag, type, number of values, value or its place)."""
    entries = {e[0]: e for e in ((256, 4, 1, size[0]), (257, 4, 1, size[1]), (258, 4, 1, 32), (259, 4, 1, 1))}
    entries |= {e[0]: e for e in ((262, 4, 1, 1), (273, 4, 1, 8), (277, 4, 1, 1), (279, 4, 1, 48), (339, 4, 1, 3))}
    entries |= {entry[0]: entry for entry in extra}
    directory = b"".join(struct.pack(f"{order}HHII", *entries[tag]) for tag in sorted(entries))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(f"{order}I", 8 + DEPTH.nbytes)
    return magic + start + DEPTH.astype(f"{order}f4").tobytes() + struct.pack(f"{order}H", len(entries)) + directory


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_either_byte_order_is_read(order: str) -> None:
    assert tiff_size(tiff(order=order), "here") == (4, 3)
    np.testing.assert_allclose(metres(tiff(order=order) + bytes(8))[..., 0], DEPTH / 1e3, rtol=1e-6)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ([(322, 4, 1, 30_000), (323, 4, 1, 30_000)], "a TIFF in tiles"),  # a tile of 3.6 GB
        ([(277, 4, 1, 3)], r"of \(3,\) channels"),
        ([(259, 4, 1, 34925)], r"compression \(34925,\)"),  # LZMA
        ([(273, 4, 1, 2**31)], "its strips lie outside of its"),
        ([(279, 4, 1, 2**31)], "its strips lie outside of its"),
        ([(273, 4, 2**30, 8)], "a damaged TIFF"),
        ([(256, 4, 0, 4)], "a damaged TIFF"),
        ([(256, 12, 1, 8)], "a damaged TIFF"),
        ([(257, 4, 1, 0)], "its strips lie outside of its"),
        ([(60_000 + n, 7, 150, 0) for n in range(8)], "a damaged TIFF"),  # each entry the whole file
        ([(60_000 + n, 7, 1, 0) for n in range(MAX_TIFF_ENTRIES)], "a damaged TIFF"),
    ],
)
def test_a_tiff_that_asks_for_more_than_it_holds_is_refused(extra: list[tuple[int, int, int, int]], what: str) -> None:
    data = tiff(*extra)
    with pytest.raises(DataError, match=rf"here, step 0: the depth image is .*{what}"):
        metres(data)
    assert peak_bytes(lambda: metres(data)) < 1e6


def test_a_tiff_that_announces_gigabytes_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(DataError, match="here, step 0: the frame has 60000 x 60000 pixels"):
        metres(tiff(size=(60_000, 60_000)))


@pytest.mark.parametrize("data", [b"", b"II*\0", b"II+\0" + bytes(60), b"GIF89a", tiff()[:-1], with_chunk(b"a")])
def test_other_bytes_than_a_depth_image_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="here, step 0: the depth image is"):
        metres(data)
