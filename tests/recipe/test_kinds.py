"""One dataclass for each kind: which one a table follows, and what is said of a key that is another kind's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import attribute
from vla_robot.policy.kinds import KINDS
from vla_robot.recipe import dump, parse, read, read_table
from vla_robot.recipe.env import EnvRecipe
from vla_robot.recipe.policy import (
    HoldRecipe,
    OFTRecipe,
    OpenpiRecipe,
    OpenVLAOFTRecipe,
    OpenVLARecipe,
    PolicyRecipe,
    RemoteRecipe,
    WeightsRecipe,
)
from vla_robot.recipe.reading.dump import field_help
from vla_robot.world.kinds import ROBOTS, WORLDS

STORED_POLICY: dict[str, Any] = {
    "description": "",
    "dtype": "float32",
    "pre_step": "none",
    "compiled": False,
    "poses": [],
    "relative": False,
}
"""What each policy recipe said of the keys of other kinds when one dataclass stood for all of them."""


def test_the_kind_chooses_the_dataclass() -> None:
    assert parse(PolicyRecipe, {"kind": "hold"}, "mine") == HoldRecipe()
    assert isinstance(read(PolicyRecipe, "openpi_libero"), OpenpiRecipe)
    assert isinstance(read(PolicyRecipe, "openvla_nano"), OpenVLARecipe)


def test_one_kind_can_be_asked_for() -> None:
    assert read(OpenpiRecipe, "openpi_libero").rows == 5
    with pytest.raises(RecipeError, match="kind: unknown value 'hold'"):
        read(OpenpiRecipe, "hold")


def peer_table(**more: Any) -> dict[str, Any]:
    """A recipe of openpi's kind, with more keys in its table [peer]."""
    images = [{"key": "image", "camera": "front"}]
    peer = {"rate_hz": 10, "images": images, "action": [{"key": "actions", "names": ["dx"]}], **more}
    return {"kind": "openpi", "address": "ws://127.0.0.1:8000", "peer": peer}


def test_rows_in_a_table_peer_become_the_policys_own() -> None:
    recipe = parse(OpenpiRecipe, peer_table(rows=4), "mine")
    assert (recipe.rows, recipe.peer.rows) == (4, None)
    assert recipe == parse(OpenpiRecipe, {**peer_table(), "rows": 4}, "mine")
    with pytest.raises(RecipeError, match=r"rows is there twice; delete the one in the table \[peer\]"):
        parse(OpenpiRecipe, {**peer_table(rows=4), "rows": 4}, "mine")


def test_rows_below_one_are_refused_for_every_kind() -> None:
    for table in ({"kind": "hold"}, peer_table(), {"kind": "reach", "poses": [[0.0] * 7]}):
        with pytest.raises(RecipeError, match="rows must be at least 1, got 0"):
            parse(PolicyRecipe, {**table, "rows": 0}, "mine")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "kind: this key is missing; it must be one of openvla, openvla_oft, vla, onnx, lerobot, hold"),
        ({"kind": "holt"}, "kind: unknown value 'holt'; did you mean 'hold'"),
        ({"kind": 3}, "kind: unknown value '3'"),
        ({"kind": "hold", "adress": "tcp://a:1"}, "adress: unknown key 'adress'"),
        (
            {"kind": "hold", "address": "tcp://a:1"},
            "address: this key is for kind 'remote' or 'openpi' or 'groot', not",
        ),
        ({"kind": "hold", "compiled": True}, "compiled: this key is for kind 'openvla' or 'vla', not for 'hold'"),
        ({"kind": "remote", "address": "a", "dtype": "int8"}, "dtype: this key is for kind 'openvla' or 'openvla_oft'"),
    ],
)
def test_a_table_that_fits_no_kind_is_told_why(table: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(PolicyRecipe, table, "mine")


@pytest.mark.parametrize(
    "own",
    [
        {"kind": "hold"},
        {"kind": "remote", "address": "tcp://127.0.0.1:5580"},
        {"kind": "openvla", "checkpoint": "weights"},
        {"kind": "reach", "poses": [[0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]], "relative": True},
    ],
)
def test_a_policy_as_episodes_of_earlier_releases_hold_it_is_read(own: dict[str, Any]) -> None:
    assert parse(PolicyRecipe, STORED_POLICY | own, "policy.toml") == parse(PolicyRecipe, own, "policy.toml")


def test_an_heir_of_another_folder_keeps_the_paths_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "first.toml").write_text('kind = "openvla"\ncheckpoint = "weights"\n')
    (tmp_path / "second.toml").write_text('base = "far/first"\ndtype = "bfloat16"\n')
    recipe = parse(PolicyRecipe, read_table(PolicyRecipe, tmp_path / "second.toml"), tmp_path / "second.toml")
    assert recipe == OpenVLARecipe(checkpoint=tmp_path / "far" / "weights", dtype="bfloat16")


