"""lerobot's own drivers in joint positions: the emulated SO-101, a pair of them, and a robot of another package."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.cli.build import build_arm, build_limits
from vla_robot.cli.doctor.robot import examine_robot
from vla_robot.core.embodiment import misfits
from vla_robot.core.errors import ContractError, RecipeError, WorldError
from vla_robot.core.messages import StepResult, Vector
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe, at_speed

from . import conftest

pytest.importorskip("scservo_sdk")

from vla_robot.world.real.joint_arm import JointArm
from vla_robot.world.real.kinematics.clearance import clearance_of
from vla_robot.world.real.lerobot_arm import arm_embodiment, scene_model
from vla_robot.world.real.set_points import StreamedArm

from .test_end_to_end import JOINTS_DEG
from .test_lerobot_arm import FAULTS

Desk = Callable[..., Path]
JOINTS = 'actions = "joints"'
TO_THE_RIGHT = np.array([0, -0.006, 0, 0, 0, 0, 1.0])
HOME = np.radians([0, -30, 20, 90, 0])
POSES_DEG = JOINTS_DEG


def recipe_of(desk: Desk, top: str = "", robot: str = "") -> RealArmRecipe:
    return read(RealArmRecipe, desk(top, f"{JOINTS}\n{robot}"))


@pytest.fixture
def arm(bus: Any, desk: Desk) -> Iterator[JointArm]:
    with contextlib.closing(JointArm(recipe_of(desk))) as arm:
        yield arm


class Ticks:
    """For each tick of control a thirtieth of a second passes at the servos, however fast this computer is."""

    def __init__(self, *buses: Any) -> None:
        self._now_s = buses[0].now_s()
        for bus in buses:
            bus.now_s = lambda: self._now_s

    def __call__(self, command: Callable[[], StepResult]) -> StepResult:
        self._now_s += 1 / 30
        return command()


def emulated(bus: Any) -> Vector:
    """(6,) where the servos really are: five joints [degrees], and the gripper's opening."""
    *joints, gripper = conftest.angles_deg(bus).values()
    low, high = conftest.USUAL_RANGE
    return np.array([*joints, gripper * conftest.TICKS_PER_DEG / (high - low) + 0.5])


def test_state_and_action_are_lerobots_names_in_lerobots_order(bus: Any, arm: JointArm) -> None:
    space = arm.embodiment.action
    assert (space.kind, space.frame, space.names) == ("joint_position", "joint", conftest.MOTORS)
    assert [dim.unit for dim in space.dims] == ["rad"] * 5 + ["1"]
    assert arm.embodiment.state == space.dims
    observation = arm.reset(0)
    arm.embodiment.check(observation)
    measured = [(bus.servos[i].get(56) - 2047.5) * 2 * np.pi / 4095 for i in range(1, 6)]
    assert observation.state[:5] == pytest.approx(measured, abs=1e-9)
    low, high = conftest.USUAL_RANGE
    assert observation.state[5] == pytest.approx((bus.servos[6].get(56) - low) / (high - low), abs=1e-9)


def test_ten_poses_are_commanded_and_reached(bus: Any, arm: JointArm, capsys: pytest.CaptureFixture[str]) -> None:
    """Servos hang below their goals: a goal is corrected by what is measured, as a policy would do it."""
    tick, state = Ticks(bus), arm.reset(0).state
    plain: list[float] = []
    corrected: list[float] = []
    for pose in POSES_DEG:
        wanted = np.append(np.radians(pose), 0.6)
        goal = wanted.copy()
        for step in range(60):
            near = np.clip(goal, state - 0.2, state + 0.2)
            result = tick(lambda near=near: arm.command(near))
            state = result.observation.state
            assert result.executed == pytest.approx(near, abs=1e-6) and not result.clamps
            if step == 40:
                plain.append(float(np.abs(emulated(bus)[:5] - pose).max()))
            goal = goal + 0.1 * (wanted - state) * (step > 40) * ~arm.embodiment.action.is_grip
        corrected.append(float(np.abs(emulated(bus)[:5] - pose).max()))
        assert emulated(bus)[5] == pytest.approx(0.6, abs=0.01)
    with capsys.disabled():
        print(
            f"\nten poses: worst {max(corrected):.2f} degrees, {max(plain):.2f} without a correction of what they sag"
        )
    assert max(corrected) < 0.5
    assert max(plain) < 0.7


