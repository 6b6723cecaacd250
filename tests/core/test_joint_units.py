"""Tests of the conversion of joint positions between units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_robot.core.errors import ContractError
from vla_robot.core.joint_units import JOINT_UNITS, JointScale, JointScales, JointUnit, opening_of, scale_of

LOW, HIGH = -0.5, 1.5
"""A range that is not symmetric [rad]."""


@pytest.mark.parametrize(
    ("unit", "number", "angle"),
    [
        ("degrees", 90.0, math.pi / 2),
        ("radians", 1.25, 1.25),
        ("range", -100.0, LOW),
        ("range", 100.0, HIGH),
        ("range", 0.0, 0.5),
        ("share", 0.0, LOW),
        ("share", 100.0, HIGH),
        ("share", 25.0, 0.0),
    ],
)
def test_a_number_is_an_angle_in_each_unit_and_back(unit: JointUnit, number: float, angle: float) -> None:
    scales = JointScales.of([scale_of(unit, LOW, HIGH)])
    assert scales.to_rad([number]) == pytest.approx([angle], abs=1e-12)
    assert scales.from_rad([angle]) == pytest.approx([number], abs=1e-12)


def test_joints_of_different_units_are_converted_at_once() -> None:
    scales = JointScales.of([scale_of(unit, LOW, HIGH) for unit in JOINT_UNITS])
    numbers = np.array([10.0, -0.3, 40.0, 70.0])
    np.testing.assert_allclose(scales.from_rad(scales.to_rad(numbers)), numbers, atol=1e-12)


@pytest.mark.parametrize(("inverted", "angle_deg"), [(False, -50.0), (True, 50.0)])
def test_a_joint_may_have_another_zero_and_turn_the_other_way(inverted: bool, angle_deg: float) -> None:
    scale = scale_of("degrees").from_zero(math.radians(90), inverted)
    assert JointScales.of([scale]).to_rad([40.0]) == pytest.approx(np.radians([angle_deg]))


@pytest.mark.parametrize("unit", ["range", "share"])
@pytest.mark.parametrize("ends", [(None, None), (1.0, 1.0), (1.0, -1.0)])
def test_a_unit_that_counts_over_a_range_needs_it(unit: JointUnit, ends: tuple[float | None, float | None]) -> None:
    with pytest.raises(ContractError, match=f"'{unit}' counts over a joint's range"):
        scale_of(unit, *ends)


def test_an_opening_is_a_share_of_the_way_from_closed_to_open() -> None:
    assert opening_of(25.0, 0.0, 100.0) == 0.25
    assert opening_of(-65.0, 0.0, -65.0) == 1.0
    assert JointScale(2.0, 1.0).from_zero(4.0) == JointScale(2.0, 3.0)
