"""What the arm receives when something goes wrong. Every test ends by looking at each command that reached it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_S
from vla_robot.core.errors import WorldError
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.record.episode import read_episode
from vla_robot.transport.bridge_codec import BRIDGE_PROTOCOL

HOLD_S, STOP_S, PERIOD_S = 0.5, 3.0, 0.1

MakeStage = Callable[..., Any]


def chunk_of(observation: Observation, *rows: tuple[float, ...]) -> ActionChunk:
    return ActionChunk(np.array(rows, dtype=np.float64), observation.stamp_ns, observation.step)


def test_while_all_is_well_every_tick_plays_an_action(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(3.0)
    assert stage.modes()["run"] >= 27
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_a_controller_that_dies_leaves_the_arm_held_then_stopped(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.controller.alive = False
    died_ns = stage.clock.now_ns()
    stage.play(HOLD_S + PERIOD_S)
    assert stage.status["mode"] == "hold"
    stage.play(STOP_S + HOLD_S)
    assert stage.status["mode"] == "stopped"
    assert "silence" in stage.status["reason"]
    assert len(stage.since(died_ns)) <= 2
    assert stage.arm.stops
    stage.check_commands()


def test_the_log_is_complete_to_the_fault(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.controller.alive = False
    stage.play(STOP_S + 2 * HOLD_S)
    (path,) = (tmp_path / "logs").glob("*.vlalog")
    log = read_episode(path)
    assert log.complete and log.summary is not None
    assert log.summary["outcome"] == "stopped" and "silence" in log.summary["error"]
    assert len(log.steps) == len(stage.arm.commands) + len(stage.arm.holds)
    played = [step.executed for step in log.steps if step.commanded is not None]
    np.testing.assert_array_equal(played, stage.since(0))


def test_what_was_not_sent_to_the_arm_is_not_reported_as_executed(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.server.emergency_stop("a test")
    stage.play(0.5)
    first, last = stage.controller.ticks[0], stage.controller.ticks[-1]
    assert (first.reason, first.result.executed) == ("the episode begins", None)
    assert (last.mode, last.result.executed) == ("stopped", None)
    played = [tick for tick in stage.controller.ticks if tick.mode == "run"]
    assert all(tick.result.executed is not None and tick.wanted is not None for tick in played)
    assert [tick.cause_step for tick in played] == [tick.last_processed_step for tick in played]


def test_another_controller_takes_over_after_the_first_died(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.controller.alive = False
    stage.play(STOP_S + 2 * HOLD_S)
    stage.controller.alive = True
    stage.controller.seen = 0
    stage.hello()
    stage.controller.say("reset", episode=2, seed=0, lockstep=False)
    stage.play(0.2)
    assert any("the arm is stopped" in error and "`arm` it first" in error for error in stage.controller.errors)
    stage.controller.say("arm")
    stage.controller.say("reset", episode=2, seed=0, lockstep=False)
    stage.play(1.0)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_a_second_controller_is_refused_while_the_first_lives(make_stage: MakeStage) -> None:
    from vla_robot.transport.wire import Message

    stage = make_stage()
    stage.begin()
    stage.play(0.5)
    stage.network.post(b"stranger", Message("hello", 1, {"protocol": BRIDGE_PROTOCOL, "wanted": {}}))
    stage.play(0.5)
    assert any("has a controller already" in error for error in stage.controller.errors)
    assert stage.status["mode"] == "run"


def test_a_policy_that_dies_holds_the_arm_and_a_new_one_goes_on(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.controller.policy_alive = False
    died_ns = stage.clock.now_ns()
    stage.play(1.5)
    assert stage.status["mode"] == "hold"
    assert "last action" in stage.status["reason"]
    assert len(stage.since(died_ns)) <= 1
    stage.controller.policy_alive = True
    stage.play(1.0)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_a_frozen_network_holds_the_arm_and_what_arrives_late_is_refused(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    froze_ns = stage.clock.now_ns()
    stage.network.frozen_until_ns = froze_ns + round(1.5 * NS_PER_S)
    stage.play(HOLD_S + 2 * PERIOD_S)
    assert stage.status["mode"] == "hold"
    played = len(stage.arm.commands)
    stage.play(0.85)
    assert len(stage.arm.commands) == played, "an action of before the freeze was played"
    stage.play(1.0)
    assert stage.status["mode"] == "run"
    assert stage.status["counts"]["refused"] >= 1
    stage.check_commands()


def test_with_30_percent_lost_the_arm_goes_on(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(0.5)
    stage.network.drop = 0.3
    stage.play(20.0)
    modes = stage.modes()
    assert modes["stopped"] == 0
    assert len(stage.arm.commands) > 60
    stage.check_commands()


def test_single_actions_that_come_300_ms_late_are_refused_and_the_arm_holds(make_stage: MakeStage) -> None:
    stage = make_stage(think_ms=300.0, max_age_s=0.25)
    stage.begin()
    stage.play(2.0)
    assert stage.arm.commands == []
    assert stage.status["counts"]["dropped_rows"] >= 3
    assert "late" in stage.controller.ticks[-1].reason
    stage.controller.think_ms = 50.0
    stage.play(1.0)
    assert stage.status["mode"] == "run"


def test_of_chunks_that_come_300_ms_late_the_rest_is_played_on_its_own_ticks(make_stage: MakeStage) -> None:
    def eight_rows(observation: Observation) -> ActionChunk:
        return chunk_of(observation, *[((observation.step + k) * 1e-4, 1.0) for k in range(8)])

    stage = make_stage(eight_rows, think_ms=300.0)
    stage.begin()
    stage.play(3.0)
    assert stage.status["counts"]["dropped_rows"] >= 3
    played = [round(float(action[0]) / 1e-4) for _, action in stage.arm.commands]
    ticks = [tick.result.observation.step - 1 for tick in stage.controller.ticks if tick.mode == "run"]
    assert len(played) > 20
    assert played[: len(ticks)] == ticks


@pytest.mark.parametrize(
    ("row", "complaint"),
    [((np.nan, 1.0), "not finite"), ((np.inf, 1.0), "not finite"), ((0.0, 0.0, 0.0), "shape")],
)
def test_what_is_no_action_is_refused_and_told(make_stage: MakeStage, row: tuple[float, ...], complaint: str) -> None:
    stage = make_stage(lambda o: chunk_of(o, row))
    stage.begin()
    stage.play(1.5)
    assert stage.arm.commands == []
    assert any(complaint in error for error in stage.controller.errors)
    assert complaint in stage.status["last_refusal"]
    stage.controller.think = lambda o: chunk_of(o, (0.01, 1.0))
    stage.play(1.0)
    assert stage.status["mode"] == "run"


def test_one_bad_row_spoils_its_chunk(make_stage: MakeStage) -> None:
    stage = make_stage(lambda o: chunk_of(o, (0.01, 1.0), (np.nan, 1.0)))
    stage.begin()
    stage.play(1.0)
    assert stage.arm.commands == []


@pytest.mark.parametrize("huge", [1e308, -1e308, 0.051, -3.0])
def test_huge_actions_are_cut_and_the_cut_is_told(make_stage: MakeStage, huge: float) -> None:
    stage = make_stage(lambda o: chunk_of(o, (huge, 1.0)))
    stage.begin()
    stage.play(1.0)
    assert len(stage.arm.commands) >= 5
    clamps = [clamp for tick in stage.controller.ticks for clamp in tick.result.clamps]
    assert any(clamp.dim == "dx" and clamp.wanted == huge for clamp in clamps)
    stage.check_commands()


def test_a_camera_that_stops_holds_the_arm_and_is_named(make_stage: MakeStage) -> None:
    stage = make_stage(max_age_s=0.3)
    stage.begin()
    stage.play(1.0)
    stage.arm.camera_stopped = True
    stopped_ns = stage.clock.now_ns()
    stage.play(2.0)
    assert len(stage.since(stopped_ns)) <= 4
    assert "camera 'front' gave its last frame" in stage.controller.ticks[-1].reason
    stage.arm.camera_stopped = False
    stage.play(1.0)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_a_clock_that_jumps_ahead_holds_until_a_fresh_action(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.at(0.05, lambda: stage.clock.advance_ns(60 * NS_PER_S))
    stage.controller.policy_alive = False
    played = len(stage.arm.commands)
    stage.play(61.0)
    assert len(stage.arm.commands) <= played + 1
    assert stage.status["mode"] == "hold"
    assert stage.status["counts"]["missed_ticks"] >= 590
    stage.check_commands()


def test_a_clock_that_jumps_back_holds_until_an_action_of_after_it(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    played, holds = len(stage.arm.commands), len(stage.arm.holds)
    stage.controller.policy_alive = False
    stage.network.jump(-60 * NS_PER_S)
    stage.play(1.0)
    assert len(stage.since(0)) <= played + 1
    assert len(stage.arm.holds) >= holds + 8, "the arm waited for the old deadline"
    assert stage.status["mode"] == "hold" and "the clock went back by 60" in stage.status["reason"]
    stage.controller.policy_alive = True
    stage.play(1.0)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_an_action_of_before_the_clock_went_back_is_refused(make_stage: MakeStage) -> None:
    stage = make_stage(think_ms=50.0)
    stage.begin()
    stage.play(1.01)
    played = len(stage.arm.commands)
    stage.network.jump(-60 * NS_PER_S)
    stage.controller.policy_alive = True
    stage.play(0.06)
    assert len(stage.since(0)) <= played + 1
    stage.play(1.0)
    assert any("captured" in error and "from now" in error for error in stage.controller.errors)
    assert stage.status["mode"] == "run"
    stage.check_commands()


def test_an_e_stop_while_the_arm_moves_brakes_within_the_acceleration_limit(make_stage: MakeStage) -> None:
    limits = LimitsRecipe(max_acceleration_m_s2=1.0)  # 1 cm less in each tick
    stage = make_stage(lambda o: chunk_of(o, (0.04, 0.0)), limits=limits)
    stage.begin()
    stage.play(1.5)
    before = len(stage.arm.commands)
    stage.server.emergency_stop("a test")
    steps = [float(action[0]) for _, action in stage.arm.commands]
    gaps_s = np.diff([at_ns for at_ns, _ in stage.arm.commands]) / NS_PER_S
    assert steps[before:] == pytest.approx([0.03, 0.02, 0.01, 0.0])
    assert gaps_s[before - 1 :] == pytest.approx(PERIOD_S)
    assert stage.arm.commands[-1][1][1] == 0.0, "the grip is kept"
    assert stage.arm.stops and stage.status["mode"] == "stopped"
    stage.play(0.5)
    told = stage.controller.ticks[-5:]
    assert [t.mode for t in told] == ["hold"] * 4 + ["stopped"], "the controller records the ramp, too"
    assert [t.result.executed[0] for t in told[:4]] == pytest.approx([0.03, 0.02, 0.01, 0.0])
    numbers = [t.result.observation.step for t in stage.controller.ticks]
    assert np.diff(numbers).tolist() == [1] * (len(numbers) - 2) + [0]
    stage.check_commands()


def test_an_episode_that_ends_in_the_midst_of_a_motion_ends_with_a_stop(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.arm.can_wait, stage.arm.horizon = False, 5
    stage.begin()
    stage.play(2.0)
    assert not stage.bridge.running and stage.arm.commands[-1][1][0] > 0
    assert [at_ns >= stage.arm.commands[-1][0] for at_ns in stage.arm.stops] == [True]
    assert stage.status["mode"] == "hold"
    stage.check_commands()


def test_an_arm_that_fails_is_stopped_and_its_words_are_told(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.arm.raises["command"] = WorldError("joint 3 reports an overcurrent.")
    stage.play(1.0)
    assert stage.status["mode"] == "stopped"
    assert "overcurrent" in stage.status["reason"]
    assert stage.arm.stops


def test_anybody_may_stop_the_arm_and_it_stays_stopped_until_armed(make_stage: MakeStage) -> None:
    from vla_robot.transport.wire import Message

    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.network.post(b"stranger", Message("stop", 1, {"reason": "a person stood up"}))
    stage.play(0.2)
    stopped_ns = stage.clock.now_ns()
    assert stage.status["mode"] == "stopped" and "a person stood up" in stage.status["reason"]
    stage.controller.say("reset", episode=2, seed=0, lockstep=False)
    stage.play(1.0)
    assert stage.since(stopped_ns) == []
    stage.controller.say("arm")
    stage.controller.say("reset", episode=2, seed=0, lockstep=False)
    stage.play(1.0)
    assert stage.status["mode"] == "run"


def test_commands_that_are_replayed_overtaken_or_forged_are_refused_and_counted(make_stage: MakeStage) -> None:
    from vla_robot.transport.wire import Message

    stage = make_stage()
    stage.begin()
    stage.play(0.5)
    session = stage.controller.session
    stage.network.post(b"commander", Message("end", 2, {"session": session}))
    stage.network.post(b"commander", Message("end", 10_000, {"session": "0" * 32}))
    stage.network.post(b"stranger", Message("end", 10_001, {"session": session}))
    stage.play(0.5)
    counts = stage.status["counts"]
    assert counts["replayed"] == 1 and counts["forged"] == 1
    assert any("does not command the arm" in error for error in stage.controller.errors)
    assert stage.status["mode"] == "run"


def test_the_end_of_the_bridge_holds_the_arm(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    stage.server.serve(lambda: True)
    assert stage.arm.stops
    assert not stage.bridge.running
