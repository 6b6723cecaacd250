"""Rotations against SciPy's, an implementation that is not ours, and against the functions of MuJoCo that simulate."""

from __future__ import annotations

import math
from functools import partial

import mujoco
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_robot.core import geometry
from vla_robot.core.messages import Vector

number = st.floats(-4.0, 4.0)
vectors = st.tuples(number, number, number).map(np.array)
quats = st.tuples(number, number, number, number).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.01)
quats = quats.map(lambda q: q / np.linalg.norm(q))

HALF_TURNS = [
    np.array(q, dtype=float) / np.linalg.norm(q) for q in ([0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1], [0, 1, 1, 1])
]


def scipy_of(quat: Vector) -> Rotation:
    return Rotation.from_quat(quat, scalar_first=True)


def assert_same_rotation(quat: Vector, wanted: Rotation) -> None:
    np.testing.assert_allclose(scipy_of(quat).as_matrix(), wanted.as_matrix(), atol=1e-12)
    assert np.linalg.norm(quat) == pytest.approx(1, abs=1e-14)


@given(vectors)
def test_a_rotation_vector_becomes_a_quaternion_and_a_matrix(rotvec: Vector) -> None:
    assert_same_rotation(geometry.quat_from_rotvec(rotvec), Rotation.from_rotvec(rotvec))
    np.testing.assert_allclose(geometry.matrix_from_rotvec(rotvec), Rotation.from_rotvec(rotvec).as_matrix(), atol=1e-9)


@given(quats)
def test_a_quaternion_becomes_the_shortest_rotation_vector(quat: Vector) -> None:
    rotvec = geometry.rotvec_from_quat(quat)
    assert np.linalg.norm(rotvec) <= math.pi + 1e-12
    np.testing.assert_allclose(Rotation.from_rotvec(rotvec).as_matrix(), scipy_of(quat).as_matrix(), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-300, 1e-17, 1e-12, 1e-8, 1e-3, 3.0, math.pi - 1e-9])
def test_angles_near_0_and_half_a_turn_come_back_to_the_last_digits(angle: float) -> None:
    rotvec = angle * np.array([0.6, 0.0, -0.8])
    back = geometry.rotvec_from_quat(geometry.quat_from_rotvec(rotvec))
    np.testing.assert_allclose(back, rotvec, rtol=1e-6 if angle > 1e-14 else 1, atol=1e-14)


@given(quats)
def test_a_quaternion_becomes_a_matrix_and_comes_back(quat: Vector) -> None:
    matrix = geometry.matrix_from_quat(quat)
    np.testing.assert_allclose(matrix, scipy_of(quat).as_matrix(), atol=1e-12)
    assert_same_rotation(geometry.quat_from_matrix(matrix), scipy_of(quat))
    assert_same_rotation(geometry.quat_from_matrix(matrix.ravel()), scipy_of(quat))
    np.testing.assert_allclose(
        Rotation.from_rotvec(geometry.rotvec_from_matrix(matrix)).as_matrix(), matrix, atol=1e-12
    )


@pytest.mark.parametrize("quat", HALF_TURNS)
def test_half_a_turn_keeps_its_axis(quat: Vector) -> None:
    rotvec = geometry.rotvec_from_matrix(geometry.matrix_from_quat(quat))
    np.testing.assert_allclose(np.abs(rotvec), math.pi * np.abs(quat[1:]), atol=1e-7)


@given(quats)
def test_the_rotation_vector_of_a_state_lies_in_one_half_space(quat: Vector) -> None:
    rotvec = geometry.half_space_rotvec(quat)
    np.testing.assert_allclose(rotvec, geometry.half_space_rotvec(-quat), atol=1e-8)
    np.testing.assert_allclose(Rotation.from_rotvec(rotvec).as_matrix(), scipy_of(quat).as_matrix(), atol=1e-8)
    assert rotvec[np.argmax(np.abs(rotvec))] >= 0


