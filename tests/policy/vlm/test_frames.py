"""Frames of any size against transformers' own image processors: sizes, pixels, and numbers of tokens."""

from __future__ import annotations

import runpy
from dataclasses import replace
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
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from vla_robot.core.embodiment import CameraSpec
from vla_robot.core.errors import CheckpointError, ContractError
from vla_robot.policy.gemma4 import model as gemma4
from vla_robot.policy.gemma4.family import read_preprocessor as read_gemma4
from vla_robot.policy.gemma4.family import read_unified
from vla_robot.policy.qwen_vl import model as qwen
from vla_robot.policy.qwen_vl.family import read_preprocessor as read_qwen
from vla_robot.policy.smolvlm.family import image_text
from vla_robot.policy.vla.json_files import write_json
from vla_robot.policy.vlm.native_images import Budget, filling, within
from vla_robot.policy.vlm.split_images import read_split, scaled
from vla_robot.policy.vlm.square_images import read_square, siglip_processor
from vla_robot.testing import toy_embodiment

SIDES = st.integers(20, 2000)
GEMMA4 = {"vision_config": {"patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240}}
SMOLVLM = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}


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


@given(height=SIDES, width=SIDES, longest=st.sampled_from([364, 512, 1456, 2048]))
def test_smolvlms_first_sizes_are_the_librarys(height: int, width: int, longest: int) -> None:
    expected = get_resize_output_image_size(np.empty((3, height, width), np.uint8), longest)
    assert scaled(height, width, longest) == tuple(expected)


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
    pixels = torch.from_numpy(read_qwen(tmp_path, {"vision_config": {}})([frames]))
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
    pixels = torch.from_numpy(read_gemma4(tmp_path, GEMMA4)([frames])).flatten(0, 1)
    ours, places = gemma4.patches_of(pixels, 16), gemma4.places_of(pixels.shape[-2] // 16, pixels.shape[-1] // 16)
    count = ours.shape[1]  # the library pads to its budget
    torch.testing.assert_close(ours, expected["pixel_values"][:, :count], atol=1e-6, rtol=1e-6)
    assert torch.equal(places.expand(2, -1, -1), expected["image_position_ids"][:, :count])
    assert (expected["image_position_ids"][:, count:] == -1).all()


@pytest.mark.parametrize(
    ("height", "width", "longest", "splits", "grid"),
    [
        (24, 40, 112, True, (2, 2)),
        (30, 90, 112, True, (1, 2)),
        (90, 31, 150, True, (3, 2)),
        (24, 40, 56, True, None),
        (61, 47, 100, False, None),
    ],
)
def test_smolvlms_parts_are_the_librarys(
    tmp_path: Path, height: int, width: int, longest: int, splits: bool, grid: tuple[int, int] | None
) -> None:
    """So are the tokens around them."""
    described: Any = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": 56}}
    library: Any = SmolVLMImageProcessorPil(do_image_splitting=splits, **described)
    library.save_pretrained(str(tmp_path))
    write_json(tmp_path / "embodiment.json", toy_embodiment(cameras=("a", "b"), height=height, width=width).to_dict())
    frames = _frames(4, height, width)
    expected = library([frames], return_tensors="pt", return_row_col_info=True)
    preprocessor = read_split(tmp_path, {"vision_config": {"image_size": 56}})
    assert preprocessor.grid == grid
    pixels = torch.from_numpy(preprocessor([frames]))  # (1, 2, images * 3, 56, 56)
    assert pixels.shape == (1, 2, 3 * preprocessor.images, 56, 56)
    parts = pixels.unflatten(2, (-1, 3)).flatten(1, 2)
    torch.testing.assert_close(parts, expected["pixel_values"], atol=1e-6, rtol=1e-6)
    assert expected["pixel_attention_mask"].all()
    rows, columns = int(expected["rows"][0][0]), int(expected["cols"][0][0])
    assert (rows, columns) == (grid or (0, 0))
    said = get_image_prompt_string(rows, columns, 1, "<fake_token_around_image>", "{image}", "<global-img>")
    assert image_text(grid) == said


def test_a_frame_that_would_be_cut_otherwise_is_told(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", SMOLVLM)
    read = read_split(tmp_path, {"vision_config": {"image_size": 512}})
    assert read.grid == (4, 4)  # no arm is named, so that frames are taken for square
    with pytest.raises(ContractError, match=r"480x640 px is cut into 3 x 4 parts, but the policy reads 4 x 4"):
        read([[np.zeros((480, 640, 3), np.uint8)]])


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"resample": 3}, "resample is 3; only Lanczos"),
        ({"do_rescale": False}, "do_rescale is False; only true"),
        ({"max_image_size": {"longest_edge": 364}}, "max_image_size is 364 px, but the model reads 512 px"),
        ({"size": {"height": 512, "width": 512}}, 'expected {"longest_edge": PIXELS}'),
        ({"size": {"longest_edge": 100_000}}, "size.longest_edge is 100000"),
        ({"do_image_splitting": "yes"}, "do_image_splitting is 'yes'"),
        ({"image_mean": ["a", "b", "c"]}, "must be RGB triples"),
        ({"image_std": [0.5, 0.5]}, "must be RGB triples"),
    ],
)
def test_what_smolvlms_processor_must_not_say(tmp_path: Path, keys: dict[str, Any], why: str) -> None:
    write_json(tmp_path / "preprocessor_config.json", SMOLVLM | keys)
    with pytest.raises(CheckpointError, match=why):
        read_split(tmp_path, {"vision_config": {"image_size": 512}})


