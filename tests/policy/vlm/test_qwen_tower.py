"""Qwen-VL's tower of still frames against the library's own, which reads them as videos of any sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.vision_utils import get_vision_position_ids

from vla_robot.policy.qwen_vl.model import patches_of
from vla_robot.policy.qwen_vl.tower import places_of, read_still_frames, still_arguments

from .conftest import Sample

SIDES = st.integers(1, 9)


@given(rows=SIDES, columns=SIDES)
def test_places_are_the_librarys(rows: int, columns: int) -> None:
    theirs = get_vision_position_ids(torch.tensor([[1, 2 * rows, 2 * columns]]), 2)
    np.testing.assert_array_equal(places_of(2 * rows, 2 * columns, 2), theirs.numpy())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(56, 84), (84, 84), (140, 56)])
def test_features_of_frames_that_are_not_square(
    samples: Callable[[str], Sample], name: str, size: tuple[int, int]
) -> None:
    """84 px are three cells: windows of Qwen2.5-VL, two cells wide, have different sizes there."""
    visual = samples(name).library.model.visual
    ours = copy.deepcopy(visual)
    read_still_frames(ours)
    vision = visual.config
    frames = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    rows, columns = (side // vision.patch_size for side in size)
    twice = patches_of(frames, vision.patch_size, 2, vision.temporal_patch_size)
    once = patches_of(frames, vision.patch_size, 2, 1)
    with torch.inference_mode():
        expected = visual(twice, grid_thw=torch.tensor([[1, rows, columns]] * 3))
        found = ours(once, **still_arguments(3, rows, columns, 2, frames.device))
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        getattr(found, "deepstack_features", ()), getattr(expected, "deepstack_features", ()), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_plan_without_numbers_leaves_nothing_behind() -> None:
    with FakeTensorMode():
        still_arguments(2, 4, 6, 2, torch.device("cpu"))
    assert still_arguments(2, 4, 6, 2, torch.device("cpu"))["position_ids"].tolist()[:3] == [[0, 0], [0, 1], [1, 0]]