def test_the_state_of_a_tool_that_points_down_does_not_flip() -> None:
    short, beyond = (
        geometry.half_space_rotvec(geometry.quat_from_rotvec(np.array([math.pi + e, 0, 0]))) for e in (-1e-3, 1e-3)
    )
    np.testing.assert_allclose(beyond - short, [2e-3, 0, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(roll=st.floats(-3.1, 3.1), pitch=st.floats(-1.5, 1.5), yaw=st.floats(-3.1, 3.1))
def test_roll_pitch_and_yaw_turn_about_fixed_axes(dtype: type, roll: float, pitch: float, yaw: float) -> None:
    quat = Rotation.from_euler("xyz", [roll, pitch, yaw]).as_quat(scalar_first=True)
    angles = geometry.rpy_from_quats(quat[None].astype(dtype))
    assert angles.dtype == dtype
    np.testing.assert_allclose(angles, [[roll, pitch, yaw]], atol=1e-4 if dtype is np.float32 else 1e-9)


@pytest.mark.parametrize("pitch", [math.pi / 2, -math.pi / 2])
def test_a_pitch_of_a_quarter_turn_has_no_yaw(pitch: float) -> None:
    wanted = Rotation.from_euler("xyz", [0.3, pitch, 0.5])
    (angles,) = geometry.rpy_from_quats(wanted.as_quat(scalar_first=True)[None])
    assert angles[2] == 0
    np.testing.assert_allclose(Rotation.from_euler("xyz", angles).as_matrix(), wanted.as_matrix(), atol=1e-6)


@given(quats, quats)
def test_a_product_turns_by_the_right_one_first(a: Vector, b: Vector) -> None:
    assert_same_rotation(geometry.multiply(a, b), scipy_of(a) * scipy_of(b))
    assert_same_rotation(geometry.multiply(a, geometry.conjugate(a)), Rotation.identity())


@given(quats, vectors)
def test_an_orientation_turns_in_the_frame_that_it_is_given_in(quat: Vector, turn: Vector) -> None:
    there = geometry.rotate(quat, turn)
    assert_same_rotation(there, Rotation.from_rotvec(turn) * scipy_of(quat))
    assert_same_rotation(geometry.rotate(there, -turn), scipy_of(quat))


@given(quats, quats)
def test_the_turn_between_two_orientations_leads_from_one_to_the_other(start: Vector, end: Vector) -> None:
    turn = geometry.rotvec_between(start, end)
    assert_same_rotation(geometry.rotate(start, turn), scipy_of(end))
    angle = (scipy_of(end) * scipy_of(start).inv()).magnitude()
    assert np.linalg.norm(turn) == pytest.approx(angle, abs=1e-9)


@given(quats, quats, st.floats(0.01, 3.0))
def test_a_limited_rotation_goes_the_same_way_and_not_too_far(start: Vector, end: Vector, most: float) -> None:
    reached, way = geometry.limit_rotation(start, end, most), geometry.rotvec_between(start, end)
    angle = float(np.linalg.norm(way))
    assume(angle < math.pi - 1e-6)  # half a turn has two shortest ways
    expected = Rotation.from_rotvec(way * min(1.0, most / max(angle, 1e-12))) * scipy_of(start)
    assert_same_rotation(reached, expected)
    assert angle > most or reached is end


@given(vectors, st.integers(0, 2**32 - 1))
def test_angles_too_small_for_a_cosine_are_told_apart(rotvec: Vector, seed: int) -> None:
    quat = geometry.quat_from_rotvec(rotvec)
    turn = 1e-11 * np.random.default_rng(seed).normal(size=3)
    np.testing.assert_allclose(geometry.rotvec_between(quat, geometry.rotate(quat, turn)), turn, rtol=0, atol=4e-15)


@settings(max_examples=200)
@given(quats, quats, vectors)
def test_a_simulated_arm_and_one_without_mujoco_are_told_the_same(a: Vector, b: Vector, turn: Vector) -> None:
    quat, matrix, rotvec = np.empty(4), np.empty(9), np.empty(3)
    assert_close = partial(np.testing.assert_allclose, rtol=1e-15, atol=1e-15)
    mujoco.mju_mulQuat(quat, a, b)
    assert_close(geometry.multiply(a, b), quat)
    mujoco.mju_quat2Mat(matrix, a)
    assert_close(geometry.matrix_from_quat(a).ravel(), matrix)
    mujoco.mju_mat2Quat(quat, matrix)
    assert_close(geometry.quat_from_matrix(matrix), quat)
    mujoco.mju_quat2Vel(rotvec, a, 1.0)
    assume(np.linalg.norm(a[1:]) > 1e-12)  # with less, MuJoCo says that the axis is x
    assert_close(geometry.rotvec_from_quat(a), rotvec)
    angle = float(np.linalg.norm(turn))
    assume(angle > 0)
    mujoco.mju_axisAngle2Quat(quat, turn / angle, angle)
    assert_close(geometry.quat_from_rotvec(turn), quat)


def test_no_turn_cannot_be_changed_by_a_user_of_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        geometry.IDENTITY_QUAT[0] = 2
    geometry.quat_from_rotvec(np.zeros(3))[0] = 2
    assert geometry.IDENTITY_QUAT.tolist() == [1, 0, 0, 0]
