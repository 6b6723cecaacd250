"""JPEG frames: close to the original, bounded before they are decoded, and whatever arrives, only TransportError."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.errors import ContractError, TransportError
from vla_robot.core.messages import Image, Observation
from vla_robot.transport.codec import MessageReader, pack_observation, unpack_observation
from vla_robot.transport.jpeg import MAX_PIXELS, decode_jpeg, encode_jpeg
from vla_robot.transport.wire import Message, decode, encode


def scene(height: int = 48, width: int = 64) -> Image:
    """Smooth, as a camera sees it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=-1).astype(np.uint8)


def file_of(image: PIL.Image.Image, **options: object) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, **{"format": "JPEG", **options})
    return np.frombuffer(file.getvalue(), np.uint8)


def carried(observation: Observation, jpeg_quality: dict[str, int]) -> Observation:
    frames = encode(Message("x", 1, pack_observation(observation, jpeg_quality)))
    return unpack_observation(MessageReader(decode([bytes(f) for f in frames]).body, "x"))


def test_a_frame_arrives_close_to_what_it_was() -> None:
    image = scene()
    arrived = decode_jpeg(encode_jpeg(image, 90))
    assert arrived.shape == image.shape
    assert arrived.dtype == np.uint8
    assert np.abs(arrived.astype(int) - image).mean() < 3.0


def test_quality_trades_size_for_closeness() -> None:
    image = scene()
    small, fine = encode_jpeg(image, 20), encode_jpeg(image, 95)
    error = [np.abs(decode_jpeg(data).astype(int) - image).mean() for data in (small, fine)]
    assert small.size < fine.size < image.size
    assert error[0] > error[1]


def test_each_camera_chooses_for_itself() -> None:
    image = scene()
    observation = Observation({"front": image, "wrist": image}, np.zeros(2), "go", stamp_ns=1, step=0)
    arrived = carried(observation, {"front": 90})
    assert np.array_equal(arrived.images["wrist"], image)
    assert not np.array_equal(arrived.images["front"], image)
    assert arrived.images["front"].shape == image.shape


@pytest.mark.parametrize(
    ("side", "reason"),
    [(8000, f"8000x8000 pixels is more than the {MAX_PIXELS} pixels allowed"), (65535, "could be decompression bomb")],
)
def test_a_bomb_is_refused_by_its_header(side: int, reason: str) -> None:
    data = bytearray(file_of(PIL.Image.new("RGB", (8, 8))).tobytes())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = 2 * side.to_bytes(2)  # height and width
    with pytest.raises(TransportError, match=reason):
        decode_jpeg(np.frombuffer(bytes(data), np.uint8))


def test_many_frames_share_one_bound() -> None:
    data = file_of(PIL.Image.new("RGB", (4000, 3000)))
    images = {"a": data, "b": data.copy()}
    body = {"images": images, "state": np.zeros(1), "instruction": "", "stamp_ns": 1, "step": 0, "privileged": {}}
    with pytest.raises(TransportError, match=f"4000x3000 pixels is more than the {MAX_PIXELS - 12_000_000} pixels"):
        unpack_observation(MessageReader(body, "x"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros(0, np.uint8), "a frame of 0 bytes is not a JPEG file, or damaged"),
        (np.frombuffer(b"GIF89a trailing", np.uint8), "is not a JPEG file"),
        (file_of(PIL.Image.new("RGB", (8, 8)), format="PNG"), "is not a JPEG file"),
        (file_of(PIL.Image.new("L", (8, 8))), "not plain RGB: mode L"),
        (file_of(PIL.Image.new("CMYK", (8, 8))), "not plain RGB: mode CMYK"),
        (file_of(PIL.Image.new("RGB", (8, 8)), progressive=True), "not plain RGB: mode RGB.*progressive"),
        (file_of(PIL.Image.fromarray(scene()))[:400], "or damaged"),
    ],
    ids=["empty", "GIF", "PNG", "grey", "CMYK", "progressive", "cut short"],
)
def test_what_is_no_plain_jpeg_is_refused_with_the_reason(data: np.ndarray, reason: str) -> None:
    with pytest.raises(TransportError, match=reason):
        decode_jpeg(data)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_but_never_worse(data: st.DataObject) -> None:
    file = bytearray(encode_jpeg(scene(16, 16), 80).tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TransportError):
        assert decode_jpeg(np.frombuffer(bytes(file), np.uint8)).size <= MAX_PIXELS * 3


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_a_quality_that_does_not_exist_is_refused(quality: int) -> None:
    with pytest.raises(TransportError, match=f"JPEG quality {quality} does not exist"):
        encode_jpeg(scene(), quality)


def test_what_is_no_frame_is_refused_before_it_leaves() -> None:
    with pytest.raises(ContractError, match="uint8"):
        encode_jpeg(np.zeros((4, 4, 3)), 90)  # pyright: ignore[reportArgumentType]
