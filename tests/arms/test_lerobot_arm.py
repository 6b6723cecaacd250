"""lerobot's own SO-101 driver, unchanged, on emulated servos: what reaches the motors, and what is refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.errors import ContractError, RecipeError, WorldError
from vla_robot.core.messages import StepResult
from vla_robot.recipe import read
from vla_robot.recipe.env import RealArmRecipe, at_speed

pytest.importorskip("scservo_sdk")

from vla_robot.world.real.lerobot_arm import LerobotArm

Desk = Callable[..., Path]
STILL = np.array([0.0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture
def arm(bus: Any, desk: Desk) -> Iterator[LerobotArm]:
    arm = LerobotArm(recipe_of(desk))
    yield arm
    arm.close()


def recipe_of(desk: Desk, top: str = "", robot: str = "", camera: int = 0) -> RealArmRecipe:
    return read(RealArmRecipe, desk(top, robot, camera))


def torques(bus: Any) -> list[int]:
    return [servo.memory[40] for servo in bus.servos.values()]


def test_connecting_moves_nothing(bus: Any, desk: Desk) -> None:
    """But for the half degree that each joint hangs below its goal."""
    before = bus.positions()
    arm = LerobotArm(recipe_of(desk))
    assert all(abs(after - before[number]) <= 8 for number, after in bus.positions().items())
    assert torques(bus) == [1] * 6
    arm.close()


def test_state_is_what_the_servos_and_the_model_say(bus: Any, arm: LerobotArm) -> None:
    observation = arm.reset(0)
    arm.embodiment.check(observation)
    names = [d.name for d in arm.embodiment.state]
    assert names[:7] == ["x", "y", "z", "rx", "ry", "rz", "gripper_width"]
    assert names[7:] == ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"]
    measured = [(bus.servos[i].get(56) - 2047.5) * 2 * np.pi / 4095 for i in range(1, 6)]
    assert observation.state[7:] == pytest.approx(measured, abs=1e-9)


class Ticks:
    """For each tick of control a thirtieth of a second passes at the servos, however fast this computer is."""

    def __init__(self, bus: Any) -> None:
        self._now_s = bus.now_s()
        bus.now_s = lambda: self._now_s

    def __call__(self, result: Callable[[], StepResult]) -> StepResult:
        self._now_s += 1 / 30
        return result()


def test_the_tool_moves_as_it_is_told_and_the_gripper_too(bus: Any, arm: LerobotArm) -> None:
    start = arm.reset(0).state
    tick, forward = Ticks(bus), np.array([0.002, 0.001, 0.001, 0, 0, 0, 0.5])
    clamps = [tick(lambda: arm.command(forward)).clamps for _ in range(30)]
    result = [tick(arm.hold) for _ in range(30)][-1]
    moved = result.observation.state - start
    assert moved[:3] == pytest.approx([0.06, 0.03, 0.03], abs=0.006)
    assert result.observation.state[6] == pytest.approx(0.045, abs=0.003)
    assert not any(clamps)


def test_an_arm_that_is_told_to_stay_does_not_sink(arm: LerobotArm) -> None:
    arm.reset(0)
    heights = [arm.command(STILL).observation.state[2] for _ in range(80)]
    assert abs(heights[-1] - heights[40]) < 0.0005


def test_the_target_leads_by_no_more_than_the_recipe_allows(bus: Any, arm: LerobotArm) -> None:
    arm.reset(0)
    for servo in bus.servos.values():
        servo.blocked = True
    clamps = [arm.command(np.array([0.01, 0, 0, 0, 0, 0, 1.0])).clamps for _ in range(8)]
    assert clamps[0] == ()
    assert clamps[-1][0].cause == "lead"
    assert clamps[-1][0].allowed == pytest.approx(0, abs=1e-9)


def test_the_target_stays_in_the_workspace(bus: Any, desk: Desk) -> None:
    top = "[limits]\nworkspace_low = [-1, -0.005, -1]\nworkspace_high = [1, 0.005, 1]"
    arm = LerobotArm(recipe_of(desk, top))
    arm.reset(0)
    causes = [c.cause for _ in range(8) for c in arm.command(np.array([0, 0.004, 0, 0, 0, 0, 1.0])).clamps]
    assert "position" in causes
    arm.close()


def tool_motion(arm: LerobotArm, before: np.ndarray) -> np.ndarray:
    """(6,) of the tool from goals that were sent before to those that were sent last, by the test's own arithmetic."""
    (start, start_quat), (end, end_quat) = arm._model.pose(before), arm._model.pose(arm.goal)
    # q_end * conj(q_start), then its rotation vector.
    w1, v1, w2, v2 = end_quat[0], end_quat[1:], start_quat[0], -start_quat[1:]
    w, v = w1 * w2 - v1 @ v2, w1 * v2 + w2 * v1 + np.cross(v1, v2)
    sine = float(np.linalg.norm(v))
    turn = np.zeros(3) if sine < 1e-12 else v / sine * 2 * np.arctan2(sine, w)
    return np.concatenate([end - start, np.where(np.abs(turn) > np.pi, turn - 2 * np.pi, turn)])


