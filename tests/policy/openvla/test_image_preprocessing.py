"""The evaluation's pre-step, against numbers worked out from TensorFlow's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vla_robot
from vla_robot.core.errors import ContractError
from vla_robot.core.image import resize_lanczos
from vla_robot.policy.openvla.checkpoint import read_checkpoint
from vla_robot.policy.vla.inputs.image_preprocessing import centre_crop, preprocessed


def photo(height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth colours, which JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x + 60, y + 80, 200 - x], axis=-1).clip(0, 255).astype(np.uint8)


def test_the_crop_reads_where_tensorflow_reads() -> None:
    ramp = np.repeat(np.arange(224, dtype=np.uint8)[:, None, None], 224, axis=1).repeat(3, axis=2)
    column = centre_crop(ramp)[:, 0, 0]
    # side = sqrt(0.9) = 0.9486833, first = 0.0256584; row i is read at 223 * first + side * i, whose value on a ramp
    # is that number; uint8 = floor(value / 255 * 255.5).
    #   0: 5.7218 -> 5.733   1: 6.6705 -> 6.684   100: 100.59 -> 100.79   150: 148.02 -> 148.31   223: 217.28 -> 217.70
    assert [column[i] for i in (0, 1, 100, 150, 223)] == [5, 6, 100, 148, 217]
    np.testing.assert_array_equal(centre_crop(ramp.transpose(1, 0, 2))[0, :, 0], column)


def test_between_two_pixels_the_crop_is_their_mean_by_distance() -> None:
    image = np.zeros((3, 3, 3), dtype=np.uint8)
    image[1, 1] = 200
    # S = 3: read at 0.0513167, 1, 1.9486833; the outer ones take 0.0513167 of the middle.
    #   200 * 0.0513167 = 10.263 -> * 255.5 / 255 = 10.283; 200 * 0.0513167 ** 2 = 0.5267 -> 0.528
    expected = np.array([[0, 10, 0], [10, 200, 10], [0, 10, 0]])
    np.testing.assert_array_equal(centre_crop(image)[..., 0], expected)


@given(st.integers(0, 255), st.integers(1, 40))
def test_one_colour_stays_itself(value: int, size: int) -> None:
    image = np.full((size, size, 3), value, dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(image), image)


def test_the_middle_stays_in_the_middle() -> None:
    image = np.zeros((225, 225, 3), dtype=np.uint8)
    image[112, 112] = 255
    cropped = centre_crop(image)
    assert cropped[112, 112, 0] == 255
    np.testing.assert_array_equal(cropped, cropped[::-1, ::-1])


def test_stored_frames_went_through_jpeg_and_lanczos() -> None:
    image = photo()
    stored = preprocessed(image, 56, "rlds")
    plain = resize_lanczos(image, 56, 56)
    assert stored.shape == (56, 56, 3)
    assert 0 < np.abs(stored.astype(int) - plain).max() <= 6  # not the same, and not another picture
    np.testing.assert_array_equal(preprocessed(image, 56, "rlds_crop"), centre_crop(stored))


def test_nothing_happens_unless_asked() -> None:
    image = photo()
    assert preprocessed(image, 56, "none") is image


def test_it_is_the_first_thing_that_happens_to_a_frame(tiny_folder: Path) -> None:
    cropping = read_checkpoint(tiny_folder, "rlds_crop").preprocessor
    plain = read_checkpoint(tiny_folder).preprocessor
    image = photo()
    np.testing.assert_array_equal(cropping.resized(image), plain.resized(preprocessed(image, 28, "rlds_crop")))


def test_an_unknown_preprocessing_is_told(tiny_folder: Path) -> None:
    with pytest.raises(ContractError, match="unknown image_preprocessing 'rlds_crp'; did you mean 'rlds_crop'"):
        vla_robot.load_policy(tiny_folder, image_preprocessing="rlds_crp")  # pyright: ignore[reportArgumentType]
