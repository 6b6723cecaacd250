"""Tests of a person's recording session: the buttons that keep, discard and repeat an episode, and what is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from vla_robot.core.clock import FakeClock
from vla_robot.core.teleop import TeleopCommand
from vla_robot.data.demonstration import Demonstration
from vla_robot.record.collect import Collected, Keep
from vla_robot.record.controlled_robot import WaitingWorld
from vla_robot.record.teleop_session import Session
from vla_robot.testing import ScriptedTeleoperator, ToyWorld, move, press, toy_embodiment
from vla_robot.testing.teleoperators import NO_COMMAND

POINT = toy_embodiment(step_m=1, reach_m=10, height=16, width=16)


class Kept:
    def __init__(self) -> None:
        self.demos: list[Demonstration] = []

    def write(self, demonstration: Demonstration) -> None:
        self.demos.append(demonstration)


def record(
    said: Sequence[TeleopCommand], episodes: int = 1, keep: Keep = "all"
) -> tuple[list[Collected], list[Demonstration], ToyWorld, ScriptedTeleoperator]:
    world, teleop, writer = ToyWorld(FakeClock(), POINT, goal=3), ScriptedTeleoperator(said), Kept()
    clock = FakeClock()
    session = Session(WaitingWorld(world, clock), teleop, writer, "a person", keep, clock=clock)
    left = itertools.count(len(said) + 5, -1)
    stop: Callable[[], bool] = lambda: next(left) <= 0  # noqa: E731 - one expression, named for the reader
    return session.record(itertools.count(7), episodes, stop), writer.demos, world, teleop


def test_the_persons_actions_are_written_unchanged() -> None:
    made, demos, _, _ = record([press("start"), move(0.5), move(0.25), press("stop")])
    (demo,) = demos
    np.testing.assert_allclose(demo.actions, [[0.5, 1.0], [0.25, 1.0]])
    np.testing.assert_allclose(demo.states[:, 0], [0.0, 0.5])
    assert demo.driver == "a person" and demo.seed == 7 and not demo.succeeded
    assert made == [Collected(7, 2, False, True)]


def test_the_worlds_own_success_ends_the_episode() -> None:
    made, demos, _, _ = record([press("start"), *[move(1.0)] * 3])
    assert made == [Collected(7, 3, True, True)] and demos[0].success.tolist() == [False, False, True]


def test_the_person_may_call_it_a_success() -> None:
    _, demos, _, _ = record([press("start"), move(0.5), move(0.5), press("success")])
    assert demos[0].success.tolist() == [False, True]


def test_nothing_moves_before_start() -> None:
    made, _, world, teleop = record([move(0.5), move(0.5), move(0.5)])
    assert made == [] and world.at_step == 0
    assert all(counters["now"].startswith("ready") for _, counters in teleop.shown)


def test_a_discarded_episode_is_forgotten_and_the_next_seed_comes() -> None:
    made, demos, world, _ = record(
        [press("start"), move(0.5), press("discard"), press("start"), move(0.25), press("stop")]
    )
    assert world.seeds == [7, 8] and [demo.seed for demo in demos] == [8]
    assert [event.kept for event in made] == [False, True]


def test_again_repeats_the_same_seed() -> None:
    _, demos, world, _ = record(
        [press("start"), move(0.5), press("rerecord"), press("start"), move(0.25), press("stop")]
    )
    assert world.seeds == [7, 7] and len(demos) == 1
    np.testing.assert_allclose(demos[0].actions, [[0.25, 1.0]])


def test_an_e_stop_forgets_the_episode_and_waits_for_start() -> None:
    made, demos, world, teleop = record([press("start"), move(0.5), press("estop"), move(0.5), move(0.5)])
    assert demos == [] and world.seeds == [7, 7] and world.at_step == 0
    assert teleop.shown[-1][1]["now"].startswith("ready") and [event.kept for event in made] == [False]


def test_without_a_command_the_world_waits_and_nothing_is_recorded() -> None:
    _, demos, world, teleop = record(
        [press("start"), move(0.5), NO_COMMAND, NO_COMMAND, NO_COMMAND, move(0.5), press("stop")]
    )
    assert len(demos[0]) == 2 and world.at_step == 2
    assert sum(counters["now"].startswith("paused") for _, counters in teleop.shown) == 3


def test_without_success_an_episode_is_left_out_when_only_successes_are_kept() -> None:
    made, demos, _, _ = record([press("start"), move(0.5), press("stop")], keep="success")
    assert demos == [] and made == [Collected(7, 1, False, False)]


def test_a_typed_instruction_holds_for_the_whole_episode() -> None:
    said = [press("start"), move(0.5), TeleopCommand(np.array([0.1, 1.0]), instruction="go left"), press("stop")]
    _, demos, _, teleop = record(said)
    assert demos[0].instruction == "go left"
    assert teleop.shown[0][0].instruction == "go right"


def test_an_episode_without_a_step_is_not_written() -> None:
    made, demos, _, _ = record([press("start"), press("stop")])
    assert demos == [] and made == [Collected(7, 0, False, False)]


def test_an_action_outside_the_limits_is_clamped() -> None:
    _, demos, _, _ = record([press("start"), move(5.0), press("stop")])
    assert demos[0].actions[0, 0] == 1.0


def test_on_an_interrupt_the_running_episode_is_discarded_and_the_others_are_kept() -> None:
    made, demos, _, _ = record([press("start"), move(0.5), press("stop"), press("start"), move(0.5)], episodes=2)
    assert len(demos) == 1 and [event.kept for event in made] == [True]


def test_counters_tell_where_the_session_stands() -> None:
    _, _, _, teleop = record([press("start"), move(0.5), press("stop"), press("start")], episodes=3)
    told = [counters["episode"] for _, counters in teleop.shown]
    assert told[0] == "1 of 3" and told[-1] == "2 of 3"
    assert "Hz" in teleop.shown[0][1]["rate"]
