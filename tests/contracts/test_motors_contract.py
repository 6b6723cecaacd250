"""What motors, leader arms and models of arms promise. A new one joins by one line in MOTORS, LEADERS or MODELS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.messages import Vector
from vla_robot.core.ports import Kinematics, LeaderArm, Motors
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe
from vla_robot.world.real.set_points import SetPoints

# The emulated arm's fixtures; "bus" and "desk" are asked for by name.
from ..arms.conftest import bus, desk, patience, plugins, quick_threads  # noqa: F401
from .kinds import Get, as_named
from .test_arm_contract import BOUNDS, StillMotors
from .test_teleoperator_contract import told_leader

MOTORS: dict[str, Callable[[Get], Motors]] = {
    "LerobotDevice": lambda get: get("arm_of")().motors,
    "DryDevice": lambda get: get("arm_of")(show=print).motors,
    "SetPoints": lambda get: SetPoints(StillMotors(), 10.0, 100.0, BOUNDS, FakeClock()),
}
LEADERS: dict[str, Callable[[], LeaderArm]] = {"Leader": lambda: told_leader()[0]}
MODELS: dict[str, Callable[[], Kinematics]] = {"ArmModel": lambda: told_leader()[1]}


@pytest.fixture
def arm_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Connects to the emulated arm, as `LerobotArm` does."""
    pytest.importorskip("scservo_sdk")
    from vla_robot.world.real.lerobot_arm import LerobotArm

    request.getfixturevalue("bus")
    arms: list[LerobotArm] = []

    def connect(**options: Any) -> LerobotArm:
        arms.append(LerobotArm(read(RealArmRecipe, request.getfixturevalue("desk")()), **options))
        return arms[-1]

    yield connect
    for arm in arms:
        arm.close()


@pytest.mark.parametrize("kind", MOTORS)
def test_all_motors_tell_where_they_are_and_what_was_sent(kind: str, request: pytest.FixtureRequest) -> None:
    motors = as_named(kind, MOTORS[kind](request.getfixturevalue))
    joints, openings = _read(motors)
    goal = joints.copy()
    sent, opened = motors.send(goal, openings)
    assert np.array_equal(goal, joints)
    assert sent.shape == joints.shape and sent.dtype == np.float64
    assert np.abs(sent - joints).max() < 0.05 and np.abs(opened - openings).max() < 0.05


@pytest.mark.parametrize("kind", LEADERS)
def test_every_leader_arm_tells_where_it_is(kind: str) -> None:
    leader = as_named(kind, LEADERS[kind]())
    _read(leader)
    leader.close()
    leader.close()


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_of_an_arm_tells_where_its_tool_is(kind: str) -> None:
    model, joints = as_named(kind, MODELS[kind]()), _read(told_leader()[0])[0]
    position, quat = model.pose(joints)
    assert position.shape == (3,) and quat.shape == (4,)
    assert np.linalg.norm(quat) == pytest.approx(1.0)
    turned = model.pose(joints + 0.1)
    assert not np.allclose(turned[0], position)
    np.testing.assert_array_equal(model.pose(joints)[0], position)


def _read(device: Motors | LeaderArm) -> tuple[Vector, Vector]:
    """(J,) finite float64 joints [rad], and (G,) openings from 0 to 1."""
    joints, openings = device.read()
    for values in (joints, openings):
        assert values.ndim == 1 and values.dtype == np.float64 and np.isfinite(values).all()
    assert len(openings) and (openings >= 0.0).all() and (openings <= 1.0).all()
    return joints, openings
