"""Tests that build every dataset of the registry with a known published structure, and read it by recipe and path.

tests/tools/publish_rlds.py builds them without any code of ours. What is expected of each stands below, written from
the documentation of the datasets and of OpenVLA's transforms, column by column, and not from the recipes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_robot.core.errors import DataError, RecipeError
from vla_robot.data.formats.conversion_metadata import Options
from vla_robot.data.formats.convert import convert
from vla_robot.data.formats.open import open_source
from vla_robot.data.formats.recognise import advise, facts_of, recipe_line
from vla_robot.data.formats.rlds.features import to_tree
from vla_robot.data.formats.rlds.reader import RldsDataset, open_rlds
from vla_robot.data.pipeline.mixture import Choices, Dataset, member_at, members_of, open_dataset, open_mixture
from vla_robot.data.summary import contact_sheet, summarise
from vla_robot.recipe import available, read
from vla_robot.recipe.oxe import MixtureRecipe, SourceRecipe

sys.path.append(str(Path(__file__).parents[3] / "tools"))
tool: Any = importlib.import_module("publish_rlds")
build, info_names = tool.build, tool.info_names

SCHEMAS = tool.schemas()
Rows = NDArray[np.float32]


class Steps:
    """The steps of one episode, as columns (T, n)."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.count = len(next(v for path, v in values.items() if path.startswith("steps/")))

    def __getitem__(self, field: str) -> Rows:
        return np.asarray(self._values[f"steps/{field}"], np.float64).astype(np.float32).reshape(self.count, -1)

    def constant(self, value: float, width: int) -> Rows:
        return np.full((self.count, width), value, np.float32)


def inverted(rows: Rows) -> Rows:
    return np.array([[1 - x for x in row] for row in rows.tolist()], np.float32)


def clipped(rows: Rows) -> Rows:
    return np.array([[min(max(x, 0.0), 1.0) for x in row] for row in rows.tolist()], np.float32)


def opened_by_commands(rows: Rows) -> Rows:
    """Return states from commands: +1 closes, -1 opens, within 0.1 of zero the state stays; before the first command it
    is the opposite.
    """
    commands = [1.0 if x < -0.1 else 0.0 if x > 0.1 else None for (x,) in rows.tolist()]
    first = next((c for c in commands if c is not None), None)
    state = 1.0 if first is None else 1.0 - first
    states: list[list[float]] = []
    for command in commands:
        state = state if command is None else command
        states.append([state])
    return np.array(states, np.float32)


def settled(rows: Rows) -> Rows:
    """Return 1 beyond 0.95, 0 below 0.05, and in between the state that follows; at the end the last value."""
    values = [x for (x,) in rows.tolist()]
    following, states = values[-1], list[list[float]]()
    for x in reversed(values):
        following = 1.0 if x > 0.95 else 0.0 if x < 0.05 else following
        states.append([following])
    return np.array(states[::-1], np.float32)


def angles(rows: Rows) -> Rows:
    return Rotation.from_quat(rows.astype(np.float64)).as_euler("xyz").astype(np.float32)


def beside(*parts: Rows) -> Rows:
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Expected:
    """The expected standard steps of a dataset.

    Attributes:
        action: (T, D) of an episode; of a BridgeData set, the gripper from the second step on.
        state: (T, P); None for none.
        bridge: the first step is dropped, the motion is the pose that was reached less the one before, and the last
            step, after which none is reached, is dropped too.
    """

    action: Callable[[Steps], Rows]
    state: Callable[[Steps], Rows] | None = None
    bridge: bool = False


def zeros(s: Steps, width: int) -> Rows:
    return s.constant(0, width)


def rt1_action(s: Steps) -> Rows:
    gripper = opened_by_commands(s["action/gripper_closedness_action"])
    return beside(s["action/world_vector"], s["action/rotation_delta"], gripper)


def rt1_action_absolute(s: Steps) -> Rows:
    """Return RT-1's action, whose gripper command is 1 = close."""
    gripper = inverted(clipped(s["action/gripper_closedness_action"]))
    return beside(s["action/world_vector"], s["action/rotation_delta"], gripper)


