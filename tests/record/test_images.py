"""Stored frames to pixels."""

from __future__ import annotations

import io
import sys

import numpy as np
import PIL.Image
import pytest

from vla_robot.core.errors import DataError, MissingDependencyError
from vla_robot.record.images import decode_image, image_format

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
    with pytest.raises(MissingDependencyError, match=r"vla_robot\[data\]"):
        decode_image(encode(FRAME, "PNG"), "uint8", "here")
