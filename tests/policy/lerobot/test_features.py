"""A policy's features by the arm's names and units, and every difference in one error."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.image import resize
from vla_robot.core.messages import Observation
from vla_robot.policy.kinds import load_policy
from vla_robot.recipe import dump, parse
from vla_robot.recipe.peer import LeRobotNumbersRecipe
from vla_robot.recipe.policy import LeRobotRecipe, PolicyRecipe

from .lerobot_folders import ARM, edit, observation

DEGREES = 180 / np.pi
Folder = Callable[[str], Path]


def other_arm() -> Embodiment:
    """The same arm with other names, another order, and millimetres for the policy's metres."""
    mm = 1000.0
    dims = (Dim("grip", "1", 0.0, 1.0), Dim("ahead", "mm", -50.0, 50.0), Dim("aside", "mm", -50.0, 50.0))
    state = (
        Dim("width", "mm", 0.0, 0.1 * mm),
        Dim("load", "1", 0.0, 1.0),
        Dim("px", "mm", -mm, mm),
        Dim("py", "mm", -mm, mm),
    )
    cameras = (CameraSpec("hand", 64, 64), CameraSpec("top", 64, 64), CameraSpec("side", 8, 8))
    return Embodiment("other", ActionSpace("eef_delta", "base", dims), state, cameras, 10.0)


OTHER: dict[str, Any] = {
    "cameras": {"front": "top", "wrist": "hand"},
    "state": LeRobotNumbersRecipe(("px", "py", "width"), scale=(1000.0, 1000.0, 1000.0)),
    "action": LeRobotNumbersRecipe(("ahead", "aside", "grip"), scale=(1000.0, 1000.0, 1.0)),
}


def on_the_other_arm(seen: Observation) -> Observation:
    images = {"top": seen.images["front"], "hand": seen.images["wrist"], "side": np.zeros((8, 8, 3), np.uint8)}
    x, y, width = 1000 * seen.state
    return replace(seen, images=images, state=np.array([width, 0.3, x, y]))


@pytest.mark.parametrize("kind", ["act", "pi0"])
def test_names_order_and_units_of_another_arm_change_nothing_else(
    kind: str, folder: Folder, hub: dict[str, Path]
) -> None:
    here = load_policy(LeRobotRecipe(checkpoint=folder(kind), hub=hub), ARM)
    there = load_policy(LeRobotRecipe(checkpoint=folder(kind), hub=hub, **OTHER), other_arm())
    seen = observation(2, committed=2)
    assert seen.committed is not None
    x, y, grip = seen.committed.T
    ours = here.act([seen])[0].actions
    theirs = there.act([replace(on_the_other_arm(seen), committed=np.stack([grip, 1000 * x, 1000 * y], axis=1))])[0]
    np.testing.assert_allclose(
        theirs.actions, np.stack([ours[:, 2], 1000 * ours[:, 0], 1000 * ours[:, 1]], axis=1), atol=2e-4
    )


def test_such_a_recipe_is_written_and_read_as_toml(tmp_path: Path) -> None:
    recipe = LeRobotRecipe(
        checkpoint=tmp_path / "act", hub={"google/paligemma-3b": tmp_path / "p"}, rate_hz=10.0, **OTHER
    )
    import tomllib

    assert parse(PolicyRecipe, tomllib.loads(dump(recipe)), "mine") == recipe


def test_every_difference_is_in_one_error(folder: Folder) -> None:
    recipe = LeRobotRecipe(checkpoint=folder("act"), cameras={"fron": "top"}, rate_hz=30.0)
    with pytest.raises(ContractError) as caught:
        load_policy(recipe, other_arm())
    told = str(caught.value)
    for part in (
        "does not fit 'other'",
        "unknown image of the policy 'fron'; did you mean 'front'",
        "unknown camera 'front'",
        "unknown camera 'wrist'",
        "rate: the policy was trained at 30 Hz, the arm runs at 10 Hz",
        "state: the policy has 3 numbers, the arm 4: width, load, px, py",
    ):
        assert part in told