def closing_action(s: Steps) -> Rows:
    """Return robosuite's action, whose gripper command is -1 = open, +1 = close."""
    return beside(s["action"][:, :6], inverted(clipped(s["action"][:, -1:])))


def action(s: Steps) -> Rows:
    return s["action"]


def without_last(s: Steps) -> Rows:
    """Return the action without its last number, which marks the end of the episode."""
    return s["action"][:, :7]


def state(s: Steps) -> Rows:
    return s["observation/state"]


def padded_pose(s: Steps) -> Rows:
    """Return 6 numbers of the pose, an empty one, and the gripper."""
    return beside(state(s)[:, :6], zeros(s, 1), state(s)[:, -1:])


def first_columns(count: int, filled: int = 0) -> Callable[[Steps], Rows]:
    return lambda s: beside(state(s)[:, :count], zeros(s, filled))


def gnm_action(s: Steps) -> Rows:
    return beside(s["action"], zeros(s, 5))


def gnm_state(s: Steps) -> Rows:
    return beside(s["observation/position"], zeros(s, 3), s["observation/yaw"], zeros(s, 2))


def four_and_last(s: Steps) -> Rows:
    return beside(s["action"][:, :4], zeros(s, 2), s["action"][:, 4:5])


def quaternion_action(gripper: Callable[[Rows], Rows]) -> Callable[[Steps], Rows]:
    return lambda s: beside(s["action"][:, :3], angles(s["action"][:, 3:7]), gripper(s["action"][:, 7:8]))


GNM = Expected(gnm_action, gnm_state)
BRIDGE = Expected(lambda s: settled(s["action"][1:, 6:]), padded_pose, bridge=True)
LIBERO = Expected(closing_action, lambda s: beside(state(s)[:, :6], zeros(s, 1), state(s)[:, -2:]))
PADDED = Expected(action, padded_pose)
PR2 = Expected(without_last, padded_pose)

