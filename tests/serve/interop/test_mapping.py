"""Between our nouns and another project's words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vla_robot.core.embodiment import Dim
from vla_robot.core.errors import ContractError, PolicyError, RecipeError
from vla_robot.core.geometry import quat_from_rotvec
from vla_robot.core.messages import Observation
from vla_robot.recipe.peer import PeerImageRecipe, PeerNumbersRecipe, PeerRecipe
from vla_robot.serve.interop.mapping import PeerMapping, ToolTurn, nested, resize_with_pad
from vla_robot.testing import toy_embodiment
from vla_robot.testing.embodiments import WIDTH, X

ARM = toy_embodiment(state=(X, WIDTH), rate_hz=20.0)
PEER = PeerRecipe(
    rate_hz=20.0,
    images=(PeerImageRecipe("observation/image", "front", size_px=16),),
    state=(PeerNumbersRecipe("state", ("x", "gripper_width", "gripper_width"), scale=(1.0, 0.5, -0.5)),),
    action=(PeerNumbersRecipe("actions", ("dx", "gripper"), scale=(0.05, -0.5), offset=(0.0, 0.5)),),
)
SEEN = Observation({"front": np.full((6, 8, 3), 200, np.uint8)}, np.array([0.3, 0.08]), "lift", stamp_ns=7, step=3)


def test_the_state_is_told_in_the_servers_order_and_units() -> None:
    state = PeerMapping(PEER, ARM).state(SEEN)
    np.testing.assert_allclose(state["state"], [0.3, 0.04, -0.04])


def test_an_answer_becomes_the_arms_units() -> None:
    chunk = PeerMapping(PEER, ARM).chunk({"actions": np.array([[1.0, -1.0], [-0.5, 1.0]])}, SEEN, {"server": 5.0})
    np.testing.assert_allclose(chunk.actions, [[0.05, 1.0], [-0.025, 0.0]])
    assert (chunk.stamp_ns, chunk.step, chunk.stages_ms) == (7, 3, {"server": 5.0})


def test_an_action_may_come_in_parts_and_a_single_number_as_a_row() -> None:
    parts = (PeerNumbersRecipe("grip", ("gripper",)), PeerNumbersRecipe("arm", ("dx",)))
    answer = {"arm": np.array([[0.01], [0.02]], np.float32), "grip": np.array([1.0, 0.0]), "other": "ignored"}
    chunk = PeerMapping(replace(PEER, action=parts), ARM).chunk(answer, SEEN, {})
    np.testing.assert_allclose(chunk.actions, [[0.01, 1.0], [0.02, 0.0]])


def test_a_single_action_needs_no_axis_of_time() -> None:
    assert PeerMapping(PEER, ARM).chunk({"actions": np.array([0.0, 1.0])}, SEEN, {}).actions.shape == (1, 2)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"action": np.zeros((2, 2))}, "no 'actions'.*did you mean 'action'"),
        ({"actions": [[0.0, 1.0]]}, "is not an array of numbers"),
        ({"actions": np.zeros((2, 3))}, r"shape \[2, 3\], but the recipe names 2 numbers"),
        ({"actions": np.zeros((1, 2, 2))}, r"shape \[1, 2, 2\]"),
        ({"actions": np.zeros((0, 2))}, "holds 0 actions"),
        ({"actions": np.array([[np.nan, 0.0]])}, "not finite"),
    ],
)
def test_an_answer_that_is_none_moves_nothing(answer: dict[str, object], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        PeerMapping(PEER, ARM).chunk(answer, SEEN, {})


def test_parts_of_different_length_move_nothing() -> None:
    parts = (PeerNumbersRecipe("grip", ("gripper",)), PeerNumbersRecipe("arm", ("dx",)))
    with pytest.raises(PolicyError, match="holds 1 and 2 actions"):
        PeerMapping(replace(PEER, action=parts), ARM).chunk({"arm": np.zeros(2), "grip": np.zeros(1)}, SEEN, {})


def test_every_difference_to_the_arm_is_told_at_once() -> None:
    peer = replace(
        PEER,
        rate_hz=15.0,
        images=(PeerImageRecipe("image", "frontt"),),
        state=(PeerNumbersRecipe("state", ("y",)),),
        action=(PeerNumbersRecipe("actions", ("dx", "dz")),),
    )
    with pytest.raises(ContractError) as refused:
        PeerMapping(peer, ARM)
    for part in (
        "are for 15 Hz, the world runs at 20 Hz",
        "unknown camera 'frontt'; did you mean 'front'?",
        "unknown state 'y'",
        "unknown action dimension 'dz'",
        "nothing gives 'gripper' of the action",
    ):
        assert part in str(refused.value)


def test_frames_go_with_channels_first_where_the_recipe_says_so() -> None:
    peer = replace(PEER, images=(PeerImageRecipe("images.cam_high", "front", channels="first"),))
    frames = nested(PeerMapping(peer, ARM).images(SEEN))
    assert frames["images"]["cam_high"].shape == (3, 6, 8)


def test_a_frame_is_fitted_with_black_above_and_below() -> None:
    fitted = resize_with_pad(np.full((120, 160, 3), 200, np.uint8), 64)
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:8] == 0).all() and (fitted[56:] == 0).all() and (fitted[8:56] == 200).all()


def test_a_frame_that_fits_is_not_touched() -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    assert resize_with_pad(frame, 64) is frame


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rate_hz": 0.0}, "outside 1 to 100"),
        ({"rows": 0}, "at least 1"),
        ({"answer_timeout_s": 0.0}, "outside 0 to 600"),
        ({"images": ()}, "at least one entry"),
        ({"prompt": "state"}, "key state is there more than once"),
        ({"prompt": "state.text"}, "key state is there more than once"),
        ({"action": (PeerNumbersRecipe("a", ("dx", "dx")),)}, "action dimension dx is there more than once"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        replace(PEER, **changes)  # pyright: ignore[reportArgumentType]


def test_a_scale_has_as_many_numbers_as_names() -> None:
    with pytest.raises(RecipeError, match="2 names and 1 numbers of scale"):
        PeerNumbersRecipe("actions", ("dx", "gripper"), scale=(1.0,))


def test_a_scale_of_0_is_refused() -> None:
    with pytest.raises(RecipeError, match="scale of 0"):
        PeerNumbersRecipe("actions", ("dx", "gripper"), scale=(1.0, 0.0))


POSED = replace(ARM, state=tuple(Dim(name, "1", -7.0, 7.0) for name in ("x", "rx", "ry", "rz")))


def test_a_tool_that_the_server_holds_otherwise_is_turned_as_robosuites_hand_is() -> None:
    # Both of one pose of robosuite 1.5.1's Panda: its grip site as our worlds write it, its hand as LIBERO does.
    peer = replace(PEER, tool_turn_deg=90.0, state=(PeerNumbersRecipe("state", ("rx", "ry", "rz")),))
    seen = replace(SEEN, state=np.array([0.3, 2.20988579, 2.12370981, 0.11791472]))
    turned = PeerMapping(peer, POSED).state(seen)["state"]
    np.testing.assert_allclose(turned, [3.13820681, -0.062405, 0.16805809], atol=1e-5)


def test_an_arm_whose_state_has_no_rotation_cannot_be_turned() -> None:
    with pytest.raises(ContractError, match="turns rx, ry and rz, and the arm's state has none"):
        PeerMapping(replace(PEER, tool_turn_deg=90.0), ARM)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0.1, 3.0), st.floats(-180, 180))
def test_a_turn_there_and_back_is_the_same_rotation(axis: list[float], angle: float, turn_deg: float) -> None:
    norm = float(np.linalg.norm(axis))
    assume(norm > 0.01)
    rotvec = np.array(axis) / norm * angle
    tool = ToolTurn(turn_deg, POSED)
    back = tool.back(tool.there(np.array([0.3, *rotvec])))
    assert back[0] == 0.3
    assert abs(quat_from_rotvec(back[1:]) @ quat_from_rotvec(rotvec)) == pytest.approx(1.0, abs=1e-9)
