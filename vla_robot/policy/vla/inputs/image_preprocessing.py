"""Image preprocessing of the reference's evaluations: it repeats how the training data were stored and augmented.

    (H, W, 3) --JPEG and back--> --Lanczos--> (S, S, 3) --middle 0.9 of the area--> (S, S, 3)
              `-------------- "rlds" ---------------'
              `------------------------------ "rlds_crop" --------------------------'

A policy trained on random crops of 0.9 of the area (LIBERO) saw everything 5 % larger; without the crop its
gripper misses the object. The crop is sampled as TensorFlow's `crop_and_resize` samples, corner to corner.

Source: openvla/openvla @c8f03f48 and moojink/openvla-oft @213c5ff8, experiments/robot/openvla_utils.py.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from vla_robot.core.errors import ContractError, unknown
from vla_robot.core.image import resize_lanczos
from vla_robot.core.messages import Image

NONE, RLDS, RLDS_CROP = "none", "rlds", "rlds_crop"
PREPROCESSINGS = (NONE, RLDS, RLDS_CROP)
CROP_AREA = 0.9
JPEG_QUALITY = 95
"""TensorFlow's default."""


def require_preprocessing(name: str) -> str:
    """Return the name. Raises ContractError for an unknown one."""
    if name not in PREPROCESSINGS:
        raise ContractError(unknown("image_preprocessing", name, PREPROCESSINGS))
    return name


def preprocessed(image: Image, size: int, name: str) -> Image:
    """Return (H, W, 3) uint8 as (size, size, 3) uint8, or the frame itself for "none"."""
    if name == NONE:
        return image
    stored = resize_lanczos(_jpeg_and_back(image), size, size)
    return centre_crop(stored) if name == RLDS_CROP else stored


def _jpeg_and_back(image: Image) -> Image:
    """Encode a frame as JPEG with halved colour resolution, as datasets in RLDS store it, and decode it."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(PIL.Image.open(buffer).convert("RGB"))


def centre_crop(image: Image) -> Image:
    """Stretch the middle 0.9 of the area to the old size: (S, S, 3) uint8 -> (S, S, 3) uint8.

    Output pixel i is interpolated at `first * (S - 1) + i * side`, where side is the square root of 0.9
    and first = (1 - side) / 2. As in TensorFlow, it computes in fp32 and truncates at the end.
    """
    size = len(image)
    side = np.sqrt(np.float32(CROP_AREA))
    first = (1 - side) / 2
    where = first * np.float32(size - 1) + np.arange(size, dtype=np.float32) * side  # (S,) source coordinates
    low = np.floor(where).astype(np.int64)
    high = np.ceil(where).astype(np.int64)
    share = where - low  # (S,) weight of the higher neighbour
    x = image.astype(np.float32) * np.float32(1 / 255)
    x = x[:, low] + (x[:, high] - x[:, low]) * share[None, :, None]
    x = x[low] + (x[high] - x[low]) * share[:, None, None]
    return (x.clip(0, 1) * np.float32(255.5)).clip(0, 255).astype(np.uint8)