def test_numbers_that_nothing_gives_or_that_the_arm_lacks_are_told(folder: Folder) -> None:
    recipe = LeRobotRecipe(
        checkpoint=folder("act"),
        **{
            **OTHER,
            "action": LeRobotNumbersRecipe(("ahead", "asid")),
            "state": LeRobotNumbersRecipe(("px", "pz", "width")),
        },
    )
    told = (
        r"unknown state dimension 'pz'.*action: the policy has 3 numbers, the recipe names 2.*'asid'; did you mean "
        r"'aside'.*nothing gives 'grip' of the action; nothing gives 'aside'"
    )
    with pytest.raises(ContractError, match=told):
        load_policy(recipe, other_arm())


def test_another_unit_shows_in_the_ranges_of_the_training(folder: Folder) -> None:
    """A policy in metres on an arm whose numbers are kilometres: the training went far outside of its range."""
    small = (Dim("dx", "km", -5e-5, 5e-5), Dim("dy", "km", -5e-5, 5e-5), ARM.action.dims[2])
    arm = replace(ARM, action=replace(ARM.action, dims=small))
    with pytest.raises(ContractError, match=r"action 'dx' went from .* in the training, .*is it another unit\?.*'dy'"):
        load_policy(LeRobotRecipe(checkpoint=folder("act")), arm)
    scaled = LeRobotNumbersRecipe(("dx", "dy", "gripper"), scale=(1e-3, 1e-3, 1.0))
    assert load_policy(LeRobotRecipe(checkpoint=folder("act"), action=scaled), arm) is not None


@pytest.mark.parametrize(("kind", "fits"), [("act", False), ("diffusion", False), ("pi0", True), ("smolvla", True)])
def test_another_size_of_frames_fits_a_policy_that_resizes_them(
    kind: str, fits: bool, folder: Folder, hub: dict[str, Path]
) -> None:
    arm = replace(ARM, cameras=(CameraSpec("front", 48, 80), CameraSpec("wrist", 64, 64)))
    recipe = LeRobotRecipe(checkpoint=folder(kind), hub=hub)
    if not fits:
        with pytest.raises(ContractError, match="front was 64 x 64 pixels in the training, camera 'front' has 48 x 80"):
            load_policy(recipe, arm)
        return
    seen = observation(0)
    (chunk,) = load_policy(recipe, arm).act(
        [replace(seen, images={**seen.images, "front": np.zeros((48, 80, 3), np.uint8)})]
    )
    assert chunk.actions.shape == (8, 3)


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_a_recipe_resizes_frames_as_the_recorder_did(kind: str, folder: Folder) -> None:
    arm = replace(ARM, cameras=(CameraSpec("front", 112, 80), CameraSpec("wrist", 64, 64)))
    seen = observation(0)
    large = np.random.default_rng(0).integers(0, 256, (112, 80, 3), dtype=np.uint8)
    small = resize(large, 64, 64)  # what `vla record --image-size 64` stores
    policy = load_policy(LeRobotRecipe(checkpoint=folder(kind), resize=True), arm)
    as_trained = load_policy(LeRobotRecipe(checkpoint=folder(kind)), ARM)
    (chunk,) = policy.act([replace(seen, images={**seen.images, "front": large})])
    (expected,) = as_trained.act([replace(seen, images={**seen.images, "front": small})])
    np.testing.assert_array_equal(chunk.actions, expected.actions)