EXPECTED: Mapping[str, Expected] = {
    "asu_table_top_converted_externally_to_rlds": Expected(
        action, lambda s: beside(s["ground_truth_states/EE"], zeros(s, 1), state(s)[:, 6:])
    ),
    "austin_buds_dataset_converted_externally_to_rlds": Expected(closing_action, first_columns(8)),
    "austin_sailor_dataset_converted_externally_to_rlds": Expected(closing_action, state),
    "austin_sirius_dataset_converted_externally_to_rlds": Expected(closing_action, state),
    "bc_z": Expected(
        lambda s: beside(
            s["action/future/xyz_residual"][:, :3],
            s["action/future/axis_angle_residual"][:, :3],
            inverted(s["action/future/target_close"][:, :1]),
        ),
        lambda s: beside(
            s["observation/present/xyz"],
            s["observation/present/axis_angle"],
            zeros(s, 1),
            s["observation/present/sensed_close"],
        ),
    ),
    "berkeley_autolab_ur5": Expected(rt1_action, lambda s: s["observation/robot_state"][:, 6:14]),
    "berkeley_cable_routing": Expected(
        lambda s: beside(s["action/world_vector"], s["action/rotation_delta"], zeros(s, 1)),
        lambda s: beside(s["observation/robot_state"], zeros(s, 1)),
    ),
    "berkeley_fanuc_manipulation": Expected(
        lambda s: beside(s["action"], inverted(state(s)[:, 6:7])),
        lambda s: beside(state(s)[:, :6], zeros(s, 1), state(s)[:, 6:7]),
    ),
    "berkeley_gnm_cory_hall": GNM,
    "berkeley_gnm_recon": GNM,
    "berkeley_gnm_sac_son": GNM,
    "berkeley_mvp_converted_externally_to_rlds": Expected(
        action, lambda s: beside(s["observation/pose"], s["observation/gripper"])
    ),
    "berkeley_rpt_converted_externally_to_rlds": Expected(
        action, lambda s: beside(s["observation/joint_pos"], s["observation/gripper"])
    ),
    "bridge_dataset": BRIDGE,
    "bridge_orig": BRIDGE,
    "bridge_oxe": Expected(lambda s: s["action/open_gripper"][1:], padded_pose, bridge=True),
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": Expected(without_last),
    "cmu_play_fusion": Expected(lambda s: beside(s["action"][:, :3], s["action"][:, 5:9]), state),
    "cmu_playing_with_food": Expected(
        quaternion_action(lambda gripper: gripper), lambda s: beside(state(s), zeros(s, 2))
    ),
    "cmu_stretch": Expected(without_last, lambda s: beside(state(s)[:, :3], zeros(s, 4), state(s)[:, 3:4])),
    "columbia_cairlab_pusht_real": Expected(
        lambda s: beside(s["action/world_vector"], s["action/rotation_delta"], s["action/gripper_closedness_action"]),
        lambda s: beside(s["observation/robot_state"], zeros(s, 6)),
    ),
    "dlr_edan_shared_control_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, :6], inverted(s["action"][:, 6:])), first_columns(7, 1)
    ),
    "dlr_sara_grid_clamp_converted_externally_to_rlds": Expected(action, first_columns(6, 2)),
    "dlr_sara_pour_converted_externally_to_rlds": Expected(action, first_columns(6, 2)),
    "dobbe": Expected(action, state),
    "droid": Expected(
        lambda s: beside(s["action_dict/cartesian_velocity"], inverted(s["action_dict/gripper_position"])),
        lambda s: beside(s["observation/cartesian_position"], s["observation/gripper_position"]),
    ),
    "fmb_dataset": Expected(action, lambda s: beside(s["observation/eef_pose"], s["observation/state_gripper_pose"])),
    "fractal20220817_data": Expected(
        rt1_action, lambda s: beside(s["observation/base_pose_tool_reached"], s["observation/gripper_closed"])
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": Expected(
        quaternion_action(lambda gripper: inverted(clipped(gripper))),
        lambda s: beside(state(s)[:, :7], state(s)[:, 34:35]),
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": Expected(
        quaternion_action(lambda gripper: gripper), first_columns(8)
    ),
    "imperialcollege_sawyer_wrist_cam": Expected(without_last, lambda s: beside(zeros(s, 7), state(s))),
    "jaco_play": Expected(
        lambda s: beside(
            s["action/world_vector"], zeros(s, 3), opened_by_commands(s["action/gripper_closedness_action"])
        ),
        lambda s: beside(
            s["observation/end_effector_cartesian_pos"][:, :6],
            zeros(s, 1),
            s["observation/end_effector_cartesian_pos"][:, 6:],
        ),
    ),
    "kaist_nonprehensile_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, :6], zeros(s, 1)), lambda s: beside(state(s)[:, 14:21], zeros(s, 1))
    ),
    "kuka": Expected(
        rt1_action,
        lambda s: beside(s["observation/clip_function_input/base_pose_tool_reached"], s["observation/gripper_closed"]),
    ),
    "language_table": Expected(
        lambda s: beside(s["action"], zeros(s, 4), s.constant(1, 1)),
        lambda s: beside(s["observation/effector_translation"], zeros(s, 6)),
    ),
    "libero_10_no_noops": LIBERO,
    "libero_goal_no_noops": LIBERO,
    "libero_object_no_noops": LIBERO,
    "libero_spatial_no_noops": LIBERO,
    "maniskill_dataset_converted_externally_to_rlds": Expected(
        action, lambda s: beside(s["observation/tcp_pose"], state(s)[:, 7:8])
    ),
    "nyu_door_opening_surprising_effectiveness": Expected(rt1_action),
    "nyu_franka_play_dataset_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, 7:13], clipped(s["action"][:, 13:14])),
        lambda s: beside(state(s)[:, 7:13], zeros(s, 2)),
    ),
    "nyu_rot_dataset_converted_externally_to_rlds": PADDED,
    "robo_net": Expected(four_and_last, lambda s: beside(state(s)[:, :4], zeros(s, 3), state(s)[:, 4:5])),
    "roboset": Expected(lambda s: beside(s["action"][:, :7], inverted(clipped(s["action"][:, 7:]))), state),
    "roboturk": Expected(rt1_action_absolute),
    "stanford_hydra_dataset_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, :6], inverted(s["action"][:, 6:])),
        lambda s: beside(state(s)[:, :3], state(s)[:, 7:10], zeros(s, 1), state(s)[:, 24:25]),
    ),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, :3], zeros(s, 3), s["action"][:, 3:4]),
        lambda s: beside(s["observation/ee_position"], s["observation/ee_orientation"], zeros(s, 1)),
    ),
    "stanford_mask_vit_converted_externally_to_rlds": Expected(
        four_and_last,
        lambda s: beside(
            s["observation/end_effector_pose"][:, :4], zeros(s, 3), s["observation/end_effector_pose"][:, 4:]
        ),
    ),
    "stanford_robocook_converted_externally_to_rlds": PADDED,
    "taco_play": Expected(
        lambda s: beside(s["action/rel_actions_world"][:, :6], clipped(s["action/rel_actions_world"][:, 6:])),
        lambda s: beside(s["observation/robot_obs"][:, :6], zeros(s, 1), s["observation/robot_obs"][:, 7:8]),
    ),
    "tokyo_u_lsmo_converted_externally_to_rlds": PADDED,
    "toto": Expected(
        lambda s: beside(s["action/world_vector"], s["action/rotation_delta"], s["action/open_gripper"]),
        lambda s: beside(state(s), zeros(s, 1)),
    ),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": Expected(without_last, first_columns(7, 1)),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": Expected(
        lambda s: beside(s["action"][:, :3], zeros(s, 3), s["action"][:, 3:4]), padded_pose
    ),
    "uiuc_d3field": Expected(lambda s: beside(s["action"], zeros(s, 4))),
    "utaustin_mutex": Expected(closing_action, first_columns(8)),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": PR2,
    "utokyo_xarm_bimanual_converted_externally_to_rlds": Expected(
        lambda s: s["action"][:, 7:14], lambda s: beside(s["observation/pose_r"], zeros(s, 2))
    ),
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": Expected(
        action, lambda s: beside(s["observation/end_effector_pose"], zeros(s, 2))
    ),
    "viola": Expected(
        rt1_action_absolute, lambda s: beside(s["observation/joint_states"], s["observation/gripper_states"])
    ),
}

