from __future__ import annotations

import pytest

from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.seeds import MAX_SEED, require_seed, seed_problem
from vla_robot.recipe.dataset import Recording
from vla_robot.recipe.finetune import DemosFinetuneRecipe, RolloutsRecipe
from vla_robot.recipe.launch import LaunchRecipe


def test_the_last_of_many_seeds_must_exist_too() -> None:
    assert seed_problem(MAX_SEED - 4, count=5) == ""
    assert "must be at most" in seed_problem(MAX_SEED - 4, count=6)


def test_a_world_of_this_process_takes_any_seed_from_zero_on() -> None:
    assert require_seed(2**100, largest=None) == 2**100
    with pytest.raises(ContractError, match="seed -1 is outside 0 or more"):
        require_seed(-1, largest=None)
    with pytest.raises(ContractError, match="outside 0 to 9223372036854775807"):
        require_seed(2**63)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_every_recipe_refuses_a_seed_that_no_log_could_hold(seed: int) -> None:
    for recipe in (
        lambda: LaunchRecipe(env="lift", policy="hold", seed=seed),
        lambda: Recording(source="expert", seed=seed),
        lambda: RolloutsRecipe(env="lift", seed=seed),
        lambda: DemosFinetuneRecipe(data=(), seed=seed),
    ):
        with pytest.raises(RecipeError, match="seed is"):
            recipe()