def test_a_rotation_that_leads_too_far_is_cut_and_told(bus: Any, arm: LerobotArm) -> None:
    arm.reset(0)
    for servo in bus.servos.values():
        servo.blocked = True
    turn = np.array([0, 0, 0, 0, 0, 0.05, 1.0])
    clamps = [c for _ in range(40) for c in arm.command(turn).clamps if c.dim in ("droll", "dpitch", "dyaw")]
    assert {c.cause for c in clamps} == {"lead"}
    assert any(c.dim == "dyaw" and c.wanted == 0.05 and c.allowed < 0.04 for c in clamps)


def test_what_is_reported_as_executed_is_what_the_motors_were_sent(bus: Any, desk: Desk) -> None:
    arm = LerobotArm(recipe_of(desk, "[limits]\nmax_joint_step_rad = 0.02"))
    arm.reset(0)
    cut = 0
    for action in ([0.01, 0.01, 0.01, 0, 0, 0, 0.5], [0, 0, -0.01, 0.05, 0, 0.05, 1.0], [0.002, 0, 0, 0, 0, 0, 1.0]):
        before = arm.goal.copy()
        result = arm.command(np.array(action, dtype=np.float64))
        assert result.executed is not None
        assert result.executed[:6] == pytest.approx(tool_motion(arm, before), abs=1e-9)
        assert result.executed[6] == pytest.approx(action[6])
        cut += any(c.cause == "step" for c in result.clamps)
    assert cut, "the joint step never cut anything: the test shows nothing"
    arm.close()


def test_what_the_driver_cuts_is_told(bus: Any, arm: LerobotArm, monkeypatch: pytest.MonkeyPatch) -> None:
    arm.reset(0)
    send = arm.motors.send
    monkeypatch.setattr(arm.motors, "send", lambda joints, opening: send(joints - 0.01, opening / 2))
    before = arm.goal.copy()
    result = arm.command(STILL)
    assert {(c.dim, c.cause) for c in result.clamps} == {(n, "driver") for n in (*arm.joint_names, "gripper")}
    assert result.executed is not None
    assert result.executed == pytest.approx([*tool_motion(arm, before), 0.5], abs=1e-9)


