"""Resizing, turning and mirroring of frames, shared by worlds, recording, training and acting."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Image


def check_image(image: object, name: str = "image") -> None:
    """Raise ContractError unless this is an (H, W, 3) uint8 array with at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise ContractError(f"{name} must be a uint8 array of RGB values 0..255, got {type(image).__name__}.")
    array = cast("NDArray[Any]", image)
    if array.dtype != np.uint8:
        raise ContractError(f"{name} must be a uint8 array of RGB values 0..255, got {array.dtype}.")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ContractError(f"{name} must have shape (H, W, 3), got {array.shape}.")


def turned[A: np.generic](image: NDArray[A], turn_deg: int, mirror: bool) -> NDArray[A]:
    """Turn a picture clockwise by a multiple of 90 degrees, then exchange left and right.

    Args:
        image: (H, W, 3) uint8, or another array of pixels.
        turn_deg: 0, 90, 180 or 270.
        mirror: whether to exchange left and right.

    Returns:
        (H, W, ...) or (W, H, ...), contiguous; the image itself if nothing is to be done.
    """
    if not turn_deg and not mirror:
        return image
    result = np.rot90(image, -turn_deg // 90)
    return np.ascontiguousarray(result[:, ::-1] if mirror else result)


def turned_back(image: Image, turn_deg: int, mirror: bool) -> Image:
    """Invert `turned` with the same arguments."""
    return turned(image, turn_deg if mirror else -turn_deg % 360, mirror)


def resize(image: Image, height: int, width: int) -> Image:
    """Resize as PIL does (bicubic, antialiasing); an image of that size is returned unchanged.

    Args:
        image: (H, W, 3) uint8.
        height: new height [px].
        width: new width [px].

    Returns:
        (height, width, 3) uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    import PIL.Image  # pillow stays out of `import vla_robot.core`

    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC))


def resize_lanczos(image: Image, height: int, width: int) -> Image:
    """Resize by Lanczos with antialiasing, as the reference's training data was.

    Args:
        image: (H, W, 3) uint8.
        height: new height [px].
        width: new width [px].

    Returns:
        (height, width, 3) uint8.

    Source: dlimp, transforms/frame_transforms.py, resize_image: tf.image.resize(method="lanczos3", antialias=True),
    rounded and clipped.
    """
    if image.shape[:2] == (height, width):
        return image
    import PIL.Image

    # In floating point: with integers, Pillow clips the overshoot at edges after the first of its two passes.
    channels = (PIL.Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    resized = [np.asarray(c.resize((width, height), PIL.Image.Resampling.LANCZOS)) for c in channels]
    return np.clip(np.rint(np.stack(resized, axis=-1)), 0, 255).astype(np.uint8)
