from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import ContractError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.policy.adapter import ObservationAdapter


def embodiment(cameras: Sequence[str], state: Sequence[str], rate_hz: float = 10.0, gripper: str = "1") -> Embodiment:
    return Embodiment(
        "arm",
        ActionSpace("eef_delta", "base", (Dim("dx", "m", -1, 1), Dim("gripper", gripper, 0, 1))),
        tuple(Dim(name, "m", -1, 1) for name in state),
        tuple(CameraSpec(name, 4, 4) for name in cameras),
        rate_hz,
    )


class Spy:
    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.seed: int | None = None

    def reset(self, seed: int) -> None:
        self.seed = seed

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.seen += observations
        return [ActionChunk(np.zeros((1, 2)), o.stamp_ns, o.step) for o in observations]


OFFERED = embodiment(["left", "front", "wrist"], ["x", "y", "width"])
FRAMES = {name: np.full((4, 4, 3), i, np.uint8) for i, name in enumerate(["left", "front", "wrist"])}
SEEN = Observation(FRAMES, np.array([1.0, 2.0, 3.0]), "go", stamp_ns=7, step=3)


def test_a_policy_sees_its_own_cameras_and_state_in_its_own_order() -> None:
    spy = Spy()
    policy = ObservationAdapter(spy, embodiment(["wrist", "front"], ["width", "x"]), OFFERED)
    policy.reset(5)
    (chunk,) = policy.act([SEEN])
    assert list(spy.seen[0].images) == ["wrist", "front"]
    np.testing.assert_array_equal(spy.seen[0].state, [3.0, 1.0])
    assert (spy.seed, spy.seen[0].instruction, chunk.step) == (5, "go", 3)


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
        ObservationAdapter(Spy(), wanted, OFFERED)


def test_all_differences_are_told_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        ObservationAdapter(Spy(), embodiment(["top"], ["q"], rate_hz=50), OFFERED)
    assert all(word in str(caught.value) for word in ("rate", "camera 'top'", "'q'"))
