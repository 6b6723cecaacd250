"""Matrices of eight bits: less memory, the same inference, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_robot.core import optional
from vla_robot.core.errors import MissingDependencyError, PolicyError, RecipeError
from vla_robot.policy.openvla.policy import load
from vla_robot.recipe.policy import PolicyRecipe

NANO = Path(__file__).resolve().parents[3] / "policies" / "openvla_nano"
FRAME = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
IDS = np.array([1, 300, 301, 302])


@pytest.mark.skipif(not optional.installed("torchao"), reason="needs the extra [quantise]")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_take_less_memory_and_features_stay_near(dtype: str) -> None:
    plain, small = load(NANO, dtype), load(NANO, dtype, quantise="int8")
    assert small.memory_bytes() < plain.memory_bytes() * (0.45 if dtype == "float32" else 0.75)
    frames = [[FRAME] * plain.model.config.num_images]
    state = np.zeros((1, plain.model.config.proprio_dim or 0))
    assert small.generate_tokens(frames, [IDS], state).shape == (1, 7)
    pixels = plain.preprocessor(frames).to(plain.model.projector.fc1.weight.dtype)
    with torch.inference_mode():
        mine, other = (p.model.projector(p.model.vision_backbone(pixels)).float() for p in (small, plain))
    assert 0 < float((mine - other).norm() / other.norm()) < 0.05


@pytest.mark.skipif(not optional.installed("torchao"), reason="needs the extra [quantise]")
def test_int8_hardly_changes_actions() -> None:
    plain, small = load(NANO), load(NANO, quantise="int8")
    rng, rows = np.random.default_rng(0), 48
    coarse = rng.integers(0, 256, (rows, plain.model.config.num_images, 7, 7, 3), dtype=np.uint8)
    frames = [[image.repeat(16, axis=0).repeat(16, axis=1) for image in row] for row in coarse]
    state = rng.uniform(-1.0, 1.0, (rows, plain.model.config.proprio_dim or 0))
    mine, other = (p.generate_tokens(frames, [IDS] * rows, state) for p in (small, plain))
    l1 = np.abs(plain.action_tokens.decode(mine) - plain.action_tokens.decode(other))  # of a range of 2
    assert len(np.unique(other)) > 10  # else equality would say nothing
    assert np.mean(mine != other) < 0.1
    assert l1.mean() < 0.02


def test_memory_of_plain_weights_is_that_of_the_parameters(tiny_folder: Path) -> None:
    policy = load(tiny_folder)
    parameters = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert parameters <= policy.memory_bytes() < 1.05 * parameters


def test_int4_and_unknown_ways_are_refused_with_the_fix(tiny_folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"int4.*CUDA only.*Use quantise = 'int8'"):
        load(tiny_folder, quantise="int4")
    with pytest.raises(PolicyError, match=r"int7.*int8"):
        load(tiny_folder, quantise="int7")


def test_without_torchao_the_extra_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "installed", lambda distribution: None)
    with pytest.raises(MissingDependencyError, match=r"torchao.*vla_robot\[quantise\]"):
        load(tiny_folder, quantise="int8")


def test_a_recipe_quantises_openvla_only_and_not_compiled_ones() -> None:
    folder = Path("somewhere")
    assert PolicyRecipe("openvla", checkpoint=folder, quantise="int8").quantise == "int8"
    with pytest.raises(RecipeError, match="quantise"):
        PolicyRecipe("openvla", checkpoint=folder, quantise="int8", compiled=True)
    with pytest.raises(RecipeError, match="quantise"):
        PolicyRecipe("hold", quantise="int8")