VARIANTS: Mapping[str, tuple[str, Expected]] = {
    "taco_play_published": (
        "taco_play",
        Expected(
            EXPECTED["taco_play"].action,
            lambda s: beside(s["observation/robot_obs"][:, :6], zeros(s, 1), s["observation/robot_obs"][:, 6:7]),
        ),
    ),
    "austin_sirius_published": (
        "austin_sirius_dataset_converted_externally_to_rlds",
        EXPECTED["austin_sirius_dataset_converted_externally_to_rlds"],
    ),
    "maniskill_published": (
        "maniskill_dataset_converted_externally_to_rlds",
        Expected(
            action,
            lambda s: beside(
                s["observation/tcp_pose"][:, [0, 1, 2, 4, 5, 6, 3]],  # w, x, y, z -> x, y, z, w
                state(s)[:, 7:8],
            ),
        ),
    ),
}
"""Recipe -> the dataset that it reads, as it is published where OpenVLA's table differs."""


def expected_rows(expected: Expected, values: Mapping[str, Any]) -> tuple[Rows, Rows, range]:
    """Return action, state, and the raw step of each."""
    steps = Steps(values)
    rows, states = expected.action(steps), (expected.state or (lambda s: zeros(s, 0)))(steps)
    if not expected.bridge:
        return rows, states, range(steps.count)
    kept = range(1, steps.count - 1)
    pose = steps["observation/state"][:, :6]
    moved = np.array([pose[t + 1] - pose[t] for t in kept])
    return beside(moved, rows[: len(kept)]), states[list(kept)], kept