def test_one_key_offers_tool_steps_or_joint_positions_and_each_refuses_the_others_policy(
    bus: Any, desk: Desk, arm: JointArm
) -> None:
    steps = read(RealArmRecipe, desk())
    tool = arm_embodiment(steps, scene_model(steps))
    told = "; ".join(misfits(tool, arm.embodiment))
    assert "action kind: the policy gives 'eef_delta', the world takes 'joint_position'" in told
    assert "action dimensions: the policy gives dx [m]" in told
    back = "; ".join(misfits(arm.embodiment, tool))
    assert "the policy gives 'joint_position', the world takes 'eef_delta'" in back


def test_degrees_and_normalised_units_are_the_same_joints(bus: Any, desk: Desk) -> None:
    passing, now_s = bus.now_s, bus.now_s()
    bus.now_s = lambda: now_s  # nothing sags meanwhile
    with contextlib.closing(JointArm(recipe_of(desk))) as arm:
        by_degrees = arm.look().state
    path = desk("", JOINTS)
    path.write_text(path.read_text().replace("[robot.fields]", "[robot.fields]\nuse_degrees = false"))
    with contextlib.closing(JointArm(read(RealArmRecipe, path))) as arm:
        assert arm.look().state == pytest.approx(by_degrees, abs=1e-9)
        bus.now_s = passing
        goal = by_degrees + [0.03, -0.03, 0.02, 0.04, -0.05, 0.1]
        arm.reset(0)
        arm.command(goal)
        arm.hold()
        sent = {number: servo.get(42) & 0x7FFF for number, servo in bus.servos.items()}
    ticks = [
        (sent[i] - sum(conftest.RANGES.get(m, conftest.USUAL_RANGE)) / 2) for i, m in enumerate(conftest.MOTORS, 1)
    ]
    assert np.array(ticks[:5]) / conftest.TICKS_PER_DEG == pytest.approx(np.degrees(goal[:5]), abs=0.1)


def test_a_joint_is_cut_to_the_largest_step_and_the_tool_to_its_workspace(bus: Any, desk: Desk) -> None:
    top = "[limits]\nmax_joint_step_rad = 0.05\nworkspace_low = [0.0, -0.02, 0.0]\nworkspace_high = [0.5, 0.02, 0.5]"
    with contextlib.closing(JointArm(recipe_of(desk, top))) as arm:
        model = scene_model(recipe_of(desk, top))
        tick, goal = Ticks(bus), np.append(HOME, 1.0)
        arm.reset(0)
        goal[0] = 0.5
        causes: set[str] = set()
        for _ in range(40):
            result = tick(lambda: arm.command(goal))
            causes |= {clamp.cause for clamp in result.clamps if clamp.dim == "shoulder_pan"}
            assert result.executed is not None
            assert abs(model.pose(result.executed[:5])[0][1]) <= 0.02 + 1e-6
        assert causes - {"driver"} == {"step", "position"}  # lerobot measures once more
        goal[0] = -0.01
        result = [tick(lambda: arm.command(goal)) for _ in range(10)][-1]
        assert result.executed == pytest.approx(goal, abs=1e-6)  # and back inside


CLOSE = "[limits]\nclearance_m = 0.01\n{more}\n[obstacles.post]\nlow = [0.15, -0.15, 0.0]\nhigh = [0.3, -0.1, 0.5]"


@pytest.mark.parametrize("actions", ["tool", "joints"])
def test_a_post_ends_the_way_of_both_kinds_of_actions(bus: Any, desk: Desk, actions: str) -> None:
    recipe = read(RealArmRecipe, desk(CLOSE.format(more=""), f'actions = "{actions}"'))
    with contextlib.closing(build_arm(recipe)) as arm:
        tick, start = Ticks(bus), arm.reset(0).state
        causes: set[str] = set()
        result = tick(arm.hold)
        for step in range(60):
            turned = np.append(HOME + [0.02 * step, 0, 0, 0, 0], 1.0)
            result = tick(lambda turned=turned: arm.command(turned if actions == "joints" else TO_THE_RIGHT))
            causes |= {clamp.cause for clamp in result.clamps if "collision" in clamp.cause}
        assert causes and all(cause.endswith(" with post") for cause in causes)
        limit: Any = clearance_of(recipe, conftest.MOTORS[:5])
        joints = result.observation.state[:5] if actions == "joints" else result.observation.state[7:]
        assert limit.depths_m(joints).max() < 0.002  # servos sag a little
        assert np.abs(result.observation.state - start).max() > 0.02


