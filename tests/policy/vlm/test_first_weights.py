"""A new model's decoder starts with weights that suit its width, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vla_robot.core.errors import RecipeError
from vla_robot.policy.families import NEW_MODELS, family_of
from vla_robot.recipe.finetune import Architecture

from .tiny_vlms import create

WIDTH = 32


@pytest.mark.parametrize("name", NEW_MODELS)
@pytest.mark.parametrize(("stated", "std"), [(0.0, WIDTH**-0.5), (0.02, 0.02)])
def test_matrices_of_a_new_decoder_have_the_stated_standard_deviation(
    name: str, stated: float, std: float, tmp_path: Path
) -> None:
    folder = create(tmp_path, name, use_state=False, initializer_range=stated)
    model = family_of(folder).load_model(folder, torch.float32, torch.device("cpu"))
    found = {
        name: float(parameter.std())
        for name, parameter in model.named_parameters()
        if name.startswith(model.PARTS["decoder"]) and name.endswith("_proj.weight")
    }
    assert len(found) >= 7 * 3
    assert all(each == pytest.approx(std, rel=0.15) for each in found.values()), found


def test_a_standard_deviation_that_no_matrix_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"initializer_range is -0\.1; must lie in"):
        Architecture(initializer_range=-0.1)
