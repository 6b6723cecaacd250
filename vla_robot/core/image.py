"""Frames: the one resize that recording, training and acting share, so that all three see the same pixels."""

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


def resize(image: Image, height: int, width: int) -> Image:
    """Bicubic with antialiasing, as PIL does it; the same array comes back when nothing is to be done.

    Args:
        image: (H, W, 3) uint8.
        height: new height in pixels.
        width: new width in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    import PIL.Image  # pillow stays out of `import vla_robot.core`

    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC))


def resize_lanczos(image: Image, height: int, width: int) -> Image:
    """Lanczos with antialiasing, as the reference's training data was resized.

    Args:
        image: (H, W, 3) uint8.
        height: new height in pixels.
        width: new width in pixels.

    Returns:
        (height, width, 3) uint8.

    Source: dlimp, transforms/frame_transforms.py, resize_image: tf.image.resize(method="lanczos3", antialias=True),
    rounded and clipped.
    """
    if image.shape[:2] == (height, width):
        return image
    import PIL.Image

    # In floating point: on whole numbers Pillow cuts the overshoot at edges off after the first of its two passes.
    channels = (PIL.Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    resized = [np.asarray(c.resize((width, height), PIL.Image.Resampling.LANCZOS)) for c in channels]
    return np.clip(np.rint(np.stack(resized, axis=-1)), 0, 255).astype(np.uint8)