@pytest.mark.parametrize("rule", ["reject", "stop"])
def test_a_recipe_may_refuse_a_command_that_leads_into_a_post(bus: Any, desk: Desk, rule: str) -> None:
    more = f'on_violation = "{rule}"'
    with contextlib.closing(JointArm(recipe_of(desk, CLOSE.format(more=more)))) as arm:
        tick, state = Ticks(bus), arm.reset(0).state
        for step in range(60):
            turned = np.append(HOME + [0.02 * step, 0, 0, 0, 0], state[5])
            before = arm.body.goal.copy()
            try:
                result = tick(lambda turned=turned: arm.command(turned))
            except WorldError as error:
                assert rule == "stop" and "a limit: collision of" in str(error)
                return
            if any("collision" in clamp.cause for clamp in result.clamps):
                assert rule == "reject" and arm.body.goal == pytest.approx(before, abs=1e-9)
                return
        raise AssertionError("nothing was in the way")


def test_a_way_home_through_a_post_ends_before_it(bus: Any, desk: Desk) -> None:
    with bus.settled():
        bus.servos[1].position += 60 * conftest.TICKS_PER_DEG
    with contextlib.closing(JointArm(recipe_of(desk, CLOSE.format(more=""), "home_speed_deg_s = 90"))) as arm:
        with pytest.raises(WorldError, match=r"the way home ends at a collision of .* with post\. Move"):
            arm.reset(0)
        assert conftest.angles_deg(bus)["shoulder_pan"] > 20


def test_the_limits_of_speed_and_acceleration_are_those_of_each_joint(bus: Any, desk: Desk) -> None:
    top = "[limits.dims.wrist_roll]\nmax_speed = 0.3\nmax_acceleration = 1.5"
    recipe = recipe_of(desk, top)
    with contextlib.closing(build_arm(recipe)) as arm:
        limits, state = build_limits(arm.embodiment, recipe), arm.reset(0).state
        limits.reset(state)
        goal = np.append(HOME, 1.0) + [0.5, 0, 0, 0, 0.5, 0]
        sent = np.array([limits.check(goal, state)[0] for _ in range(5)])
        speeds = np.diff(np.vstack([state, sent]), axis=0)[:, [0, 4]] * 30
        assert (np.diff(np.vstack([np.zeros(2), speeds]), axis=0) * 30 <= [15.0 + 1e-6, 1.5 + 1e-6]).all()
        assert (speeds <= [1.5 + 1e-9, 0.3 + 1e-9]).all() and speeds[-1] == pytest.approx([1.5, 0.25])
        slow = at_speed(recipe, 0.5).limits
        assert slow.max_speed_rad_s == 0.75 and slow.dims["wrist_roll"].max_speed == 0.15


def test_a_stop_takes_back_goals_that_are_ahead(bus: Any, arm: JointArm) -> None:
    state = arm.reset(0).state
    for servo in bus.servos.values():
        servo.blocked = True
    arm.command(state + [0.25, 0, 0, 0, 0.25, 0])
    arm.stop()
    assert arm.hold().executed == pytest.approx(state + [0.06, 0, 0, 0, 0.06, 0], abs=0.02)
    assert [servo.memory[40] for servo in bus.servos.values()] == [1] * 6


def test_set_points_lead_to_a_goal_of_joints(bus: Any, desk: Desk) -> None:
    path = desk("", JOINTS)
    path.write_text(path.read_text().replace("[robot.fields]", "[robot.set_points]\nrate_hz = 90\n\n[robot.fields]", 1))
    arm = build_arm(read(RealArmRecipe, path))
    assert isinstance(arm, StreamedArm)
    with contextlib.closing(arm):
        goal = arm.reset(0).state + [0.03, 0, 0, 0, -0.03, 0]
        bus.goals.clear()
        for _ in range(6):
            arm.command(goal)
            for _ in range(3):
                arm.send_set_point()
        arm.hold()
        pans = [goals[1] & 0x7FFF for goals in bus.goals]
        assert len(pans) >= 18 and max(np.diff(pans)) <= 1.5 / 90 * 4095 / (2 * np.pi) + 1
        assert pans[-1] - pans[0] == pytest.approx(np.degrees(0.03) * conftest.TICKS_PER_DEG, abs=2)


