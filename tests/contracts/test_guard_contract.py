"""What every guard and every filter of actions promises. A new one joins by one line in GUARDS or FILTERS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vla_robot.core.messages import Clamp, Vector
from vla_robot.core.ports import ActionFilter, Guard
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import RangeGuard, limits_of
from vla_robot.testing import TOOL_AXES, NoLimits, toy_embodiment

from .kinds import as_named

ARM = toy_embodiment(axes=TOOL_AXES)
HERE = np.zeros(1)
REST = np.array([0.0] * 6 + [1.0])
ACTIONS = np.random.default_rng(0).uniform(-0.2, 0.2, (20, 7))
"""Some inside of the limits, some beyond."""

GUARDS: dict[str, Callable[[], Guard]] = {
    "RangeGuard": lambda: RangeGuard(ARM.action),
    "NoLimits": NoLimits,
}
FILTERS: dict[str, Callable[[], ActionFilter]] = {
    "SafetyFilter": lambda: SafetyFilter(ARM, limits_of(ARM, LimitsRecipe(max_acceleration_m_s2=0.5))),
}


@pytest.mark.parametrize("kind", GUARDS)
def test_every_guard_tells_what_it_changed(kind: str) -> None:
    guard = as_named(kind, GUARDS[kind]())
    _require_told(guard.check)
    allowed, clamps = guard.check(REST)
    assert np.array_equal(allowed, REST) and clamps == ()


@pytest.mark.parametrize("kind", FILTERS)
def test_every_filter_tells_what_it_changed_and_brakes_to_a_rest(kind: str) -> None:
    actions = as_named(kind, FILTERS[kind]())
    actions.reset(HERE)
    assert not actions.moving
    _require_told(lambda action: actions.check(action, HERE))
    actions.check(np.array([0.01] + [0.0] * 5 + [0.4]), HERE)
    assert actions.moving
    ramp = [actions.brake(HERE) for _ in range(50)]
    assert not actions.moving
    assert np.array_equal(ramp[-1], [0.0] * 6 + [0.4])  # the grip is kept
    actions.reset(HERE)
    assert np.array_equal(actions.brake(HERE)[:6], np.zeros(6))


def _require_told(check: Callable[[Vector], tuple[Vector, tuple[Clamp, ...]]]) -> None:
    """(D,) finite float64; each number that differs from the one asked for has a clamp; the question stays as it is."""
    for asked in ACTIONS:
        given = asked.copy()
        allowed, clamps = check(given)
        assert allowed.shape == asked.shape and allowed.dtype == np.float64 and np.isfinite(allowed).all()
        assert np.array_equal(given, asked)
        changed = {name for name, a, b in zip(ARM.action.names, asked, allowed, strict=True) if a != b}
        assert {clamp.dim for clamp in clamps} == changed
