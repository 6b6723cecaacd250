"""Frames of any size against transformers' own image processors: sizes, pixels, and numbers of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vla_robot.core.errors import ContractError
from vla_robot.policy.gemma4 import model as gemma4
from vla_robot.policy.gemma4.family import read_preprocessor as read_gemma4
from vla_robot.policy.qwen_vl import model as qwen
from vla_robot.policy.qwen_vl.family import read_preprocessor as read_qwen
from vla_robot.policy.vla.json_files import write_json
from vla_robot.policy.vlm.native_images import Budget, filling, within
from vla_robot.policy.vlm.square_images import read_square, siglip_processor

SIDES = st.integers(20, 2000)
GEMMA4 = {"vision_config": {"patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240}}


@given(height=SIDES, width=SIDES)
def test_qwens_sizes_are_the_librarys(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 200:
        return
    expected = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 1280)
    assert within(Budget(28, 56 * 56, 28 * 28 * 1280), height, width) == tuple(expected)


@given(height=SIDES, width=SIDES, tokens=st.sampled_from([70, 140, 280, 560, 1120]))
def test_gemma_4s_sizes_are_the_librarys(height: int, width: int, tokens: int) -> None:
    expected = get_aspect_ratio_preserving_size(height, width, 16, tokens * 9, 3)
    assert filling(Budget(48, 0, tokens * 48 * 48), height, width) == tuple(expected)


@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(224, 224, 64), (84, 84, 9), (480, 640, 391), (1080, 1920, 1222)]
)
def test_qwens_token_counts(tmp_path: Path, height: int, width: int, tokens: int) -> None:
    write_json(tmp_path / "preprocessor_config.json", {"min_pixels": 56 * 56, "max_pixels": 1280 * 28 * 28})
    H, W = read_qwen(tmp_path, {"vision_config": {}}).shape(height, width)
    assert tokens == H * W // 28**2


@pytest.mark.parametrize(
    ("height", "width", "budget", "tokens"),
    [(224, 224, 280, 256), (480, 640, 280, 266), (1080, 1920, 280, 264), (224, 224, 70, 64)],
)
def test_gemma_4s_token_counts(tmp_path: Path, height: int, width: int, budget: int, tokens: int) -> None:
    write_json(tmp_path / "preprocessor_config.json", {"max_soft_tokens": budget})
    H, W = read_gemma4(tmp_path, GEMMA4).shape(height, width)
    assert tokens == H * W // 48**2


@pytest.mark.parametrize(("size", "tokens"), [(224, 256), (448, 1024), (896, 4096)])
def test_paligemmas_frames_are_square(tmp_path: Path, size: int, tokens: int) -> None:
    write_json(tmp_path / "preprocessor_config.json", siglip_processor(size))
    H, W = read_square(tmp_path, {"vision_config": {"image_size": size}}).shape(480, 640)
    assert tokens == (H // 14) * (W // 14)


def _frames(seed: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.parametrize(("height", "width"), [(56, 84), (61, 47), (200, 300)])
def test_qwens_patches_are_the_librarys(tmp_path: Path, height: int, width: int) -> None:
    library: Any = Qwen2VLImageProcessorPil()
    library.save_pretrained(str(tmp_path))
    frames = _frames(1, height, width)
    expected = library(frames, return_tensors="pt")
    pixels = read_qwen(tmp_path, {"vision_config": {}})([frames])
    ours = qwen.patches_of(pixels.flatten(0, 1), 14, 2, 2)
    torch.testing.assert_close(ours, expected["pixel_values"], atol=1e-5, rtol=1e-5)
    grid = [1, pixels.shape[-2] // 14, pixels.shape[-1] // 14]
    assert expected["image_grid_thw"].tolist() == [grid, grid]


@pytest.mark.parametrize(("height", "width"), [(48, 96), (61, 47)])
def test_gemma_4s_patches_are_the_librarys(tmp_path: Path, height: int, width: int) -> None:
    library: Any = Gemma4ImageProcessorPil(max_soft_tokens=70)
    library.save_pretrained(str(tmp_path))
    frames = _frames(2, height, width)
    expected = library(frames, return_tensors="pt")
    pixels = read_gemma4(tmp_path, GEMMA4)([frames]).flatten(0, 1)
    ours, places = gemma4.patches_of(pixels, 16), gemma4.places_of(pixels.shape[-2] // 16, pixels.shape[-1] // 16)
    count = ours.shape[1]  # the library pads to its budget
    torch.testing.assert_close(ours, expected["pixel_values"][:, :count], atol=1e-6, rtol=1e-6)
    assert torch.equal(places.expand(2, -1, -1), expected["image_position_ids"][:, :count])
    assert (expected["image_position_ids"][:, count:] == -1).all()


def test_paligemmas_pixels_are_the_librarys(tmp_path: Path) -> None:
    library: Any = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    library.save_pretrained(str(tmp_path))
    frames = _frames(3, 61, 47)
    pixels = read_square(tmp_path, {"vision_config": {"image_size": 56}})([frames])
    expected = library(frames, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.flatten(0, 1), expected, atol=1e-6, rtol=1e-6)


def test_frames_that_become_different_sizes_are_told(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", {})
    read = read_qwen(tmp_path, {"vision_config": {}})
    with pytest.raises(ContractError, match=r"different sizes after resizing: \[\(56, 84\), \(84, 56\)\]"):
        read([[np.zeros((56, 84, 3), np.uint8), np.zeros((84, 56, 3), np.uint8)]])
    with pytest.raises(ContractError, match="too narrow: at most 200 to 1"):
        read([[np.zeros((2, 500, 3), np.uint8)]])
    with pytest.raises(ContractError, match="makes frames square"):
        read.after("rlds")