def test_a_dry_run_shows_joints_and_sends_nothing(bus: Any, desk: Desk) -> None:
    shown: list[str] = []
    with contextlib.closing(JointArm(recipe_of(desk), show=shown.append)) as arm:
        state = arm.reset(0).state
        assert arm.command(state).executed is None and arm.hold().executed is None
    assert bus.goals == [] and [servo.memory[40] for servo in bus.servos.values()] == [0] * 6
    assert "shoulder_pan +2.0 -> +2.0" in shown[0] and "gripper" in shown[0]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_fault_is_told_and_the_arm_comes_back(bus: Any, arm: JointArm, fault: str, words: str) -> None:
    from .test_lerobot_arm import fail, mend

    state = arm.reset(0).state
    fail(bus, fault)
    with pytest.raises(WorldError, match=words):
        for _ in range(20):
            arm.command(state)
    before = bus.positions()
    if fault != "hot":
        with pytest.raises(WorldError, match="the last goal that reached it"):
            arm.stop()
        with pytest.raises(WorldError):
            arm.reset(0)
    mend(bus, fault)
    arm.reset(0)
    arm.command(arm.look().state)
    after = bus.positions()
    assert fault == "hot" or all(abs(after[n] - before[n]) < 60 for n in before if n < 6)


def test_the_doctor_examines_an_arm_in_joint_positions(bus: Any, desk: Desk) -> None:
    findings = {f.name: f for f in examine_robot(str(desk("", JOINTS)))}
    assert "joint positions, 1.5 rad/s, 15 rad/s2, 30 Hz" in findings["limits"].seen
    assert findings["largest step"].verdict == findings["pose"].verdict == "ok"
    assert "17.2° a joint, lerobot's max_relative_target 17.2°" in findings["largest step"].seen
    assert bus.goals == []


# --- a pair of arms

PAIR = """
base = "desk_so101_pair"
cameras = []

[robot]
id = "desk"
calibration_dir = "{folder}/calibration"
{robot}

[robot.fields.left_arm_config]
port = "{folder}/left"

[robot.fields.right_arm_config]
port = "{folder}/right"
"""


@pytest.fixture
def pair(tmp_path: Path, patience: None) -> Iterator[tuple[Any, Any, Callable[..., Path]]]:
    """Two emulated buses, and what writes the recipe of both."""
    buses = []
    for side in ("left", "right"):
        conftest.write_calibration(tmp_path / "calibration", f"desk_{side}")
        buses.append(conftest.calibrated_bus(tmp_path / side))

    def write(robot: str = "") -> Path:
        path = tmp_path / "pair.toml"
        path.write_text(PAIR.format(folder=tmp_path, robot=robot))
        return path

    yield *buses, write
    for bus in buses:
        bus.close()


def test_a_pair_of_arms_is_one_robot(pair: tuple[Any, Any, Callable[..., Path]]) -> None:
    left, right, write = pair
    with contextlib.closing(JointArm(read(RealArmRecipe, write()))) as arm:
        names = [f"{side}_{motor}" for side in ("left", "right") for motor in conftest.MOTORS]
        assert list(arm.embodiment.action.names) == names
        tick, state = Ticks(left, right), arm.reset(0).state
        goal = state.copy()
        goal[[0, 5, 6, 11]] = 0.15, 0.2, -0.15, 0.8
        result = [tick(lambda: arm.command(goal)) for _ in range(45)][-1]
        assert result.executed == pytest.approx(goal, abs=1e-6) and not result.clamps
        assert emulated(left)[[0, 5]] == pytest.approx([np.degrees(0.15), 0.2], abs=0.5)
        assert emulated(right)[[0, 5]] == pytest.approx([np.degrees(-0.15), 0.8], abs=0.5)
        assert set(arm.health) == set(names)
        with right.settled():
            right.servos[3].silent = True
        with pytest.raises(WorldError, match="There is no status packet"):
            [arm.command(goal) for _ in range(6)]
        with right.settled():
            right.servos[3].silent = False
        arm.reset(0)
        with left.settled():
            left.servos[2].temperature_c = 65
        with pytest.raises(WorldError, match="motor 'left_shoulder_lift' has 65 °C"):
            [arm.hold() for _ in range(20)]


