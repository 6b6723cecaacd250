"""Augmentation and resizing as the reference's data had them.

golden/oxe/augmented.npz: from TensorFlow 2.21, made by tests/tools/make_augment_golden.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.core.image import resize_lanczos
from vla_robot.train.batches.augment import openvla_augment

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "oxe" / "augmented.npz")


def test_augmentation_is_tensorflows_within_a_grey_level() -> None:
    frames = torch.from_numpy(np.repeat(GOLDEN["image"][None], len(GOLDEN["chance"]), axis=0))
    made = openvla_augment(frames, torch.from_numpy(GOLDEN["chance"])).numpy().astype(int)
    difference = np.abs(made - GOLDEN["augmented"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01, "where rounding falls on the other side of a whole number"


@pytest.mark.parametrize("size", [28, 97, 150])
def test_lanczos_is_tensorflows(size: int) -> None:
    np.testing.assert_array_equal(resize_lanczos(GOLDEN["large"], size, size), GOLDEN[f"resized/{size}"])


def test_each_image_is_augmented_by_its_own_number() -> None:
    frames = torch.from_numpy(np.repeat(GOLDEN["image"][None], 2, axis=0))
    both = openvla_augment(frames, torch.tensor([0.1, 0.9]))
    alone = openvla_augment(frames[:1], torch.tensor([0.9]))
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])


def test_a_grey_image_stays_grey() -> None:
    grey = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    made = openvla_augment(grey, torch.tensor([0.5]))
    assert (made == made[..., :1]).all() and int((made.int() - 128).abs().max()) <= 1