def require_standard(dataset: Dataset, built: Any, expected: Expected) -> None:
    """Assert that the table's rows, texts and frames are those that were computed by hand."""
    episodes = [values for split in built.episodes.values() for values in split]
    table = dataset.table
    assert len(table.episodes) == len(episodes)
    for number, (place, values) in enumerate(zip(table.episodes, episodes, strict=True)):
        actions, states, kept = expected_rows(expected, values)
        rows = slice(int(place["start"]), int(place["start"] + place["length"]))
        assert (int(place["first"]), int(place["length"])) == (kept.start, len(kept))
        np.testing.assert_allclose(table.actions[rows], actions, rtol=0, atol=1e-5)  # angles of float32
        np.testing.assert_allclose(table.state[rows], states, rtol=0, atol=2e-6)
        assert {table.texts[i] for i in table.text_of[rows]} == {f"do task {number}"}


def require_frames(dataset: Dataset, built: Any) -> None:
    """Assert that the first sample has each camera's frame of the first used step."""
    first = built.episodes["train"][0]
    for role, camera in dataset.recipe.cameras.by_role().items():
        frame = first[f"steps/{camera}"][dataset.recipe.skip_first]
        assert dataset.sample(0).frames[role] == (frame,)


def folders_of(name: str) -> list[str]:
    """Return the names that the dataset's folder may have: the published one and the recipe's."""
    return [*read(SourceRecipe, name).published.folders, name]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_published_structure_is_read_by_recipe_and_by_path(name: str, tmp_path: Path) -> None:
    built = build(tmp_path / "built", name)
    choices = Choices(cameras=("primary", "secondary", "wrist"))
    for folder in folders_of(name):
        root = tmp_path / f"root_{folder}"
        root.mkdir()
        (tmp_path / "built").rename(root / folder)
        by_recipe = members_of(name, root)[0]
        by_path = member_at(str(root / folder))
        assert by_recipe.name == name
        assert by_path.name == ("bridge_orig" if name == "bridge_dataset" else name)
        for member in (by_recipe, by_path, member_at(str(root / folder / built.version))):
            dataset = open_dataset(member, choices, tmp_path / "cache")
            require_standard(dataset, built, EXPECTED[name])
            require_frames(dataset, built)
        (root / folder).rename(tmp_path / "built")


@pytest.mark.parametrize("recipe", VARIANTS)
def test_a_variant_reads_what_is_published_where_openvlas_table_differs(recipe: str, tmp_path: Path) -> None:
    name, expected = VARIANTS[recipe]
    built = build(tmp_path / name, name)
    member = members_of(recipe, tmp_path)[0]
    assert member.name == recipe
    require_standard(open_dataset(member, Choices(), tmp_path / "cache"), built, expected)


def test_the_variants_say_what_differs() -> None:
    sirius = read(SourceRecipe, "austin_sirius_published")
    assert (sirius.state_encoding, sirius.state) == ("joint", ("observation/state",))
    for recipe, (name, _) in VARIANTS.items():
        text = (available("datasets")[f"oxe/{name}"]).read_text()
        assert recipe in text and "OpenVLA" in text


def test_the_older_name_of_droid_is_known(tmp_path: Path) -> None:
    assert info_names("droid", SCHEMAS["droid"]) == {"1.0.0": "r2d2_faceblur", "1.0.1": "droid_101"}
    for version in ("1.0.0", "1.0.1"):
        build(tmp_path / "mine", "droid", version)
        assert member_at(str(tmp_path / "mine" / version)).name == "droid"
    assert member_at(str(tmp_path / "mine")).recipe.skip_still


def test_recipes_and_published_structures_agree() -> None:
    """Names, versions and cameras of each recipe agree; no name belongs to two recipes."""
    names: list[str] = []
    for name, schema in SCHEMAS.items():
        recipe, fields = read(SourceRecipe, name), schema["features"]
        assert set(recipe.published.versions) == set(schema.get("versions") or [schema["version"]])
        if recipe.published.names != ():
            assert set(info_names(name, schema).values()) <= set(recipe.published.names or [name])
        names += [name] if recipe.published.names is None else recipe.published.names
        for depth in recipe.depths.by_role().values():
            field = fields[f"steps/{depth}"]
            assert field["class"] == "Image" and field["dtype"] != "uint8", f"{name}: {depth}"
    assert len(names) == len(set(names))