def test_one_arm_of_a_pair_that_is_not_ready_moves_neither(pair: tuple[Any, Any, Callable[..., Path]]) -> None:
    left, right, write = pair
    right.servos[5].silent = True
    with pytest.raises(WorldError, match=r"no answer from motor 'right_wrist_roll' \(id 5\)"):
        JointArm(read(RealArmRecipe, write()))
    right.servos[5].silent = False
    recipe = read(RealArmRecipe, write())
    assert recipe.robot.calibration_dir is not None
    file = recipe.robot.calibration_dir / "desk_right.json"
    rows = file.read_text()
    file.unlink()
    with pytest.raises((WorldError, RecipeError), match=r"[Cc]alibrate"):
        JointArm(read(RealArmRecipe, write()))
    file.write_text(rows)
    right.unplug()
    with pytest.raises(WorldError, match=r"there is no port .*right.*\[robot.fields.right_arm_config\] port"):
        JointArm(read(RealArmRecipe, write()))
    right.plug()
    with pytest.raises(RecipeError, match="scene is missing"):
        read(RealArmRecipe, write('actions = "tool"'))
    for bus in (left, right):
        assert bus.goals == [] and [servo.memory[40] for servo in bus.servos.values()] == [0] * 6


# --- a robot of another package

RADIANS = """
kind = "robot"
instruction = "reach"
arm = "radians"
rate_hz = 30

[limits]
max_speed_rad_s = 1.0

[robot]
driver = "lerobot"
type = "radians"
id = "mine"
actions = "joints"
gripper = "claw"
gripper_open = 0.5
calibration_dir = "calibration"
{robot}

[robot.joints.base]
low_deg = -90
high_deg = 90

[robot.joints.arm]
motor = "reach"
inverted = true
zero_deg = 30
low_deg = -45
high_deg = 60
{more}
"""


def radians(tmp_path: Path, robot: str = 'unit = "radians"', more: str = "") -> RealArmRecipe:
    path = tmp_path / "radians.toml"
    path.write_text(RADIANS.format(robot=robot, more=more))
    return read(RealArmRecipe, path)


def test_a_robot_of_another_package_is_driven_by_its_recipe_alone(tmp_path: Path) -> None:
    with contextlib.closing(JointArm(radians(tmp_path))) as arm:
        dims = arm.embodiment.action.dims
        assert [(dim.name, dim.unit) for dim in dims] == [
            ("base", "rad"),
            ("arm", "rad"),
            ("left_claw", "1"),
            ("right_claw", "1"),
        ]
        assert (dims[1].low, dims[1].high) == pytest.approx((np.radians(-45), np.radians(60)))
        state = arm.reset(0).state
        assert state == pytest.approx([0.25, -(0.25 - np.radians(30)), 0.5, 0.5])
        result = arm.command(state + [0.1, 0.2, -0.5, 0.25])
        assert result.executed == pytest.approx(state + [0.1, 0.2, -0.5, 0.25])
        robot: Any = arm.body.motors
        sent = robot._robot.sent[-1]
        assert sent == pytest.approx(
            {"base.pos": 0.35, "reach.pos": 0.05, "left_claw.pos": 0.0, "right_claw.pos": 0.375}
        )