def test_lerobot_and_we_keep_the_same_largest_step(bus: Any, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    arm = LerobotArm(recipe_of(desk, "[limits]\nmax_joint_step_rad = 0.02"))
    arm.reset(0)
    bus.goals.clear()
    caplog.set_level(logging.WARNING)
    with bus.settled():
        for servo in bus.servos.values():
            servo.blocked = True
    arm.hold()
    result = arm.command(np.array([0.01, 0.01, 0.01, 0, 0, 0, 1.0]))
    assert "step" in {c.cause for c in result.clamps}
    ahead = [abs((goal & 0x7FFF) - bus.servos[number].get(56)) for number, goal in bus.goals[-1].items() if number < 6]
    assert max(ahead) == pytest.approx(np.degrees(0.02) * 4095 / 360, abs=1.5)
    assert "had to be clamped" not in caplog.text  # ours was first, and left nothing for lerobot's
    arm.close()


def test_the_recipe_may_not_set_lerobots_step_beside_ours(desk: Desk) -> None:
    path = desk()
    path.write_text(path.read_text().replace("[robot.fields]", "[robot.fields]\nmax_relative_target = 5.0"))
    with pytest.raises(RecipeError, match=r"max_joint_step_rad of \[limits\], and lerobot is told the same"):
        read(RealArmRecipe, path)


def test_stop_takes_back_the_goals_ahead_and_keeps_what_holds_the_arm_up(bus: Any, arm: LerobotArm) -> None:
    arm.reset(0)
    for servo in bus.servos.values():
        servo.blocked = True
    for _ in range(4):
        arm.command(np.array([0.01, 0, 0.01, 0, 0, 0, 1.0]))
    arm.stop()
    arm.hold()  # goals are not answered; once a question is, they have arrived
    goals = {number: servo.get(42) & 0x7FFF for number, servo in bus.servos.items() if number < 6}
    assert all(abs(goals[n] - bus.servos[n].position) * 2 * np.pi / 4095 < 0.07 for n in goals)
    assert torques(bus) == [1] * 6
    arm.close()
    assert torques(bus) == [1] * 6  # and does not fall when the program ends


def test_frames_are_the_middle_of_the_picture_with_their_own_stamp(arm: LerobotArm) -> None:
    observation = arm.reset(0)
    assert observation.images["front"].shape == (224, 224, 3)
    stamp = arm.camera_stamps_ns["front"]
    assert observation.stamp_ns == min(stamp, observation.stamp_ns)


def test_a_look_reads_and_sends_nothing(bus: Any, arm: LerobotArm) -> None:
    arm.look()  # before the first episode
    arm.reset(0)
    arm.stop()
    arm.look()  # goals are not answered, but this is, after them
    sent, goal = len(bus.goals), arm.goal.copy()
    bus.servos[1].position += 60  # pushed by hand
    seen = arm.look()
    assert seen.state[7] == pytest.approx((bus.servos[1].get(56) - 2047.5) * 2 * np.pi / 4095, abs=0.01)
    assert any(arm.look().stamp_ns > seen.stamp_ns + 1_000_000 for _ in range(1000))  # the camera's next frame
    assert len(bus.goals) == sent and (arm.goal == goal).all()


def test_a_link_that_is_lost_while_nothing_moves_is_told_and_the_next_reset_connects_it(
    bus: Any, arm: LerobotArm
) -> None:
    arm.reset(0)
    bus.unplug()
    with pytest.raises(WorldError, match="does not answer"):
        arm.look()
    with pytest.raises(WorldError, match="the connection to the arm was lost"):
        arm.look()
    bus.plug()
    arm.reset(0)
    arm.embodiment.check(arm.look())


def test_a_camera_that_died_is_told_by_the_age_of_its_stamp(arm: LerobotArm, tmp_path: Path) -> None:
    arm.reset(0)
    (tmp_path / "camera_stopped").touch()
    stamps = [arm.hold() and arm.camera_stamps_ns["front"] for _ in range(3)]
    assert stamps[0] == stamps[-1]


def fail(bus: Any, fault: str) -> None:
    if fault == "unplugged":
        bus.unplug()
    elif fault == "silent":
        bus.servos[3].silent = True
    elif fault == "hot":
        bus.servos[2].temperature_c = 75
    else:
        bus.damaged_answers = -1


def mend(bus: Any, fault: str) -> None:
    if fault == "unplugged":
        bus.plug()
    bus.servos[3].silent = False
    bus.servos[2].temperature_c = 35
    bus.damaged_answers = 0


FAULTS = [
    ("unplugged", "does not (answer|take commands)"),
    ("silent", "There is no status packet"),
    ("hot", "motor 'shoulder_lift' (reports: too hot|has 75 °C, allowed are 60 °C)"),
    ("damaged", "Incorrect status packet"),
]
"""Fault of the emulated bus -> words of the error that tells it."""


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_fault_is_told_and_the_arm_comes_back(bus: Any, arm: LerobotArm, fault: str, words: str) -> None:
    arm.reset(0)
    fail(bus, fault)
    with pytest.raises(WorldError, match=words):
        for _ in range(20):
            arm.command(STILL)
    before = bus.positions()
    if fault == "hot":
        arm.stop()  # the bridge calls it whatever happened
    else:
        with pytest.raises(WorldError, match="the last goal that reached it"):
            arm.stop()
        assert torques(bus) == [1] * 6  # held up by the servos themselves
        with pytest.raises(WorldError):
            arm.reset(0)
    mend(bus, fault)
    arm.reset(0)
    assert torques(bus) == [1] * 6
    arm.command(STILL)
    after = bus.positions()
    assert fault == "hot" or all(abs(after[n] - before[n]) < 60 for n in before if n < 6)


def test_one_damaged_answer_costs_nothing(bus: Any, arm: LerobotArm) -> None:
    arm.reset(0)
    bus.damaged_answers = 1
    before = arm.joints.copy()
    for _ in range(6):
        arm.command(STILL)
    assert arm.joints == pytest.approx(before, abs=0.02)


def test_servos_that_lost_their_power_are_held_where_they_are(bus: Any, arm: LerobotArm) -> None:
    arm.reset(0)
    bus.unplug()
    with pytest.raises(WorldError):
        arm.command(STILL)
    for servo in bus.servos.values():
        servo.power_cycle()
        servo.position -= 40  # pushed by hand meanwhile
    bus.plug()
    bus.goals.clear()
    arm.reset(0)
    first = bus.goals[0]
    assert all(abs((goal & 0x7FFF) - bus.servos[n].position) < 90 for n, goal in first.items() if n < 6)


def test_the_way_home_can_be_interrupted(bus: Any, desk: Desk) -> None:
    arm = LerobotArm(recipe_of(desk), interrupted=lambda: True)
    with pytest.raises(WorldError, match=r"the way home was interrupted; the arm holds where it is"):
        arm.reset(0)
    arm.close()


def test_a_way_home_that_is_blocked_is_told(bus: Any, desk: Desk) -> None:
    arm = LerobotArm(recipe_of(desk, robot="home_speed_deg_s = 400"))
    bus.servos[2].blocked = True
    bus.servos[2].position += 300
    with pytest.raises(WorldError, match=r"joint 'shoulder_lift' is at .* home is -30°. Remove what is in its way"):
        arm.reset(0)
    arm.close()


def test_a_dry_run_reads_and_sends_nothing(bus: Any, desk: Desk) -> None:
    shown: list[str] = []
    arm = LerobotArm(recipe_of(desk), show=shown.append)
    arm.reset(0)
    results = [arm.command(np.array([0.01, 0, 0, 0, 0, 0, 0.0])) for _ in range(7)]
    assert all(result.executed is None for result in (*results, arm.hold()))
    arm.stop()
    arm.close()
    assert torques(bus) == [0] * 6
    assert bus.goals == [] and 3 not in bus.asked  # no goal, and not a single write
    assert len(shown) >= 2 and shown[0].startswith("would send  shoulder_pan ")


def test_at_a_quarter_of_the_speed_everything_is_slower(desk: Desk) -> None:
    recipe = recipe_of(desk)
    slow = at_speed(recipe, 0.25)
    assert slow.limits.max_speed_m_s == pytest.approx(0.075)
    assert slow.robot is not None and slow.robot.home_speed_deg_s == pytest.approx(7.5)
    assert at_speed(recipe, 1.0) == recipe
    with pytest.raises(RecipeError, match=r"a speed of 1.5 is outside of 0 to 1"):
        at_speed(recipe, 1.5)


class TestNothingMoves:
    """Where something is wrong before the first motion, no servo gets torque or a goal."""

    @pytest.fixture(autouse=True)
    def nothing_moved(self, bus: Any) -> Iterator[None]:
        yield
        assert bus.goals == []
        assert torques(bus) == [0] * 6

    def test_a_wrong_port_is_named_with_those_that_are_there(self, desk: Desk) -> None:
        path = desk()
        path.write_text(path.read_text().replace("/port", "/prot"))
        with pytest.raises(WorldError, match=r"there is no port .*/prot. Available: .*lerobot-find-port"):
            LerobotArm(read(RealArmRecipe, path))

    def test_a_missing_permission_comes_with_the_command_that_gives_it(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may use any port
        with pytest.raises(WorldError, match=r"no permission to use .*sudo usermod -aG dialout"):
            LerobotArm(recipe_of(desk))

    def test_an_arm_without_calibration_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "calibration" / "desk.json").unlink()
        with pytest.raises(
            WorldError, match=r"has no calibration at .*desk.json. Nothing was moved. .*lerobot-calibrate"
        ):
            LerobotArm(recipe_of(desk))

    def test_an_arm_that_was_calibrated_otherwise_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        file = tmp_path / "calibration" / "desk.json"
        rows = json.loads(file.read_text())
        rows["elbow_flex"]["range_max"] += 40
        file.write_text(json.dumps(rows))
        with pytest.raises(WorldError, match=r"is calibrated differently from its file. Nothing was moved"):
            LerobotArm(recipe_of(desk))

    def test_a_camera_that_does_not_exist_is_named(self, desk: Desk) -> None:
        with pytest.raises(
            WorldError, match=r"camera 'desk' .*index_or_path 7.* cannot be opened: .*lerobot-find-cameras"
        ):
            LerobotArm(read(RealArmRecipe, desk(camera=7)))

    def test_a_hot_motor_is_refused(self, bus: Any, desk: Desk) -> None:
        bus.servos[4].temperature_c = 65
        with pytest.raises(WorldError, match=r"motor 'wrist_flex' has 65 °C, allowed are 60 °C"):
            LerobotArm(recipe_of(desk))

    def test_a_motor_that_reports_a_fault_is_refused_by_its_name(self, bus: Any, desk: Desk) -> None:
        bus.servos[4].temperature_c = 75
        with pytest.raises(WorldError, match="motor 'wrist_flex' reports: too hot"):
            LerobotArm(recipe_of(desk))

    def test_a_missing_servo_is_named(self, bus: Any, desk: Desk) -> None:
        bus.servos[5].silent = True
        with pytest.raises(WorldError, match=r"no answer from motor 'wrist_roll' \(id 5\)"):
            LerobotArm(recipe_of(desk))

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("[robot]", '[robot]\ntype = "so101_folower"', "unknown robot type 'so101_folower'; did you mean"),
            ("[robot.fields]", "[robot.fields]\nprot = 1", "unknown field 'prot'; did you mean 'port'"),
            ("[robot]", '[robot]\ngripper = "griper"', "unknown motor 'griper'; did you mean 'gripper'"),
            ('"emulated"', '"emulatd"', "unknown camera type 'emulatd'; did you mean 'emulated'"),
            (
                "[robot.fields]",
                "[robot.home_deg]\nelbow = 3\n[robot.fields]",
                "unknown joint in .*'elbow'; did you mean",
            ),
            (
                "[robot.fields]",
                "[robot.home_deg]\nelbow_flex = 170\n[robot.fields]",
                "elbow_flex is 170, allowed is -97",
            ),
        ],
    )
    def test_a_mistake_in_the_recipe_is_told_with_the_nearest(self, desk: Desk, old: str, new: str, words: str) -> None:
        path = desk()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(RecipeError, match=words):
            LerobotArm(read(RealArmRecipe, path))

    def test_an_action_of_another_arm_is_refused(self, bus: Any, desk: Desk) -> None:
        arm = LerobotArm(recipe_of(desk), show=lambda line: None)
        with pytest.raises(ContractError, match=r"action has shape"):
            arm.command(np.zeros(6))
        arm.close()
