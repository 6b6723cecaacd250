"""Tests of the filter in front of the arm: whatever goes in, nothing that comes out breaks a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_robot.core.embodiment import ActionSpace, Dim, Embodiment
from vla_robot.core.errors import ContractError, PolicyError
from vla_robot.core.messages import Clamp, Vector
from vla_robot.recipe.limits import RANGES, DimLimitsRecipe, LimitsRecipe
from vla_robot.recipe.reading.load import parse
from vla_robot.safety.filter import LimitStopError, SafetyFilter
from vla_robot.safety.limits import NO_LIMIT, Limits, limits_of
from vla_robot.testing import TOOL_AXES, toy_embodiment

RATE_HZ = 10.0
TOOL = toy_embodiment(
    name="tool",
    axes=TOOL_AXES,
    state=(
        *(Dim(n, "m", -1.5, 1.5) for n in ("x", "y", "z")),
        *(Dim(n, "rad", -7.0, 7.0) for n in ("rx", "ry", "rz")),
        Dim("gripper_width", "m", 0.0, 0.1),
    ),
    cameras=(),
    rate_hz=RATE_HZ,
)
TWO_JOINTS = (Dim("joint_1", "rad", -2.0, 2.0), Dim("joint_2", "rad", -0.5, 1.5))
JOINTS = toy_embodiment(
    name="joints", axes=TWO_JOINTS, state=TWO_JOINTS, kind="joint_position", cameras=(), rate_hz=50.0
)
TOOL_RECIPE = LimitsRecipe(
    workspace_low=(0.2, -0.3, 0.01),
    workspace_high=(0.7, 0.3, 0.5),
    max_speed_m_s=0.4,
    max_speed_rad_s=2.5,
    max_acceleration_m_s2=1.0,
    max_acceleration_rad_s2=8.0,
    gripper_per_s=4.0,
)
JOINTS_RECIPE = LimitsRecipe(
    max_speed_rad_s=2.0, max_acceleration_rad_s2=10.0, max_joint_step_rad=0.1, gripper_per_s=4.0
)
HOME = np.array([0.45, 0.0, 0.2, 0.0, 0.0, 0.0, 0.05])
ROUNDING = 1e-9


def tool_filter(**changes: object) -> SafetyFilter:
    recipe = LimitsRecipe(**{**vars(TOOL_RECIPE), **changes})  # pyright: ignore[reportArgumentType]
    safety = SafetyFilter(TOOL, limits_of(TOOL, recipe))
    safety.reset(HOME)
    return safety


def move(**dims: float) -> Vector:
    """Return a tool action that is 0 except in the named dimensions."""
    return np.array([dims.get(name, 0.0) for name in TOOL.action.names])


class PerfectArm:
    """An arm that goes where it is sent, and checks every command by the definitions of the limits alone."""

    def __init__(self, embodiment: Embodiment, limits: Limits, state: Vector) -> None:
        self.embodiment, self.limits, self.state = embodiment, limits, state.copy()
        self.is_delta = embodiment.action.kind == "eef_delta"
        self.speed = np.zeros(len(embodiment.action) - 1)
        self.gripper: float | None = None

    def execute(self, action: Vector) -> list[str]:
        """Move, and return the names of the limits that the action broke."""
        rate_hz, limits, arm = self.embodiment.rate_hz, self.limits, slice(0, -1)
        step = action[arm] if self.is_delta else action[arm] - self.state[: len(action) - 1]
        position = self.state[: len(step)] + step
        speed = step * rate_hz
        broken = {
            "not finite": not np.isfinite(action).all(),
            "range": ((action < self.embodiment.action.low) | (action > self.embodiment.action.high)).any(),
            "position": ((position < limits.low[arm] - ROUNDING) | (position > limits.high[arm] + ROUNDING)).any(),
            "step": (np.abs(step) > limits.max_step[arm] + ROUNDING).any(),
            "speed": (np.abs(speed) > limits.max_speed[arm] + ROUNDING * rate_hz).any(),
            "acceleration": (
                np.abs(speed - self.speed) * rate_hz > limits.max_acceleration[arm] + ROUNDING * rate_hz**2
            ).any(),
            "gripper": self.gripper is not None
            and abs(action[-1] - self.gripper) * rate_hz > limits.max_speed[-1] + ROUNDING * rate_hz,
        }
        self.state[: len(step)], self.speed, self.gripper = position, speed, float(action[-1])
        return [name for name, is_broken in broken.items() if is_broken]


def adversarial_actions(space: ActionSpace, count: int, seed: int) -> list[object]:
    """Return runs of actions that each press on one limit, with invalid actions between them."""
    rng, size = np.random.default_rng(seed), len(space)
    span = space.high - space.low
    actions: list[object] = []
    while len(actions) < count:
        length = int(rng.integers(1, 60))
        sign = rng.choice([-1.0, 1.0], size)
        style = int(rng.integers(0, 8))
        if style == 0:  # walks to a boundary
            actions += [sign * span * rng.uniform(0.1, 2)] * length
        elif style == 1:  # alternates, as fast as it can
            actions += [sign * span * (-1) ** k for k in range(length)]
        elif style == 2:
            actions += list(rng.normal(size=(length, size)) * span)
        elif style == 3:
            actions += list(rng.choice([1e308, -1e308, 5e-324, -0.0, 1e-300, 1.0], (length, size)))
        elif style == 4:
            actions += list(np.where(rng.random((length, size)) < 0.2, rng.choice([np.nan, np.inf, -np.inf]), span))
        elif style == 5:
            actions += [np.zeros(size - 1), np.zeros((1, size)), [], None, "stop", [None] * size, ["1"] * size, 10**400]
        elif style == 6:  # other types, of sound values
            actions += [span.astype(np.float32), (span * 0).astype(np.int8), span.tolist(), span.astype(np.float16)]
        else:  # slow, then sudden
            actions += [sign * span * 1e-4] * length + [-sign * span]
    return actions[:count]


@pytest.mark.parametrize(
    ("embodiment", "recipe", "home"),
    [(TOOL, TOOL_RECIPE, HOME), (JOINTS, JOINTS_RECIPE, np.array([0.3, 0.2]))],
    ids=["tool", "joints"],
)
def test_of_100_000_adversarial_actions_none_breaks_a_limit(
    embodiment: Embodiment, recipe: LimitsRecipe, home: Vector
) -> None:
    limits = limits_of(embodiment, recipe)
    safety, arm = SafetyFilter(embodiment, limits), PerfectArm(embodiment, limits, home)
    safety.reset(home)
    sent = refused = 0
    for action in adversarial_actions(embodiment.action, 50_000, seed=len(home)):
        try:
            allowed, _ = safety.check(action, arm.state)  # pyright: ignore[reportArgumentType]
        except PolicyError:
            refused += 1
            continue
        sent += 1
        assert arm.execute(allowed) == [], f"action {sent}: {action}"
    assert sent > 30_000 and refused > 1_000


@pytest.mark.parametrize("seed", range(20))
def test_in_any_measured_state_box_and_range_are_kept_and_filtering_twice_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    safety = tool_filter()
    limits = limits_of(TOOL, TOOL_RECIPE)
    for action in rng.normal(size=(100, 7)) * 0.3:
        state = HOME + rng.normal(size=7) * 0.3  # the arm is pushed between any two steps
        once, clamps = safety.limit(action, state)
        twice, more = safety.limit(once, state)
        assert np.array_equal(once, twice) and more == ()
        assert [c.dim for c in clamps] == [n for n, a, b in zip(TOOL.action.names, action, once, strict=True) if a != b]
        allowed, _ = safety.check(action, state)
        before, after = state[:3], state[:3] + allowed[:3]
        assert (after <= np.maximum(limits.high[:3], before) + ROUNDING).all()
        assert (after >= np.minimum(limits.low[:3], before) - ROUNDING).all()
        assert ((TOOL.action.low <= allowed) & (allowed <= TOOL.action.high)).all()


@pytest.mark.parametrize("seed", range(20))
def test_joints_that_are_pushed_about_are_commanded_near_where_they_are_measured(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = limits_of(JOINTS, JOINTS_RECIPE)
    safety = SafetyFilter(JOINTS, limits)
    for action in rng.normal(size=(100, 3)) * 2:
        state = rng.uniform(limits.low[:2], limits.high[:2])
        once, _ = safety.limit(action, state)
        twice, more = safety.limit(once, state)
        assert np.array_equal(once, twice) and more == ()
        allowed, _ = safety.check(action, state)
        assert (np.abs(allowed[:2] - state) <= limits.max_step[:2] + ROUNDING).all()
        assert ((limits.low <= allowed) & (allowed <= limits.high)).all()


def test_a_step_is_clamped_to_the_speed_with_both_values_and_the_cause() -> None:
    safety = tool_filter(max_acceleration_m_s2=100.0)
    allowed, clamps = safety.check(move(dx=0.05), HOME)
    assert allowed[0] == pytest.approx(0.04)  # 0.4 m/s at 10 Hz
    assert clamps == (Clamp("dx", "speed", 0.05, float(allowed[0])),)


def test_speed_is_built_up_at_the_acceleration() -> None:
    safety = tool_filter()
    steps = [safety.check(move(dz=0.05), HOME)[0][2] for _ in range(5)]
    assert steps == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04])  # 1 m/s2 at 10 Hz adds 1 cm to each step


def test_the_tool_slows_down_in_time_to_stop_at_the_wall() -> None:
    safety, state = tool_filter(), HOME.copy()
    steps: list[float] = []
    for _ in range(14):
        allowed, _ = safety.check(move(dx=0.05), state)
        state[0] += allowed[0]
        steps.append(float(allowed[0]))
    # Of 25 cm, 1 + 2 + 3 + 4 + 4 + 4 leave 7 cm; four steps d, d - 1, d - 2 and d - 3 cm fill them: d = 3.25 cm.
    expected = [0.01, 0.02, 0.03, 0.04, 0.04, 0.04, 0.0325, 0.0225, 0.0125, 0.0025, 0.0, 0.0, 0.0, 0.0]
    assert steps == pytest.approx(expected)
    assert state[0] == pytest.approx(0.7)


def test_a_tool_outside_of_its_workspace_may_come_back_and_go_no_further() -> None:
    outside = HOME + np.array([0.4, 0, 0, 0, 0, 0, 0])
    safety = tool_filter()
    safety.reset(outside)
    further, clamps = safety.check(move(dx=0.005), outside)
    assert further[0] == 0.0 and clamps == (Clamp("dx", "position", 0.005, 0.0),)
    assert safety.check(move(dx=-0.005), outside)[0][0] == -0.005


def test_a_joint_is_not_sent_away_from_where_it_was_measured() -> None:
    safety = SafetyFilter(JOINTS, limits_of(JOINTS, JOINTS_RECIPE))
    stuck = np.array([0.0, 0.0])
    safety.reset(stuck)
    for _ in range(50):
        safety.check(np.array([1.0, 0.0, 0.5]), stuck)
    allowed, clamps = safety.check(np.array([1.0, 0.0, 0.5]), stuck)
    assert allowed[0] == pytest.approx(0.1)
    assert [(c.dim, c.cause) for c in clamps] == [("joint_1", "step")]


def test_the_rate_of_an_unmeasured_gripper_is_limited_from_its_second_command_on() -> None:
    safety = tool_filter()
    assert safety.check(move(gripper=1.0), HOME)[0][-1] == 1.0
    allowed, clamps = safety.check(move(gripper=0.0), HOME)
    assert allowed[-1] == pytest.approx(0.6)  # 4 per second at 10 Hz
    assert [(c.dim, c.cause) for c in clamps] == [("gripper", "speed")]


def test_a_supported_stop_slows_down_keeps_the_gripper_and_then_stands() -> None:
    safety = tool_filter()
    for _ in range(3):
        safety.check(move(dx=0.05, gripper=0.2), HOME)
    stop = [safety.brake(HOME) for _ in range(4)]
    assert [a[0] for a in stop] == pytest.approx([0.02, 0.01, 0.0, 0.0])
    assert [a[-1] for a in stop] == [0.2] * 4
    assert not safety.moving


def test_joints_are_braked_to_a_stand_in_place() -> None:
    safety = SafetyFilter(JOINTS, limits_of(JOINTS, JOINTS_RECIPE))
    state = np.array([0.0, 0.0])
    safety.reset(state)
    for _ in range(4):
        state = safety.check(np.array([1.0, 0.0, 0.5]), state)[0][:2]
    path = [safety.brake(state)[0] for _ in range(6)]
    assert np.diff([state[0], *path]) == pytest.approx([0.012, 0.008, 0.004, 0.0, 0.0, 0.0])  # 10 rad/s2 at 50 Hz
    assert not safety.moving


def test_reject_sends_nothing_and_names_the_limit() -> None:
    safety = tool_filter(on_violation="reject")
    with pytest.raises(PolicyError, match=r"dx = 0.5 breaks its acceleration limit, .* allowed\. Nothing was sent"):
        safety.check(move(dx=0.5), HOME)
    assert safety.check(move(dx=0.005), HOME)[1] == ()


def test_stop_asks_for_a_stop() -> None:
    with pytest.raises(LimitStopError, match="The arm stops until it is armed again"):
        tool_filter(on_violation="stop").check(move(dx=0.5), HOME)


def test_a_refused_action_is_not_remembered() -> None:
    safety = tool_filter(on_violation="reject")
    with pytest.raises(PolicyError):
        safety.check(move(dx=0.05), HOME)
    assert not safety.moving


@pytest.mark.parametrize("state", [np.zeros(6), np.full(7, np.nan)])
def test_without_a_sound_measured_state_nothing_is_sent(state: Vector) -> None:
    with pytest.raises(PolicyError, match="no action can be judged: the state"):
        tool_filter().check(move(), state)


@pytest.mark.parametrize("action", [["1"] * 7, [1j] * 7, [None] * 7, np.full(7, "2026-01-01", dtype="datetime64[D]")])
def test_what_numpy_could_take_for_numbers_is_refused(action: object) -> None:
    with pytest.raises(PolicyError, match="an action is 7 numbers"):
        tool_filter().check(action, HOME)  # pyright: ignore[reportArgumentType]


def test_limits_that_the_recipe_leaves_open_are_the_embodiments() -> None:
    limits = limits_of(JOINTS, LimitsRecipe())
    assert limits.low.tolist() == [-2.0, -0.5, 0.0] and limits.high.tolist() == [2.0, 1.5, 1.0]
    assert limits.max_step.tolist() == [0.5, 0.5, NO_LIMIT]


def test_a_dimension_may_have_limits_of_its_own() -> None:
    recipe = LimitsRecipe(dims={"joint_2": DimLimitsRecipe(high=1.0, max_speed=0.5)})
    limits = limits_of(JOINTS, recipe)
    assert limits.high.tolist() == [2.0, 1.0, 1.0] and limits.max_speed[1] == 0.5


def test_limits_of_a_dimension_that_is_not_there_are_refused() -> None:
    with pytest.raises(ContractError, match="unknown action dimension 'joint_3'; did you mean 'joint_"):
        limits_of(JOINTS, LimitsRecipe(dims={"joint_3": DimLimitsRecipe(low=0.0)}))


def test_limits_that_allow_no_position_are_refused() -> None:
    with pytest.raises(ContractError, match="limits of 'joint_2' allow no position"):
        limits_of(JOINTS, LimitsRecipe(dims={"joint_2": DimLimitsRecipe(low=1.7)}))


def test_a_position_that_is_not_measured_cannot_be_limited() -> None:
    with pytest.raises(ContractError, match=r"positions of 'yaw' are limited .* but the arm does not measure it"):
        limits_of(TOOL, LimitsRecipe(dims={"dyaw": DimLimitsRecipe(high=1.0)}))


@pytest.mark.parametrize("end", [0, 1])
def test_the_smallest_and_largest_limits_of_a_recipe_neither_overflow_nor_let_anything_through(end: int) -> None:
    names = (
        "max_speed_m_s",
        "max_speed_rad_s",
        "max_acceleration_m_s2",
        "max_acceleration_rad_s2",
        "gripper_per_s",
        "max_joint_step_rad",
    )
    recipe = parse(LimitsRecipe, {name: RANGES[name][end] for name in names}, "limits")
    for embodiment in (TOOL, JOINTS, replace(TOOL, rate_hz=100.0)):
        limits = limits_of(embodiment, recipe)
        safety = SafetyFilter(embodiment, limits)
        state = np.array([0.1] * len(embodiment.state))
        safety.reset(state)
        for wanted in (1e308, -1e308, 0.0, 1e-308, 0.1):
            allowed, _ = safety.check(np.full(len(embodiment.action), wanted), state)
            assert np.isfinite(allowed).all()
            assert ((embodiment.action.low <= allowed) & (allowed <= embodiment.action.high)).all()
        assert np.isfinite(safety.brake(state)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_acceleration", 1e-300),
        ("max_acceleration", -1.0),
        ("max_speed", 0.0),
        ("max_step", np.nan),
        ("max_step", np.inf),
        ("low", -np.inf),
        ("high", np.nan),
    ],
)
def test_limits_that_would_overflow_are_refused_before_the_arm_moves(name: str, value: float) -> None:
    limits = limits_of(TOOL, LimitsRecipe())
    with pytest.raises(ContractError, match="'dx'"):
        SafetyFilter(TOOL, replace(limits, **{name: np.full(len(TOOL.action), value)}))
