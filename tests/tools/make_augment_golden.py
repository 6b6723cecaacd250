"""What TensorFlow makes of an image: the reference's augmentation, and its resizing.

    python make_augment_golden.py OUT.npz

The operations and their order are those of dlimp, augmentations.py and transforms/frame_transforms.py, with the numbers
of openvla/openvla @c8f03f48, prismatic/vla/datasets/datasets.py. Made with TensorFlow 2.21.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

SEEDS = [(1, 2), (3, 7), (11, 5), (100, 200), (9, 9)]
AREA, SIZE = 0.9, 24


def picture(size: int) -> np.ndarray:
    """Slopes, edges, greys and full colours."""
    rows, columns = np.mgrid[0:size, 0:size] / (size - 1)
    image = np.stack([rows, columns, (rows + 1 - columns) / 2], axis=-1)
    image[: size // 4, : size // 4] = [1, 0, 0]
    image[-size // 4 :, : size // 4] = 0.5
    image[-size // 4 :, -size // 4 :] = [0.1, 0.9, 0.9]
    return np.round(image * 255).astype(np.uint8)


def augment(image: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    x: Any = tf.cast(image, tf.float32) / 255
    side = tf.sqrt(tf.random.stateless_uniform((1,), seed, AREA, AREA))
    top = tf.random.stateless_uniform((1,), seed, 0, 1 - side)
    box = tf.stack([top, top, top + side, top + side], axis=1)
    x = tf.image.crop_and_resize(x[None], box, [0], image.shape[:2])[0]
    x = tf.clip_by_value(x, 0, 1)
    for operation, numbers in (
        (tf.image.stateless_random_brightness, (0.2,)),
        (tf.image.stateless_random_contrast, (0.8, 1.2)),
        (tf.image.stateless_random_saturation, (0.8, 1.2)),
        (tf.image.stateless_random_hue, (0.05,)),
    ):
        x = tf.clip_by_value(operation(x, *numbers, seed=seed), 0, 1)
    return tf.cast(x * 255, tf.uint8).numpy()


def resized(image: np.ndarray, size: int) -> np.ndarray:
    x: Any = tf.image.resize(image, (size, size), method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(x), 0, 255), tf.uint8).numpy()


def main(out: Path) -> None:
    image, large = picture(SIZE), picture(97)
    stored: dict[str, Any] = {"image": image, "large": large}
    stored["chance"] = np.array([tf.random.stateless_uniform([], seed).numpy() for seed in SEEDS])
    stored["augmented"] = np.stack([augment(image, seed) for seed in SEEDS])
    stored |= {f"resized/{size}": resized(large, size) for size in (28, 97, 150)}
    np.savez_compressed(out, **stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