def test_all_of_openvlas_mixture_is_read_from_the_folders_of_the_bucket(tmp_path: Path) -> None:
    names = [share.name for share in read(MixtureRecipe, "oxe_magic_soup_plus_minus").datasets]
    assert len(names) == 25
    for name in names:
        build(tmp_path / folders_of(name)[0], name)
    mixture = open_mixture("oxe_magic_soup_plus_minus", tmp_path, Choices(), tmp_path / "cache")
    assert list(mixture.statistics) == names
    drawn = [mixture.sample(number) for number in range(200)]
    assert all(sample.frames["primary"][0] and sample.instruction.startswith("do task") for sample in drawn)


ROUND_TRIPS = ("fractal20220817_data", "kuka", "language_table", "droid", "taco_play", "bc_z")


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_published_structure_comes_back_from_lerobot_to_the_bit(name: str, tmp_path: Path) -> None:
    build(tmp_path / "there", name)
    there = open_source(tmp_path / "there")
    assert convert(there, tmp_path / "lerobot", "lerobot", Options(rate_hz=5)).lost == ()
    between = open_source(tmp_path / "lerobot")
    assert between.episode(1).instructions() == there.episode(1).instructions()
    convert(between, tmp_path / "again", "rlds", Options())
    again = open_source(tmp_path / "again")
    assert isinstance(there, RldsDataset) and isinstance(again, RldsDataset)
    assert to_tree(again.features) == to_tree(there.features)
    for index in range(len(there)):
        ours, theirs = again.episode(index), there.episode(index)
        np.testing.assert_equal(dict(ours.metadata), dict(theirs.metadata))
        for field, column in theirs.steps.items():
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(ours.steps[field], column, strict=True)
            elif not isinstance(column, tuple):
                frames = ours.frames(field)
                assert [frames.encoded(t) for t in range(len(ours))] == [column.encoded(t) for t in range(len(theirs))]
            else:
                assert ours.steps[field] == column


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_published_structure_can_be_inspected(name: str, tmp_path: Path) -> None:
    """`vla data inspect` reads instructions, actions, and the frames of every camera and depth."""
    build(tmp_path / "mine", name)
    source = open_source(tmp_path / "mine")
    summary = summarise(source, 10)
    assert all(text.startswith("do task") for text in summary.instructions) and summary.actions
    for field in source.fields.values():
        if field.kind == "image":
            assert contact_sheet(source, field.name, episodes=1, frames=1).size


def test_the_published_bridge_has_one_camera(tmp_path: Path) -> None:
    """OpenVLA's table names a second camera, which no published version has; OpenVLA trains on the first only."""
    build(tmp_path / "bridge", "bridge_oxe")
    member = members_of("bridge_oxe", tmp_path)[0]
    assert member.recipe.cameras.by_role() == {"primary": "observation/image"}
    sample = open_dataset(member, Choices(cameras=("primary", "secondary")), tmp_path / "cache").sample(0)
    assert sample.frames["secondary"] == (b"",) and sample.frames["primary"] != (b"",)


def sequence(node: dict[str, Any]) -> dict[str, Any]:
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"pythonClassName": name, "sequence": {"feature": node, "length": "-1"}}