@pytest.mark.parametrize("base", [PolicyRecipe, EnvRecipe])
def test_each_key_of_each_kind_is_explained(base: type[PolicyRecipe | EnvRecipe]) -> None:
    for schema in base.kinds.built_in.values():
        assert {f.name for f in dataclasses.fields(schema)} == set(field_help(schema)), schema


def test_a_shown_recipe_says_what_its_kind_does() -> None:
    shown = dump(RemoteRecipe(address="tcp://127.0.0.1:5580"), comments=True)
    assert '# A policy served by `vla serve`.\nkind = "remote"\n' in shown
    assert "# its address, e.g." in shown


def test_a_recipe_says_its_cameras_where_the_folder_does_not() -> None:
    oft = OFTRecipe(chunk=8, action_dim=7, normalisation="bounds", cameras=("front", "wrist"))
    assert OpenVLAOFTRecipe(checkpoint=Path("w"), oft=oft).camera_names == ("front", "wrist")
    assert OpenVLARecipe(checkpoint=Path("w")).camera_names == ()


def test_each_policy_that_runs_here_has_code_that_exists() -> None:
    elsewhere = {"remote", "replay", "openpi", "groot"}
    assert set(KINDS) == {s for kind, s in PolicyRecipe.kinds.built_in.items() if kind not in elsewhere}
    for schema, family in KINDS.items():
        assert callable(attribute(family.build))
        assert issubclass(schema, WeightsRecipe) == (family.check is not None)


STORED_ENV: dict[str, Any] = {"instruction": "lift the cube", "arm": "Panda", "shadows": False, "placements": []}
"""The same of an environment's recipe."""


@pytest.mark.parametrize(
    "own",
    [
        {"kind": "robosuite", "task": "Lift"},
        {"kind": "mujoco", "scene": "a.xml", "success": {"test": "lifted", "body": "cube"}},
        {"kind": "robot", "scene": "a.xml", "robot": {"driver": "lerobot", "type": "so101_follower", "id": "desk"}},
    ],
)
def test_an_environment_as_episodes_of_earlier_releases_hold_it_is_read(own: dict[str, Any]) -> None:
    plain = {"instruction": "lift the cube", **own}
    assert parse(EnvRecipe, STORED_ENV | own, "env.toml") == parse(EnvRecipe, plain, "env.toml")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"kind": "robosuite"}, "task: this key is missing"),
        (
            {"kind": "robosuite", "task": "Lift", "scene": "a.xml"},
            "scene: this key is for kind 'mujoco' or 'robot', not",
        ),
        ({"kind": "mujoco", "scene": "a.xml"}, "success: this key is missing"),
        (
            {"kind": "robot", "expert": "lift"},
            "this key is for kind 'robosuite' or 'mujoco' or 'libero' or 'metaworld', not for 'robot'",
        ),
    ],
)
def test_an_environment_that_fits_no_kind_is_told_why(table: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(EnvRecipe, {"instruction": "lift the cube"} | table, "mine")


def test_each_world_and_robot_has_code_that_exists() -> None:
    assert {*WORLDS, *ROBOTS} == set(EnvRecipe.kinds.built_in.values())
    assert all(callable(attribute(path)) for path in (*WORLDS.values(), *ROBOTS.values()))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "hold"}, ""),
        ({"kind": "openvla", "checkpoint": "c"}, "as the world shows them"),
        (
            {"kind": "openvla", "checkpoint": "c", "mirror": True, "image_preprocessing": "rlds_crop"},
            "mirrored, JPEG and back, the middle 0.9 of the area",
        ),
        (peer_table(), "front as the world shows it"),
        (
            peer_table(images=[{"key": "i", "camera": "wrist", "turn_deg": 180, "mirror": True, "size_px": 224}]),
            "wrist turned by 180 degrees, mirrored, fitted into 224 px with black bars",
        ),
    ],
)
def test_a_recipe_says_what_becomes_of_frames(table: dict[str, Any], words: str) -> None:
    assert parse(PolicyRecipe, table, "mine").preparation == words
