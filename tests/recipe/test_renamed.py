"""The old name of a recipe's key is read like the new one, and a line says so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe import dump, parse, read, read_table
from vla_robot.recipe.dataset import DatasetRecipe
from vla_robot.recipe.finetune import FinetuneRecipe
from vla_robot.recipe.policy import OpenVLARecipe, PolicyRecipe
from vla_robot.recipe.reading import renamed
from vla_robot.recipe.reading.renamed import with_new_keys


@dataclass(frozen=True)
class Axis:
    max_step_speed: float


@dataclass(frozen=True)
class Wrist(Axis):
    name: str = "wrist"


@dataclass(frozen=True)
class Limits:
    axes: tuple[Wrist, ...] = ()
    by_name: dict[str, Axis] = field(default_factory=dict[str, Axis])
    main: Axis | None = None


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.RENAMED, "Axis", {"max_speed": "max_step_speed"})


def test_an_old_key_is_read_wherever_it_lies_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    old = {"max_speed": 0.1}
    recipe = parse(Limits, {"axes": [{**old, "name": "a"}], "by_name": {"x": old}, "main": old}, "mine.toml")
    assert recipe == Limits((Wrist(0.1, "a"),), {"x": Axis(0.1)}, Axis(0.1))
    assert caplog.messages == [
        "mine.toml: the key 'max_speed' is called 'max_step_speed' now; the old name works for one more release."
    ]
    assert caplog.records[0].levelno == logging.WARNING
    assert "max_speed" not in dump(recipe)


def test_new_keys_and_malformed_data_pass_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    new, malformed = {"main": {"max_step_speed": 1.0}}, {"main": 3, "axes": "x", "by_name": [1]}
    for data in (new, malformed, {"max_speed": 1}, 7, None):
        assert with_new_keys(Limits, data, "new.toml") == data
    assert caplog.messages == []


def test_both_names_in_one_table_are_refused() -> None:
    both: dict[str, Any] = {"main": {"max_speed": 0.1, "max_step_speed": 0.2}}
    with pytest.raises(RecipeError, match=r"both\.toml: 'max_speed' is the old name of 'max_step_speed'.*delete"):
        parse(Limits, both, "both.toml")


@pytest.mark.parametrize(("base", "heir"), [("by", "source"), ("source", "by"), ("by", "by")])
def test_a_recipe_of_before_may_be_a_base_or_have_one(tmp_path: Path, base: str, heir: str) -> None:
    (tmp_path / "base.toml").write_text(f'env = "lift"\n[[recordings]]\n{base} = "hold"\nkeep = "success"\n')
    (tmp_path / "heir.toml").write_text(f'base = "base"\nimage_size = 84\n[[recordings]]\n{heir} = "random"\n')
    kept = read(DatasetRecipe, tmp_path / "base.toml").recordings[0]
    assert (kept.source, kept.save) == ("hold", "success")
    recipe = read(DatasetRecipe, tmp_path / "heir.toml")
    assert (recipe.recordings[0].source, recipe.image_size) == ("random", 84)


def test_launch_files_and_policies_of_before_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.toml").write_text('verb = "finetune"\ndata = ["x"]\nrecompute = true\n')
    assert read(FinetuneRecipe, tmp_path / "run.toml").activation_checkpointing
    (tmp_path / "policy.toml").write_text('kind = "openvla"\ncheckpoint = "x"\npre_step = "rlds"\n')
    for schema in (PolicyRecipe, OpenVLARecipe):
        policy = read(schema, tmp_path / "policy.toml")
        assert isinstance(policy, OpenVLARecipe) and policy.image_preprocessing == "rlds"
    told = [message.split("the key ")[1].split(" now")[0] for message in caplog.messages]
    assert told == ["'recompute' is called 'activation_checkpointing'", "'pre_step' is called 'image_preprocessing'"]


def test_a_table_of_two_recipes_is_merged_under_the_new_name(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[main]\nmax_speed = 1.0\n")
    (tmp_path / "heir.toml").write_text('base = "base"\n[main]\nmax_step_speed = 2.0\n')
    path = tmp_path / "heir.toml"
    assert parse(Limits, read_table(Limits, path), path).main == Axis(2.0)


@pytest.mark.parametrize("schema", ["OpenVLARecipe", "PolicyRecipe"])
def test_the_dataclass_of_a_kind_and_its_base_may_have_renamed_keys(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(renamed.RENAMED, schema, {"graphs": "compiled"})
    recipe = parse(PolicyRecipe, {"kind": "openvla", "checkpoint": "x", "graphs": True}, f"{schema}.toml")
    assert isinstance(recipe, OpenVLARecipe) and recipe.compiled