def test_fields_that_no_recipe_needs_do_not_lose_a_dataset(tmp_path: Path) -> None:
    """Classes, dtypes and shapes that are not read are left out, noted once, and listed when they are lost."""
    built = build(tmp_path / "viola", "viola")
    path = built.folder / "features.json"
    tree = json.loads(path.read_text())
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    for name in ("BBox", "Translation", "LabeledImage", "Video", "Audio", "Optional"):
        steps[name.lower()] = {"pythonClassName": f"tensorflow_datasets.core.features.some_feature.{name}"}
    steps["film"] = sequence(steps["observation"]["featuresDict"]["features"]["agentview_rgb"])
    steps["words"] = {**steps["reward"], "tensor": {"shape": {"dimensions": ["3"]}, "dtype": "string"}}
    path.write_text(json.dumps(tree))
    unread = ["bbox", "translation", "labeledimage", "video", "audio", "optional", "film", "words"]
    dataset = open_dataset(members_of("viola", tmp_path)[0], Choices(), tmp_path / "cache")
    require_standard(dataset, built, EXPECTED["viola"])
    (note,) = dataset.notes
    assert all(note.count(f"steps/{name}: ") == 1 for name in unread)
    source = open_source(tmp_path / "viola")
    for to in ("rlds", "lerobot"):
        lost = convert(source, tmp_path / to, to, Options(rate_hz=5)).lost
        assert [line.partition(":")[0] for line in lost] == [f"steps/{name}" for name in unread]
        assert lost[0] == "steps/bbox: feature class BBox is not read"


# -- datasets without a recipe ----------------------------------------------------------------------


def rename(folder: Path, name: str) -> None:
    """Give a dataset another name in its dataset_info.json and its shards."""
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for shard in folder.glob("*.tfrecord-*"):
        shard.rename(folder / shard.name.replace(info["name"], name))
    path.write_text(json.dumps(info | {"name": name}))


def test_a_dataset_without_a_recipe_is_not_trained_on_with_guesses(tmp_path: Path) -> None:
    built = build(tmp_path / "mine", "libero_spatial_no_noops")
    rename(built.folder, "my_arm")
    with pytest.raises(DataError) as caught:
        member_at(str(tmp_path / "mine"))
    text = str(caught.value)
    assert "No recipe is known for 'my_arm'" in text
    assert "Recipes that come near: '" in text and "(every field that it needs is there)" in text
    assert "assumed that 'action' is a standard action of encoding eef_pos" in text and "1 = open" in text
    with pytest.raises(RecipeError, match=r"is a dataset, not a recipe\. No recipe is known for 'my_arm'"):
        members_of(tmp_path / "mine")
    assert "No recipe is known" in advise(str(tmp_path / "mine"))
    assert "No recipe is known" in recipe_line(facts_of(open_source(tmp_path / "mine")))
    assert member_at(str(tmp_path / "mine"), "libero_goal_no_noops").name == "libero_goal_no_noops"
    looked_at = member_at(str(tmp_path / "mine"), may_assume=True)
    assert looked_at.recipe.action == ("action",) and "No recipe is known" in looked_at.assumed


def test_a_dataset_that_only_shares_a_name_is_refused(tmp_path: Path) -> None:
    built = build(tmp_path / "mine", "viola")
    rename(built.folder, "droid_101")
    with pytest.raises(
        DataError, match=r"'droid_101' does not fit .* 'droid' \(unknown field .*; and 6 more\).*'viola'"
    ):
        member_at(str(tmp_path / "mine"))


def test_a_folder_may_say_which_recipe_it_is(tmp_path: Path) -> None:
    built = build(tmp_path / "viola", "viola")
    rename(built.folder, "made_again")
    assert member_at(str(tmp_path / "viola")).name == "viola"
    assert member_at(str(built.folder)).name == "viola"


def test_a_copy_is_read_as_what_it_was_copied_from(tmp_path: Path) -> None:
    build(tmp_path / "viola", "viola")
    convert(open_source(tmp_path / "viola"), tmp_path / "small", "rlds", Options())
    assert member_at(str(tmp_path / "small")).name == "viola"
    assert recipe_line(facts_of(open_source(tmp_path / "small"))).startswith("Recipe: viola, for a dataset that calls")


def test_a_user_who_names_a_dataset_for_a_recipe_is_told_the_recipe(tmp_path: Path) -> None:
    build(tmp_path / "bridge", "bridge_oxe")
    with pytest.raises(RecipeError, match=rf"Its recipe is 'bridge_oxe': --mixture bridge_oxe --root {tmp_path}$"):
        members_of(tmp_path / "bridge")
    (tmp_path / "bridge").rename(tmp_path / "widow")
    assert 'write datasets/mine.toml with the lines base = "bridge_oxe" and location = ' in advise(
        str(tmp_path / "widow")
    )


