"""Every recipe that we ship is valid, says what it is, and names only what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_robot.recipe import KINDS, Kind, available, dump, find, parse, read, read_table
from vla_robot.recipe.launch import LaunchRecipe
from vla_robot.recipe.reading.schemas import is_bare_checkpoint, schema_for

SHIPPED = [
    (kind, path)
    for kind in KINDS
    for path in available(kind).values()
    if not is_bare_checkpoint(path) and Path(__file__).resolve().parent.parent in path.parents
]
NAMES = [f"{kind}/{path.stem}" for kind, path in SHIPPED]


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=NAMES)
def test_a_shipped_recipe_is_valid_and_survives_a_round_trip(kind: Kind, path: Path) -> None:
    import tomllib

    schema = schema_for(kind, path)
    recipe = parse(schema, read_table(schema, path), path)
    assert parse(schema, tomllib.loads(dump(recipe)), path) == recipe


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=NAMES)
def test_a_shipped_recipe_says_what_it_is(kind: Kind, path: Path) -> None:
    file = path / "recipe.toml" if path.is_dir() else path
    assert file.read_text().startswith("# ") or "description" in read_table(schema_for(kind, path), path)


@pytest.mark.parametrize("path", [p for k, p in SHIPPED if k == "launch" and schema_for(k, p) is LaunchRecipe])
def test_a_launch_file_names_a_world_and_a_policy_that_exist(path: Path) -> None:
    recipe = read(LaunchRecipe, path)
    assert find("envs", recipe.env).exists()
    assert find("policies", recipe.policy).exists()
