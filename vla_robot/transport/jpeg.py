"""Camera frames as JPEG, for slow networks: a frame of 640x480 shrinks from 922 kB to about 60 kB.

JPEG loses detail that a policy may need: quality 90 and above changes a pixel by a few steps of 256.

A peer's frame is decoded only if its header announces a plain RGB picture of bounded size.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import TransportError
from vla_robot.core.image import check_image
from vla_robot.core.messages import Image

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 1 << 24
"""Most pixels of one message: two cameras of 4K video. A JPEG of a few bytes may announce 65535 times 65535."""

QUALITIES = range(1, 101)


def encode_jpeg(image: Image, quality: int) -> NDArray[np.uint8]:
    """Encode a frame as JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        quality: 1 to 100.

    Returns:
        (N,) uint8, the bytes of a JPEG file.

    Raises:
        ContractError: `image` is not an image.
        TransportError: the quality does not exist, or there are more pixels than a peer accepts.
    """
    import PIL.Image  # pillow stays out of a server's start

    check_image(image)
    if quality not in QUALITIES:
        raise TransportError(f"JPEG quality {quality} does not exist; 1 is the smallest file, 100 the best picture.")
    _check_pixels(image.shape[1], image.shape[0], MAX_PIXELS)
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.frombuffer(file.getbuffer(), np.uint8)


def decode_jpeg(data: NDArray[np.uint8], max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a JPEG frame.

    Args:
        data: (N,) uint8, the bytes of a JPEG file.
        max_pixels: most pixels of the frame.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        TransportError: it is not a JPEG file, damaged, not RGB, progressive, or too large.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data.data), formats=["JPEG"]) as picture:
            _check_header(picture, max_pixels)
            return np.asarray(picture)
    except TransportError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for a damaged file
        raise TransportError(f"a frame of {data.size} bytes is not a JPEG file, or damaged: {error}.") from error


def _check_header(picture: PIL.Image.Image, max_pixels: int) -> None:
    """Raise TransportError for a picture that must not be decoded."""
    _check_pixels(*picture.size, max_pixels)
    # Each scan of a progressive file costs as much as a whole picture, and a few bytes make a scan.
    if picture.mode != "RGB" or "progressive" in picture.info:
        raise TransportError(f"a frame is JPEG, but not plain RGB: mode {picture.mode}, {sorted(picture.info)}.")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TransportError(f"a JPEG frame of {width}x{height} pixels is more than the {max_pixels} pixels allowed.")
