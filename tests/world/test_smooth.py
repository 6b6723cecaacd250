"""Tests of smooth commands: bounds hold for any targets, nothing overshoots, and every target is reached exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_robot.core.errors import ContractError
from vla_robot.core.messages import Vector
from vla_robot.world.real.smooth import MotionBounds, Smoother

TOOL = MotionBounds(speed=0.5, acceleration=13.0, jerk=6500.0)


def run(smoother: Smoother, targets: np.ndarray, ticks: int, extra: int = 400) -> np.ndarray:
    """Return the commands, (N, D), for each target during one policy step, then during a pause."""
    commands: list[Vector] = []
    for target in targets:
        smoother.target(target, ticks)
        commands += [smoother.tick() for _ in range(ticks)]
    return np.array(commands + [smoother.tick() for _ in range(extra)])


def greatest(commands: np.ndarray, start: np.ndarray, rate_hz: float) -> tuple[float, float, float]:
    """Return the greatest speed, acceleration and jerk of any dimension, by differences, from rest."""
    path = np.concatenate([np.tile(start, (3, 1)), commands])
    found = [np.abs(np.diff(path, n, axis=0)).max() * rate_hz**n for n in (1, 2, 3)]
    return found[0], found[1], found[2]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate_hz=st.sampled_from([100.0, 250.0, 500.0]),
    speed=st.floats(0.1, 1.7),
    acceleration=st.floats(2.0, 13.0),
    jerk=st.floats(50.0, 6500.0),
    reach=st.floats(0.001, 1.0),
)
def test_speed_acceleration_and_jerk_are_kept_for_any_targets(
    seed: int, rate_hz: float, speed: float, acceleration: float, jerk: float, reach: float
) -> None:
    rng = np.random.default_rng(seed)
    start = rng.normal(size=3)
    smoother = Smoother(start, rate_hz, MotionBounds(speed, acceleration, jerk))
    commands = run(smoother, start + rng.normal(size=(20, 3)) * reach, ticks=round(rate_hz / 10))
    rounding = 1e-12
    found = greatest(commands, start, rate_hz)
    assert found[0] <= speed + rounding * rate_hz
    assert found[1] <= acceleration + rounding * rate_hz**2
    assert found[2] <= jerk + rounding * rate_hz**3


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_nothing_overshoots_and_the_last_target_is_reached_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, targets = rng.normal(size=3), rng.normal(size=(5, 3)) * 0.2
    commands = run(Smoother(start, 100.0, TOOL), targets, ticks=10, extra=2000)
    low, high = np.minimum(targets.min(axis=0), start), np.maximum(targets.max(axis=0), start)
    assert (commands >= low - 1e-12).all() and (commands <= high + 1e-12).all()
    assert np.array_equal(commands[-1], targets[-1])


def test_a_step_gives_the_commands_that_were_computed_by_hand() -> None:
    # v = 1, a = 1, j = 2 at 1 Hz: n1 = 2 and n2 = 1, a mean of two. 3 m in one tick takes three at 1 m/s.
    smoother = Smoother([0.0], 1.0, MotionBounds(1.0, 1.0, 2.0))
    smoother.target([3.0], ticks=1)
    assert [float(smoother.tick()[0]) for _ in range(5)] == [0.5, 1.5, 2.5, 3.0, 3.0]
    assert smoother.delay_s == 0.5


def test_dimensions_stay_on_one_straight_line() -> None:
    commands = run(Smoother([0.0, 0.0], 200.0, TOOL), np.array([[0.3, 0.1]]), ticks=20)
    np.testing.assert_allclose(commands[:, 0], 3 * commands[:, 1], atol=1e-12)


def test_a_path_within_the_bounds_is_followed_with_the_stated_delay() -> None:
    smoother = Smoother([0.0], 500.0, TOOL)
    commands = run(smoother, np.arange(1, 21)[:, None] * 0.01, ticks=50, extra=0)[:, 0]  # 0.1 m/s
    time_s = (np.arange(len(commands)) + 1) / 500.0
    np.testing.assert_allclose(commands[200:], 0.1 * (time_s[200:] - smoother.delay_s), atol=1e-9)
    assert smoother.delay_s == pytest.approx(0.04, abs=0.002)  # as the module's docstring says


def test_a_stop_comes_to_rest_within_the_bounds() -> None:
    smoother = Smoother([0.0], 500.0, TOOL)
    smoother.target([1.0], ticks=50)
    moving = [smoother.tick() for _ in range(200)]
    smoother.stop()
    commands = np.array(moving + [smoother.tick() for _ in range(100)])
    assert greatest(commands, np.zeros(1), 500.0)[1] <= TOOL.acceleration + 1e-6
    assert np.ptp(commands[-50:]) == 0.0 and commands[-1, 0] - moving[-1][0] < 2 * smoother.delay_s * TOOL.speed


@pytest.mark.parametrize("bounds", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, np.inf), (np.nan, 1.0, 1.0)])
def test_bounds_that_are_not_positive_or_not_finite_are_refused(bounds: tuple[float, float, float]) -> None:
    with pytest.raises(ContractError, match="above 0 and finite"):
        MotionBounds(*bounds)


@pytest.mark.parametrize("target", [[np.nan, 0.0], [0.0], [[0.0, 0.0]], [np.inf, 0.0]])
def test_a_malformed_target_is_refused(target: object) -> None:
    with pytest.raises(ContractError, match="a target must be"):
        Smoother([0.0, 0.0], 100.0, TOOL).target(target, ticks=10)  # pyright: ignore[reportArgumentType]