def test_cameras_with_different_grids_are_told(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", SMOLVLM)
    arm = toy_embodiment(cameras=("a", "b"), height=480, width=640)
    square = replace(arm, cameras=(arm.cameras[0], CameraSpec("b", 256, 256)))
    write_json(tmp_path / "embodiment.json", square.to_dict())
    with pytest.raises(CheckpointError, match=r"different grids, \[\(3, 4\), \(4, 4\)\]"):
        read_split(tmp_path, {"vision_config": {"image_size": 512}})


@pytest.mark.parametrize(("height", "width", "levels"), [(336, 480, 0), (61, 47, 2)])
def test_gemma_4_unifieds_cells_are_the_librarys(tmp_path: Path, height: int, width: int, levels: int) -> None:
    """A frame that must be resized differs by rounding: its processor uses torchvision, we Pillow."""
    library: Any = Gemma4UnifiedImageProcessor(max_soft_tokens=70)
    library.save_pretrained(str(tmp_path))
    frames = _frames(5, height, width)
    expected = library(frames, return_tensors="pt")
    pixels = torch.from_numpy(read_unified(tmp_path, {"vision_config": {}})([frames])).flatten(0, 1)
    ours, places = gemma4.patches_of(pixels, 48), gemma4.places_of(pixels.shape[-2] // 48, pixels.shape[-1] // 48)
    count = ours.shape[1]
    assert expected["num_soft_tokens_per_image"].tolist() == [count, count]
    torch.testing.assert_close(ours, expected["pixel_values"][:, :count], atol=levels / 255 + 1e-6, rtol=0)
    assert torch.equal(places.expand(2, -1, -1), expected["image_position_ids"][:, :count])


def test_paligemmas_pixels_are_the_librarys(tmp_path: Path) -> None:
    library: Any = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    library.save_pretrained(str(tmp_path))
    frames = _frames(3, 61, 47)
    pixels = torch.from_numpy(read_square(tmp_path, {"vision_config": {"image_size": 56}})([frames]))
    expected = library(frames, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.flatten(0, 1), expected, atol=1e-6, rtol=1e-6)


def test_the_drawn_families_have_these_token_counts() -> None:
    drawn = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "draw_families.py"), run_name="drawn")["rows"]()
    assert [row.published.tokens for row in drawn] == [256, 256, 256, 391, 266, 266, 832]
    assert [row.nano.tokens for row in drawn] == [36, 36, 36, 9, 9, 9, 9]
    assert [row.nano.seen for row in drawn[-3:]] == ["(B, 36, 96)", "(B, 9, 2352)", "(B, 36, 96)"]


def test_frames_that_become_different_sizes_are_told(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", {})
    read = read_qwen(tmp_path, {"vision_config": {}})
    with pytest.raises(ContractError, match=r"different sizes after resizing: \[\(56, 84\), \(84, 56\)\]"):
        read([[np.zeros((56, 84, 3), np.uint8), np.zeros((84, 56, 3), np.uint8)]])
    with pytest.raises(ContractError, match="too narrow: at most 200 to 1"):
        read([[np.zeros((2, 500, 3), np.uint8)]])
    with pytest.raises(ContractError, match="makes frames square"):
        read.after("rlds")
