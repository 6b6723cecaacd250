"""Recipes of datasets that exist, and of mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.recipe import available, find, parse, read
from vla_robot.recipe.oxe import Columns, Constant, MixtureRecipe, Operation, SourceRecipe, parse_part
from vla_robot.recipe.reading.schemas import locate, schema_for

MIXTURE_SIZES = {
    "bridge": 1,
    "bridge_rt_1": 2,
    "rtx": 10,
    "rtx_franka": 24,  # 28 lines in the reference, of which 4 repeat a name
    "oxe_magic_soup": 23,
    "oxe_magic_soup_plus": 27,
    "oxe_magic_soup_plus_minus": 25,
    **{f"tdroid_{task}": 1 for task in ("carrot_in_bowl", "pour_corn_in_pot", "flip_pot_upright")},
    **{f"tdroid_{task}": 1 for task in ("move_object_onto_plate", "knock_object_over", "cover_object_with_towel")},
    "droid_wipe": 1,
    **{f"libero_{suite}_no_noops": 1 for suite in ("spatial", "object", "goal", "10")},
}


def source(**more: Any) -> SourceRecipe:
    return parse(SourceRecipe, {"kind": "source", "action": ["action"], **more}, "mine.toml")


def mixture(*shares: dict[str, Any]) -> MixtureRecipe:
    return parse(MixtureRecipe, {"kind": "mixture", "datasets": list(shares)}, "mine.toml")


def test_the_registry_holds_every_dataset_and_mixture_of_the_reference(repository: Path) -> None:
    assert len(list((repository / "datasets" / "oxe").glob("*.toml"))) == 70
    mixtures = (repository / "datasets" / "mixtures").glob("*.toml")
    assert {path.stem: len(read(MixtureRecipe, path).datasets) for path in mixtures} == MIXTURE_SIZES


def test_the_mixture_of_openvla_7b_has_its_weights() -> None:
    weights = {share.name: share.weight for share in read(MixtureRecipe, "oxe_magic_soup_plus_minus").datasets}
    assert weights["fractal20220817_data"] == 1.0
    assert weights["kuka"] == 0.8341046294
    assert weights["nyu_franka_play_dataset_converted_externally_to_rlds"] == 3.0
    assert "droid" not in weights and "language_table" not in weights


def test_a_dataset_of_the_registry_has_a_bare_name() -> None:
    assert find("datasets", "bridge_orig").parent.name == "oxe"
    assert find("datasets", "rtx").parent.name == "mixtures"
    assert find("datasets", "oxe/bridge_orig") == find("datasets", "datasets/oxe/bridge_orig.toml")
    assert {"oxe/bridge_orig", "mixtures/rtx"} <= set(available("datasets"))
    assert locate("bridge_orig")[0] == "datasets"


def test_a_dataset_wins_over_the_mixture_of_the_same_name() -> None:
    assert find("datasets", "droid_wipe").parent.name == "oxe"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("action", Columns("action")),
        ("observation/state[:6]", Columns("observation/state", None, 6)),
        ("action[-8:-2] | clip", Columns("action", -8, -2, (Operation("clip"),))),
        ("a/b | inflate 7", Columns("a/b", None, None, (Operation("inflate", (7,)),))),
        ("zeros 3", Constant(0.0, 3)),
        ("ones 1", Constant(1.0, 1)),
    ],
)
def test_a_part_is_read(text: str, part: Columns | Constant) -> None:
    assert parse_part(text) == part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("action | invret", "unknown operation 'invret'; did you mean 'invert'"),
        ("action | inflate", r"'inflate' takes 1 whole numbers, got \[\]"),
        ("action | clip 2", r"'clip' takes 0 whole numbers"),
        ("zeroes 3", "unknown constant 'zeroes'; did you mean 'zeros'"),
        ("zeros 0", "at least 1 column"),
        ("action[3]", "is not understood; write FIELD"),
        ("action |", "unknown operation ''"),
        ("__import__('os')", "is not understood|unknown"),
    ],
)
def test_a_part_that_is_no_part_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source(action=[text, "[]"]) if text.startswith("__") else source(action=[text])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"action": []}, "action has no part"),
        ({"action": ["action | change_to_next"]}, "knows no next step at the last one; set skip_last = 1"),
        ({"skip_first": -1}, "skip_first and skip_last must be 0 or more"),
        ({"swap_outside": True}, "needs a primary and a secondary camera"),
        ({"instruction": "text | upper"}, "unknown operation 'upper'"),
        ({"action_encoding": "eef_poz"}, "action_encoding: unknown value 'eef_poz'; did you mean 'eef_pos'"),
        ({"cameras": {"primry": "image"}}, r"cameras\.primry: unknown key 'primry'; did you mean 'primary'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source(**more)


def test_all_mistakes_of_a_mixture_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        mixture(
            {"name": "bridge_orig"},
            {"name": "brige_orig"},
            {"name": "bridge_orig", "weight": 2.0},
            {"name": "toto", "weight": 0.0},
        )
    text = str(caught.value)
    assert "datasets[1]: unknown dataset 'brige_orig'; did you mean 'bridge_orig'?" in text
    assert "datasets[2]: 'bridge_orig' is there twice" in text
    assert "datasets[3]: the weight of 'toto' is 0; it must be above 0" in text


def test_an_unknown_kind_of_dataset_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "mixtur"')
    with pytest.raises(RecipeError, match="kind: unknown kind 'mixtur'; did you mean 'mixture'"):
        schema_for("datasets", path)
