"""Tests of driving by keys: the arm stops although a terminal does not report the release of a key."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Vector
from vla_robot.teleop.keys import FIRST_SPEED, FULL_SPEED, NUDGE_S, SLOW, KeyMotion

conftest: Any = sys.modules[next(n for n in sys.modules if n.endswith("teleop.conftest"))]
RATE_HZ = 10.0
NUDGE = round(NUDGE_S * RATE_HZ)
FIRST = FIRST_SPEED / FULL_SPEED


@pytest.fixture
def motion() -> KeyMotion:
    return KeyMotion(conftest.embodiment(RATE_HZ))


def actions(motion: KeyMotion, ticks: int) -> list[Vector | None]:
    return [motion.move().action for _ in range(ticks)]


def test_one_press_moves_for_a_few_ticks_and_then_lets_the_arm_hold(motion: KeyMotion) -> None:
    assert motion.press("w")
    seen = actions(motion, NUDGE + 2)
    for action in seen[:NUDGE]:
        assert action is not None
        np.testing.assert_allclose(action, [FIRST * conftest.STEP_M, 0, 0, 0, 0, 0, 1])
    assert seen[NUDGE:] == [None, None]


def test_repeats_restart_the_time_and_do_not_add_up(motion: KeyMotion) -> None:
    for _ in range(40):  # a reset took long, and the key repeated all the while
        motion.press("w")
    assert [a is None for a in actions(motion, NUDGE + 1)] == [False] * NUDGE + [True]
    motion.press("w")
    moved = motion.move().action
    motion.press("w")
    assert moved is not None and all(a is not None for a in actions(motion, NUDGE))


def test_the_nudge_is_as_long_at_every_rate() -> None:
    fast = KeyMotion(conftest.embodiment(50.0))
    fast.press("e")
    assert sum(a is not None for a in actions(fast, 50)) == round(NUDGE_S * 50)


def test_two_keys_move_two_axes_and_the_opposite_key_turns_round(motion: KeyMotion) -> None:
    motion.press("w")
    motion.press("left")
    motion.press("s")
    action = motion.move().action
    assert action is not None
    np.testing.assert_allclose(action[[0, 5]], [-FIRST * conftest.STEP_M, FIRST * conftest.STEP_RAD])


def test_digits_set_the_speed_and_shift_is_slow(motion: KeyMotion) -> None:
    motion.press("9")
    motion.press("w")
    full = motion.move().action
    motion.press("W")
    slow = motion.move().action
    assert full is not None and slow is not None
    np.testing.assert_allclose([full[0], slow[0]], [conftest.STEP_M, SLOW * conftest.STEP_M])


def test_rest_stops_all_axes_at_once(motion: KeyMotion) -> None:
    for key in ("w", "a", "e", "up"):
        motion.press(key)
    motion.rest()
    assert motion.move().action is None


def test_the_gripper_toggles_and_gets_the_time_to_close(motion: KeyMotion) -> None:
    motion.press("space")
    seen = actions(motion, round(RATE_HZ) + 1)
    assert all(a is not None and a[-1] == 0 and not a[:-1].any() for a in seen[:-1]) and seen[-1] is None
    assert "closed" in motion.standing
    motion.see(conftest.observation(step=0))
    assert "open" in motion.standing


def test_another_drivers_grip_is_kept(motion: KeyMotion) -> None:
    motion.grip(np.zeros(7))
    motion.press("w")
    action = motion.move().action
    assert action is not None and action[-1] == 0


def test_other_keys_mean_nothing(motion: KeyMotion) -> None:
    assert not motion.press("z") and not motion.press("tab")
    assert motion.move().action is None


def test_an_arm_that_takes_joint_angles_is_refused() -> None:
    with pytest.raises(ContractError, match="moves the tool"):
        KeyMotion(conftest.embodiment(kind="joint_position"))
