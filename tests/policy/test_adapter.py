from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vla_robot.core.embodiment import Dim, Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Observation
from vla_robot.policy.adapter import MirroredFrames, ObservationAdapter
from vla_robot.testing import FunctionPolicy, toy_embodiment


def embodiment(cameras: Sequence[str], state: Sequence[str], rate_hz: float = 10.0, gripper: str = "1") -> Embodiment:
    dims, last = [Dim(name, "m", -1, 1) for name in state], Dim("gripper", gripper, 0, 1)
    return toy_embodiment(state=dims, gripper=last, cameras=cameras, height=4, width=4, rate_hz=rate_hz)


OFFERED = embodiment(["left", "front", "wrist"], ["x", "y", "width"])
FRAMES = {name: np.full((4, 4, 3), i, np.uint8) for i, name in enumerate(["left", "front", "wrist"])}
SEEN = Observation(FRAMES, np.array([1.0, 2.0, 3.0]), "go", stamp_ns=7, step=3)


def test_a_policy_sees_its_own_cameras_and_state_in_its_own_order() -> None:
    spy = FunctionPolicy()
    policy = ObservationAdapter(spy, embodiment(["wrist", "front"], ["width", "x"]), OFFERED)
    policy.reset(5)
    (chunk,) = policy.act([SEEN])
    assert list(spy.saw[0].images) == ["wrist", "front"]
    np.testing.assert_array_equal(spy.saw[0].state, [3.0, 1.0])
    assert (spy.seeds, spy.saw[0].instruction, chunk.step) == ([5], "go", 3)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (embodiment(["frnt"], ["x"]), "unknown camera 'frnt'; did you mean 'front'"),
        (embodiment(["front"], ["z"]), r"unknown state \[m\] 'z'"),
        (embodiment(["front"], ["x"], rate_hz=5.0), "trained at 5 Hz, the world runs at 10 Hz"),
        (embodiment(["front"], ["x"], gripper="m"), r"the policy gives dx \[m\], gripper \[m\]"),
    ],
)
def test_a_policy_for_another_arm_is_refused_with_the_difference(wanted: Embodiment, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        ObservationAdapter(FunctionPolicy(), wanted, OFFERED)


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        ObservationAdapter(FunctionPolicy(), embodiment(["top"], ["q"], rate_hz=50), OFFERED)
    assert all(word in str(caught.value) for word in ("rate", "camera 'top'", "'q'"))


def test_a_policy_of_mirrored_frames_sees_left_and_right_exchanged() -> None:
    spy = FunctionPolicy()
    policy = MirroredFrames(spy)
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    seen = Observation({"front": frame}, np.array([1.0]), "go", stamp_ns=7, step=3)
    policy.reset(5)
    (chunk,) = policy.act([seen])
    np.testing.assert_array_equal(spy.saw[0].images["front"], frame[:, ::-1])
    np.testing.assert_array_equal(seen.images["front"], np.arange(18).reshape(2, 3, 3))
    assert (spy.seeds, chunk.step, spy.saw[0].instruction) == ([5], 3, "go")
