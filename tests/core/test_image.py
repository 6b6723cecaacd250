"""Pictures are turned as cameras hang, and mirrored as LIBERO's data are."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from vla_robot.core.image import turned, turned_back

FRAME = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
THEIRS = PIL.Image.Transpose
TRANSPOSED = {90: THEIRS.ROTATE_270, 180: THEIRS.ROTATE_180, 270: THEIRS.ROTATE_90}


@pytest.mark.parametrize("turn_deg", TRANSPOSED)
def test_a_turn_is_clockwise_as_pillow_turns(turn_deg: int) -> None:
    theirs = np.asarray(PIL.Image.fromarray(FRAME).transpose(TRANSPOSED[turn_deg]))  # its angles go the other way
    np.testing.assert_array_equal(turned(FRAME, turn_deg, mirror=False), theirs)


def test_the_mirror_comes_after_the_turn() -> None:
    theirs = PIL.Image.fromarray(FRAME).transpose(TRANSPOSED[90]).transpose(THEIRS.FLIP_LEFT_RIGHT)
    np.testing.assert_array_equal(turned(FRAME, 90, mirror=True), np.asarray(theirs))


def test_a_picture_that_is_upright_is_not_copied() -> None:
    assert turned(FRAME, 0, mirror=False) is FRAME


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn_deg", [0, 90, 180, 270])
def test_what_was_turned_is_turned_back(turn_deg: int, mirror: bool) -> None:
    there = turned(FRAME, turn_deg, mirror)
    assert there.flags.c_contiguous
    np.testing.assert_array_equal(turned_back(there, turn_deg, mirror), FRAME)