def test_the_embodiment_of_the_dataset_is_compared_whole(
    folder: Folder, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = shutil.copytree(folder("act"), tmp_path / "own")
    with caplog.at_level(logging.WARNING):
        load_policy(LeRobotRecipe(checkpoint=own), ARM)
    assert "does not say for which arm it was trained" in caplog.text
    shutil.copy(dataset / "meta" / "embodiment.json", own)
    caplog.clear()
    policy = load_policy(LeRobotRecipe(checkpoint=own), ARM)
    assert getattr(policy, "embodiment", None) == ARM and "does not say" not in caplog.text
    for recipe in (
        LeRobotRecipe(checkpoint=own),
        LeRobotRecipe(checkpoint=folder("act"), embodiment=dataset / "meta" / "embodiment.json"),
    ):
        with pytest.raises(
            ContractError, match=r"was made for 'toy' and does not fit 'fast': rate: .* 10 Hz, .* 20 Hz"
        ):
            load_policy(recipe, replace(ARM, name="fast", rate_hz=20.0))
    edit(own, "embodiment.json", lambda data: data.pop("action"))
    with pytest.raises(Exception, match=r"embodiment.json.*'action' is missing"):
        load_policy(LeRobotRecipe(checkpoint=own), ARM)


def test_names_of_actions_in_the_folder_must_be_the_arms(folder: Folder, hub: dict[str, Path], tmp_path: Path) -> None:
    own = shutil.copytree(folder("pi0"), tmp_path / "own")
    edit(own, "config.json", lambda data: data.update(action_feature_names=["dy", "dx", "gripper"]))
    with pytest.raises(ContractError, match="actions are called dy, dx, gripper, the arm's dx, dy, gripper"):
        load_policy(LeRobotRecipe(checkpoint=own, hub=hub), ARM)
    named = LeRobotNumbersRecipe(("dy", "dx", "gripper"))
    swapped = load_policy(LeRobotRecipe(checkpoint=own, hub=hub, action=named), ARM).act([observation(0)])[0].actions
    plain = load_policy(LeRobotRecipe(checkpoint=folder("pi0"), hub=hub), ARM).act([observation(0)])[0].actions
    np.testing.assert_array_equal(swapped[:, [1, 0, 2]], plain)


def test_names_that_the_preprocessor_renames_are_the_datasets(folder: Folder, tmp_path: Path) -> None:
    """A policy trained with lerobot's rename_map reads the dataset's names and renames them itself."""
    own = shutil.copytree(folder("act"), tmp_path / "own")
    renames = {"observation.images.top": "observation.images.front"}
    edit(own, "policy_preprocessor.json", lambda data: data["steps"][0]["config"].update(rename_map=renames))
    with pytest.raises(ContractError, match="unknown camera 'top'"):
        load_policy(LeRobotRecipe(checkpoint=own), ARM)
    mapped = load_policy(LeRobotRecipe(checkpoint=own, cameras={"top": "front"}), ARM).act([observation(0)])[0]
    np.testing.assert_array_equal(
        mapped.actions, load_policy(LeRobotRecipe(checkpoint=folder("act")), ARM).act([observation(0)])[0].actions
    )


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (replace(observation(0), images={"front": np.zeros((64, 64, 3), np.uint8)}), "unknown camera 'wrist'"),
        (replace(observation(0), state=np.zeros(4)), "the state must be 3 finite numbers"),
        (replace(observation(0), state=np.array([0.0, np.nan, 0.0])), "the state must be 3 finite numbers"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(seen: Observation, says: str, folder: Folder) -> None:
    with pytest.raises(ContractError, match=says):
        load_policy(LeRobotRecipe(checkpoint=folder("act")), ARM).act([seen])


def test_a_recipe_that_contradicts_itself_is_refused() -> None:
    for table, says in (
        ({"state": {"names": ["x", "x"]}}, "holds a dimension twice"),
        ({"action": {"names": ["x"], "scale": [0.0]}}, "a scale of 0"),
        ({"cameras": {"a": "front", "b": "front"}}, "names a camera twice"),
        ({"rate_hz": 0.1}, "outside 1 to 1000"),
    ):
        with pytest.raises(Exception, match=says):
            parse(PolicyRecipe, {"kind": "lerobot", "checkpoint": "act", **table}, "mine")