def test_a_version_that_was_not_compared_is_noted(tmp_path: Path) -> None:
    built = build(tmp_path / "viola", "viola")
    info = built.folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"0.1.0"', '"0.2.0"'))
    line = recipe_line(facts_of(open_source(tmp_path / "viola")))
    assert line == "Recipe: viola; version 0.2.0 is none of those that it was compared with (0.1.0)."


def test_a_root_without_the_dataset_names_the_folders_it_may_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has none of the folders that may hold 'fmb_dataset': fmb_dataset, fmb"):
        members_of("fmb_dataset", tmp_path)


# -- the encoder against TensorFlow Datasets ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("VLA_TFDS_PYTHON" not in os.environ, reason="VLA_TFDS_PYTHON names no Python that has TFDS")
def test_tensorflow_datasets_reads_the_same_values(tmp_path: Path, repository: Path) -> None:
    built = {name: build(tmp_path / name, name) for name in SCHEMAS}
    read = digests_of_tfds(repository, [ours.folder for ours in built.values()])
    for (name, ours), theirs in zip(built.items(), read, strict=True):
        compared = 0
        for path, field in SCHEMAS[name]["features"].items():
            if path.startswith("steps/") and field["class"] != "Image":
                columns = digest([episode[path] for episode in ours.episodes["train"]])
                assert theirs["fields"][path.removeprefix("steps/")] == columns, f"{name}: {path}"
                compared += 1
        assert compared > 3 and theirs["episodes"] == len(ours.episodes["train"])


@pytest.mark.slow
@pytest.mark.skipif("VLA_TFDS_PYTHON" not in os.environ, reason="VLA_TFDS_PYTHON names no Python that has TFDS")
def test_tensorflow_datasets_reads_the_golden_samples_as_we_do(repository: Path, tmp_path: Path) -> None:
    for folder, theirs in zip(SAMPLES, digests_of_tfds(repository, SAMPLES), strict=True):
        source = open_rlds(folder, cache=tmp_path / folder.parent.name)
        episodes = [source.episode(index).steps for index in range(len(source))]
        for name, field in source.fields.items():
            if field.kind != "image":
                assert digest([episode[name] for episode in episodes]) == theirs["fields"][name], f"{folder}: {name}"


def digests_of_tfds(repository: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    script = repository / "tests" / "tools" / "read_with_tfds.py"
    command = [os.environ["VLA_TFDS_PYTHON"], str(script), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def digest(columns: Sequence[Any]) -> str:
    """Return the digest of all steps, as read_with_tfds.py computes it."""
    total = hashlib.sha256()
    for column in columns:
        for value in column:
            total.update(np.asarray(value.encode() if isinstance(value, str) else value).tobytes())
    return total.hexdigest()


SAMPLES = sorted((Path(__file__).parents[3] / "golden" / "rlds_samples").glob("*/*.*.*"))


@pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.parent.name)
def test_the_golden_samples_have_the_published_structure(folder: Path) -> None:
    """All but the size of the frames is equal; the size is that of the records."""
    fields = {
        path: {**field, "shape": [112, 112, 3]} if field["class"] == "Image" else field
        for path, field in SCHEMAS[folder.parent.name]["features"].items()
    }
    assert json.loads((folder / "features.json").read_text()) == tool.features_tree(fields)


def test_the_table_of_the_page_is_what_its_tool_prints(repository: Path) -> None:
    page = (repository / "docs" / "data.md").read_text()
    printed = importlib.import_module("list_published").table()
    assert printed in page, "run: python tests/tools/list_published.py docs/data.md"
    rows = [line.split(" | ") for line in printed.splitlines()[2:]]
    assert len(rows) == 70
    assert sum("structure" in row[-1] for row in rows) == len(SCHEMAS) == 62
    assert sum("not found" in row[-1] for row in rows) == 8
