"""Matrices of a new model have first weights that suit their size, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vla_robot.core.errors import RecipeError
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.recipe.finetune import Architecture

from .tiny_vlms import create


def deviations(folder: Path, part: str) -> dict[str, tuple[float, int]]:
    """Return, of each matrix of a part, the standard deviation and the inputs of a row."""
    model = family_of(folder).load_model(folder, torch.float32, torch.device("cpu"))
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)
    return {
        name: (float(layer.weight.std()), layer.weight[0].numel())
        for name, layer in model.named_modules()
        if isinstance(layer, layers) and f"{name}.".startswith(model.PARTS[part]) and "proprio" not in name
    }


@pytest.mark.parametrize("part", ["vision", "projector", "decoder"])
@pytest.mark.parametrize("name", NEW_MODELS)
def test_every_matrix_is_drawn_for_its_inputs(name: str, part: str, tmp_path: Path) -> None:
    found = deviations(create(tmp_path, name, use_state=False, initializer_range=0.0), part)
    assert found or (name, part) == ("gemma4_unified", "vision")
    wrong = {name: std * inputs**0.5 for name, (std, inputs) in found.items() if abs(std * inputs**0.5 - 1) > 0.1}
    assert not wrong


@pytest.mark.parametrize("name", NEW_MODELS)
def test_a_stated_standard_deviation_is_the_librarys_own_key(name: str, tmp_path: Path) -> None:
    found = deviations(create(tmp_path, name, use_state=False, initializer_range=0.05), "decoder")
    matrices = [std for name, (std, _) in found.items() if name.endswith("_proj")]
    assert len(matrices) >= 7 * 3
    assert matrices == pytest.approx([0.05] * len(matrices), rel=0.1)


def test_a_standard_deviation_that_no_matrix_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"initializer_range is -0\.1; must lie in"):
        Architecture(initializer_range=-0.1)
