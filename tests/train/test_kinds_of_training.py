"""Trainings from demonstrations and from a mixture: two dataclasses, chosen by the keys of a recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from vla_robot.cli.finetune.finetune import FinetuneArgs, _overridden
from vla_robot.core.errors import RecipeError
from vla_robot.recipe import dump, parse, read
from vla_robot.recipe.finetune import DemosFinetuneRecipe, FinetuneRecipe, MixtureFinetuneRecipe, RolloutsRecipe
from vla_robot.train.prepare import Prepared, fingerprint_of

DEMOS = DemosFinetuneRecipe(
    data=(Path("/a"), Path("/b")), weights=(1.0, 2.0), dataset_name="light", steps=5, rollouts=RolloutsRecipe("lift")
)
MIXTURE = MixtureFinetuneRecipe(
    mixture="bridge_rt_1", root=Path("/oxe"), policy=Path("/p"), cameras=("primary", "wrist"), augment=False, workers=4,
    chunk=2,
)  # fmt: skip
FORMER = {
    "demonstrations": (DEMOS, "66726fdc60efcdb6", """\
verb = "finetune"
description = ""
data = ["/a", "/b"]
weights = [1.0, 2.0]
cameras = ["primary"]
augment = true
workers = 3
dataset_name = "light"
steps = 5
batch_size = 32

[architecture]
image_size = 84
text_vocab = 512

[rollouts]
env = "lift"
"""),
    "mixture": (MIXTURE, "2d43e8968f08aa90", """\
verb = "finetune"
description = ""
data = []
weights = []
mixture = "bridge_rt_1"
root = "/oxe"
cameras = ["primary", "wrist"]
augment = false
workers = 4
policy = "/p"
dataset_name = "demos"
chunk = 2

[architecture]
image_size = 84
text_vocab = 512
"""),
}  # fmt: skip
"""Recipe, fingerprint of its run, and what was written to OUT/recipe.toml when one dataclass had all keys."""


class NoData:
    fingerprint = b""


@pytest.mark.parametrize("kind", FORMER)
def test_recipes_and_runs_of_one_dataclass_go_on(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe, fingerprint, text = FORMER[kind]
    (tmp_path / "run.toml").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read(FinetuneRecipe, tmp_path / "run.toml") == recipe
    assert ("'workers' is for kind 'mixture'" in caplog.text) == (kind == "demonstrations")
    prepared = Prepared(tmp_path, "", cast(Any, None), cast(Any, NoData()), None, None)
    assert fingerprint_of(recipe, prepared) == fingerprint


@pytest.mark.parametrize("recipe", [DEMOS, MIXTURE])
def test_a_recipe_is_read_back_as_its_kind(recipe: FinetuneRecipe, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(dump(recipe))
    assert read(FinetuneRecipe, tmp_path / "run.toml") == recipe


def test_options_change_the_kind_and_keep_the_rest() -> None:
    out = Path("out")
    mixed = _overridden(DEMOS, FinetuneArgs(out, mixture="bridge", root="/oxe", policy=Path("policies/hold.toml")))
    assert isinstance(mixed, MixtureFinetuneRecipe)
    assert (mixed.mixture, mixed.root, mixed.steps, mixed.rollouts) == ("bridge", Path("/oxe"), 5, DEMOS.rollouts)
    back = _overridden(MIXTURE, FinetuneArgs(out, data=("a,b:2",), seed=7))
    assert isinstance(back, DemosFinetuneRecipe)
    assert (back.data, back.policy, back.chunk, back.seed) == ((Path("a"), Path("b")), Path("/p"), 2, 7)
    with pytest.raises(RecipeError, match="needs policy"):
        _overridden(DEMOS, FinetuneArgs(out, mixture="bridge"))
    with pytest.raises(RecipeError, match="exclude each other"):
        _overridden(DEMOS, FinetuneArgs(out, mixture="bridge", data=("a",)))


def test_a_key_of_the_other_kind_that_would_change_something_is_refused() -> None:
    with pytest.raises(RecipeError, match="weights: this key is for kind 'demonstrations', not for 'mixture'"):
        parse(FinetuneRecipe, {"mixture": "bridge", "policy": "p", "weights": [2.0]}, "run.toml")