@pytest.mark.parametrize(
    ("robot", "more", "words"),
    [
        ("", "", "'radians' does not tell the unit of its motor 'base': write unit to"),
        ('unit = "radian"', "", "unknown value 'radian'; did you mean 'radians'"),
        ('unit = "radians"\n[robot.fields]\nwheels = true', "", "also takes x.vel, which are no positions"),
        ('unit = "radians"', '[robot.joints.elbow]\nmotor = "elbow"', "unknown motor 'elbow'"),
        ('unit = "radians"\n[robot.home_deg]\nbase = 3', "", r"\[robot.home_deg\] lacks arm"),
        ('unit = "radians"\n[robot.home_deg]\nbase = 3\narm = 70', "", "arm is 70, allowed is -45 to 60"),
    ],
)
def test_a_wrong_unit_or_feature_is_told_before_anything_moves(
    tmp_path: Path, robot: str, more: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        JointArm(radians(tmp_path, robot, more))


def test_a_joint_without_a_range_is_named(tmp_path: Path) -> None:
    path = tmp_path / "radians.toml"
    text = RADIANS.format(robot='unit = "radians"', more="").replace("low_deg = -90\nhigh_deg = 90", "")
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"the range of base is not known\. Calibrate the arm"):
        JointArm(read(RealArmRecipe, path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_speed_rad_s = 1.0", "", "joint positions need max_speed_rad_s in"),
        ("max_speed_rad_s = 1.0", "max_speed_rad_s = 1.0\nworkspace_low = [0, 0, 0]", "workspace_high need the scene"),
        ("low_deg = -90\n", "", "low_deg and high_deg belong together"),
        ("low_deg = -90", "low_deg = 120", "low_deg 120 must be below high_deg 90"),
        ("gripper_open = 0.5", "gripper_open = 0", "gripper_open and gripper_closed are both 0"),
        ('gripper = "claw"', 'gripper = ""\nmax_lead_m = 9', "max_lead_m 9 is outside"),
        ('actions = "joints"', "", "scene is missing"),
    ],
)
def test_a_recipe_that_cannot_be_safe_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "radians.toml"
    path.write_text(RADIANS.format(robot='unit = "radians"', more="").replace(old, new, 1))
    with pytest.raises(RecipeError, match=words):
        read(RealArmRecipe, path)


class TestNothingMoves:
    """Where something is wrong before the first motion, no servo gets torque or a goal."""

    @pytest.fixture(autouse=True)
    def nothing_moved(self, bus: Any) -> Iterator[None]:
        yield
        assert bus.goals == [] and [servo.memory[40] for servo in bus.servos.values()] == [0] * 6

    def test_a_unit_that_the_driver_contradicts_is_refused(self, bus: Any, desk: Desk) -> None:
        with pytest.raises(
            RecipeError, match="unit is 'radians', but the driver's motor 'shoulder_pan' counts in 'degr"
        ):
            JointArm(recipe_of(desk, robot='unit = "radians"'))

    def test_an_action_of_another_arm_is_refused(self, bus: Any, desk: Desk) -> None:
        with contextlib.closing(JointArm(recipe_of(desk), show=lambda line: None)) as arm:
            with pytest.raises(ContractError, match="action has shape"):
                arm.command(np.zeros(7))
            degrees = np.append(np.degrees(HOME), 1.0)
            with pytest.raises(ContractError, match=r"shoulder_lift is -30 rad, allowed is -1\.7"):
                arm.command(degrees)

    def test_normalised_units_without_a_calibration_are_refused(self, bus: Any, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "calibration" / "desk.json").unlink()
        path = desk("", JOINTS)
        path.write_text(path.read_text().replace("[robot.fields]", "[robot.fields]\nuse_degrees = false"))
        with pytest.raises(RecipeError, match="counts in parts of its range, which is not known: calibrate the arm"):
            JointArm(read(RealArmRecipe, path))


def test_lerobots_drive_mode_turns_normalised_units_only(
    bus: Any, desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The wiring's angles of a motor's ticks are lerobot's own degrees, in each of its modes."""
    from vla_robot.world.real.lerobot_device import LerobotDevice

    caplog.set_level(logging.ERROR)
    file = tmp_path / "calibration" / "desk.json"
    rows = json.loads(file.read_text())
    rows["elbow_flex"]["drive_mode"] = 1
    rows["shoulder_pan"]["range_min"] = 700
    file.write_text(json.dumps(rows))
    ticks = {1: 900, 2: 1500, 3: 1700, 4: 2500, 5: 3100, 6: 2900}
    angles: list[Vector] = []
    for mode in ("true", "false"):
        path = desk("", JOINTS)
        path.write_text(path.read_text().replace("[robot.fields]", f"[robot.fields]\nuse_degrees = {mode}"))
        device: Any = LerobotDevice(read(RealArmRecipe, path).robot, None, 0.3)
        bus_of = device._robot.bus
        told = {f"{bus_of._id_to_name(i)}.pos": value for i, value in bus_of._normalize(ticks).items()}
        angles.append(device.wiring.from_device(told)[0])
        if mode == "true":
            assert np.degrees(angles[0]) == pytest.approx([told[key] for key in device.wiring.keys])
    assert angles[1] == pytest.approx(angles[0], abs=1e-9)
