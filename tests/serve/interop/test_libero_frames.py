"""What policies trained on LIBERO see: the benchmark's upside-down frames turned by 180 degrees, so mirrored ones.

The picture is a scene with the cabinet on the left, at column 36 of 256, as LIBERO's upright agentview has it.
"""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.messages import ActionChunk, Image, Observation, Vector
from vla_robot.recipe import read
from vla_robot.recipe.policy import GrootRecipe, OpenpiRecipe
from vla_robot.serve.interop.mapping import PeerMapping, nested, resize_with_pad
from vla_robot.serve.interop.openpi_schema import ExampleWords, RecipeWords
from vla_robot.serve.interop.rest import pack_array, read_observation

CABINET_COLUMN = 36
STATE = ("world_x", "world_y", "world_z", "hand_rx", "hand_ry", "hand_rz", "finger_left", "finger_right")
SENT = np.array([-0.21, -0.01, 1.17, 3.14, -0.002, -0.088, 0.0387, -0.0387])
ARM = Embodiment(
    "panda",
    ActionSpace(
        "eef_delta",
        "base",
        tuple(Dim(n, "m", -0.5, 0.5) for n in ("dx", "dy", "dz", "droll", "dpitch", "dyaw"))
        + (Dim("gripper", "1", 0.0, 1.0),),
    ),
    tuple(Dim(n, "m", -7.0, 7.0) for n in STATE),
    tuple(CameraSpec(n, 256, 256) for n in ("front", "wrist")),
    20.0,
)


def upright() -> Image:
    """Return (256, 256, 3) uint8: noise, and the cabinet as a black column."""
    frame = np.random.default_rng(0).integers(60, 255, (256, 256, 3), np.uint8)
    frame[128:, CABINET_COLUMN - 4 : CABINET_COLUMN + 5] = 0
    return frame


def as_the_reference(frame: Image) -> Image:
    """Return what openpi's and openvla's evaluations make of the benchmark's own frame, which is upside down."""
    raw = frame[::-1]
    return np.ascontiguousarray(raw[::-1, ::-1])


def column_of_the_cabinet(frame: Image) -> float:
    return float(np.median(np.argwhere(frame.max(axis=2) == 0)[:, 1]))


def seen(state: Vector = SENT) -> Observation:
    return Observation({"front": upright(), "wrist": upright()}, state, "lift", stamp_ns=7, step=3)


def test_openpis_policy_gets_the_reference_preprocessing_pixel_for_pixel() -> None:
    peer = read(OpenpiRecipe, "openpi_libero").peer
    images = PeerMapping(peer, ARM).images(seen())
    expected = resize_with_pad(as_the_reference(upright()), 224)
    for key in ("observation/image", "observation/wrist_image"):
        np.testing.assert_array_equal(images[key], expected)
    assert column_of_the_cabinet(as_the_reference(upright())) == 255 - CABINET_COLUMN


def test_groots_policy_gets_the_reference_preprocessing_pixel_for_pixel() -> None:
    peer = read(GrootRecipe, "groot_libero").peer
    video = nested(PeerMapping(peer, ARM).images(seen()))["video"]
    for key in ("image", "wrist_image"):
        np.testing.assert_array_equal(video[key], as_the_reference(upright()))
        assert column_of_the_cabinet(video[key]) == 255 - CABINET_COLUMN


def test_both_get_the_references_state_number_by_number() -> None:
    openpi = PeerMapping(read(OpenpiRecipe, "openpi_libero").peer, ARM).state(seen())
    np.testing.assert_array_equal(openpi["observation/state"], SENT)
    groot = PeerMapping(read(GrootRecipe, "groot_libero").peer, ARM).state(seen())
    parts = [groot[f"state.{name}"] for name in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")]
    np.testing.assert_array_equal(np.concatenate(parts), SENT)


def test_an_open_gripper_is_minus_one_for_openpi_and_a_whole_step_5_cm() -> None:
    peer = read(OpenpiRecipe, "openpi_libero").peer
    chunk = PeerMapping(peer, ARM).chunk({"actions": np.array([[1.0, 0, 0, 0, 0, -1, -1]])}, seen(), {})
    np.testing.assert_allclose(chunk.actions, [[0.05, 0, 0, 0, 0, -0.5, 1.0]])


def test_liberos_client_of_our_policy_is_seen_upright_by_its_recipe() -> None:
    frame = as_the_reference(upright())
    request = {"observation/image": frame, "observation/wrist_image": frame, "observation/state": SENT, "prompt": "go"}
    words = RecipeWords(read(OpenpiRecipe, "openpi_libero").peer, ARM)
    np.testing.assert_array_equal(words.read(request).images["front"], upright())
    sent = words.write(ActionChunk(np.array([[0.05, 0, 0, 0, 0, 0, 1.0]]), 7, 3))["actions"]
    np.testing.assert_allclose(sent, [[1.0, 0, 0, 0, 0, 0, -1.0]])


@pytest.mark.parametrize("mirror", [False, True])
def test_a_checkpoint_that_mirrors_is_not_given_a_clients_mirrored_frames_twice(mirror: bool) -> None:
    """Clients of openpi's and OpenVLA's scripts mirror LIBERO's frames, and the checkpoint's recipe does, too."""
    frame = as_the_reference(upright())
    expected = upright() if mirror else frame
    openpi = {"observation/image": frame, "observation/wrist_image": frame, "prompt": "go"}
    words = ExampleWords(("front", "wrist"), None, mirror)
    np.testing.assert_array_equal(words.read(openpi).images["wrist"], expected)
    rest = {"full_image": pack_array(frame), "wrist_image": pack_array(frame), "instruction": "go"}
    arrived = read_observation(rest, ("front", "wrist"), mirror).images
    np.testing.assert_array_equal(arrived["front"], expected)


def test_another_robots_frames_are_not_mirrored() -> None:
    frame = upright()
    request = {"images": {"cam_high": frame, "cam_left_wrist": frame}, "prompt": "go"}
    words = ExampleWords(("front", "wrist"), None, mirror=True)
    np.testing.assert_array_equal(words.read(request).images["front"], frame)
