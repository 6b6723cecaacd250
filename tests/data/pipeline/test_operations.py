"""Tests of the operations on parts of a step, with numbers computed by hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.episode import codes_to_text
from vla_robot.core.errors import DataError
from vla_robot.data.pipeline import operations
from vla_robot.data.pipeline.operations import Rows
from vla_robot.recipe.oxe import OPERATIONS


def column(*values: float) -> Rows:
    return np.array(values, dtype=np.float32)[:, None]


def flat(rows: Rows) -> list[float]:
    return [round(float(value), 6) for value in rows[:, 0]]


def test_every_operation_of_a_recipe_exists() -> None:
    assert set(operations.ON_ROWS) | {"inflate"} == set(OPERATIONS)


def test_invert_turns_closed_into_open() -> None:
    assert flat(operations.invert(column(1, 0, 0.25))) == [0, 1, 0.75]


def test_clip_keeps_zero_to_one() -> None:
    assert flat(operations.clip(column(-1, -0.1, 0.5, 1, 3))) == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("gripper", "expected"),
    [
        ([0.99, 0.6, 0.3, 0.0], [1, 0, 0, 0]),  # it counts as closed from the begin of the motion
        ([0.0, 0.5, 0.96, 0.5, 1.0], [0, 1, 1, 1, 1]),
        ([1.0, 0.5, 0.4], [1, 0.4, 0.4]),  # no state follows: the last value is kept
        ([0.5, 0.7], [0.7, 0.7]),
        ([0.95, 0.05, 0.0], [0, 0, 0]),  # the thresholds themselves count as in between
    ],
)
def test_binarise_gives_what_is_between_the_state_that_is_reached(
    gripper: Sequence[float], expected: Sequence[float]
) -> None:
    assert flat(operations.binarise(column(*gripper))) == expected


@pytest.mark.parametrize(
    ("gripper", "expected"),
    [
        ([0, 0, 1, 0, -1], [1, 1, 0, 0, 1]),  # the first command closes, so it was open
        ([0, -1, 0, 1], [0, 1, 1, 0]),  # the first command opens, so it was closed
        ([0, 0, 0], [1, 1, 1]),  # no command: open
        ([0.1, -0.1, 0.11], [1, 1, 0]),  # 0.1 does not count as a command
    ],
)
def test_relative_commands_become_states(gripper: Sequence[float], expected: Sequence[float]) -> None:
    assert flat(operations.relative_to_absolute(column(*gripper))) == expected


def test_change_to_next_is_what_was_reached() -> None:
    changes = operations.change_to_next(column(0.5, 0.75, 0.25))
    assert flat(changes[:2]) == [0.25, -0.5]
    assert np.isnan(changes[2])


@pytest.mark.parametrize(
    ("quaternion", "degrees"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([1, 0, 0, 0], [180, 0, 0]),
        ([0, 0, 0.5**0.5, 0.5**0.5], [0, 0, 90]),
        ([0, 0.5, 0, 0.75**0.5], [0, 60, 0]),
        ([0, 0.5**0.5, 0, 0.5**0.5], [0, 90, 0]),  # gimbal lock: the angle about z is set to 0
    ],
)
def test_quaternions_become_angles(quaternion: Sequence[float], degrees: Sequence[float]) -> None:
    angles = operations.quaternion_to_euler(np.array([quaternion], dtype=np.float32))
    assert np.degrees(angles[0]).tolist() == pytest.approx(degrees, abs=1e-3)


@given(angles=st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_angles_of_a_rotation_about_x_then_y_then_z_come_back(angles: tuple[float, float, float]) -> None:
    def about(axis: int, angle: float) -> np.ndarray:
        q = np.zeros(4)
        q[axis], q[3] = np.sin(angle / 2), np.cos(angle / 2)
        return q

    def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
        return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])

    x, y, z = angles
    q = times(about(2, z), times(about(1, y), about(0, x)))
    made = operations.quaternion_to_euler(q[None].astype(np.float32))
    assert made[0].tolist() == pytest.approx(angles, abs=1e-4)


def test_compressed_numbers_come_back() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert operations.inflate([zlib.compress(row.tobytes()) for row in rows], 3).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"nonsense", "step 0 is not zlib-compressed"),
        (zlib.compress(bytes(8)), "step 0 holds 8 of 12 bytes"),
        (zlib.compress(bytes(10_000_000)), "step 0 holds more than 12 of 12 bytes"),
    ],
)
def test_compressed_numbers_that_do_not_fit_are_refused_without_being_unpacked(value: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        operations.inflate([value], 3)


def test_letters_as_numbers_end_at_the_first_zero() -> None:
    assert codes_to_text(np.array([ord("ä"), ord("b"), 0, 7, -1])) == "äb"


@pytest.mark.parametrize("code", [-1, 0x110000, 2**40, 0xD800])
def test_a_number_that_is_no_letter_is_named(code: int) -> None:
    with pytest.raises(DataError, match=f"{code} stands for no letter"):
        codes_to_text(np.array([ord("a"), code]))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_gripper_operations_keep_the_number_of_steps_and_their_range(values: list[float]) -> None:
    absolute = operations.relative_to_absolute(column(*values))
    assert absolute.shape == (len(values), 1)
    assert set(flat(absolute)) <= {0.0, 1.0}
    settled = operations.binarise(column(*values))[: -1 or None]
    assert settled.shape[1] == 1
