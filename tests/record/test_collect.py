"""Tests of collecting demonstrations: label, driver, which episodes are kept, and several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from vla_robot.core.errors import PolicyError, WorldError
from vla_robot.data.demonstration import Demonstration
from vla_robot.record.collect import Collected, Collector, WithoutTruth, store
from vla_robot.record.workers import collect_in_processes
from vla_robot.testing import FunctionPolicy, ToyWorld, toy_embodiment

POINT = toy_embodiment(step_m=1, reach_m=10, height=16, width=16)


def line() -> ToyWorld:
    """Return a world with its goal at x = 3, whose privileged values hold the distance; it ends after five steps."""
    return ToyWorld(
        embodiment=POINT,
        start=lambda seed: float(seed % 100) - 10 * (seed >= 100),
        goal=3,
        horizon=5,
        truth=lambda world: {"to_goal": np.array([3 - world.x])},
    )


def expert() -> FunctionPolicy:
    return FunctionPolicy(lambda observation: float(observation.privileged["to_goal"][0]))


def heeds_words() -> FunctionPolicy:
    """Return a policy that moves right, or left when the instruction contains "left"."""
    return FunctionPolicy(lambda observation: -1.0 if "left" in observation.instruction else 1.0)


def test_each_frame_is_labelled_for_other_instructions_too() -> None:
    label = heeds_words()
    collector = Collector(line(), label, label, "expert", also_ask=("go left", "go right"))
    demo = collector.collect(seed=0)
    assert list(demo.other_labels) == ["go left"], "the episode's own instruction has its label already"
    (other,) = demo.asked_otherwise()
    assert (other.instruction, other.driver, other.succeeded) == ("go left", "expert, asked to go left", False)
    assert other.actions[:, 0].tolist() == [-1, -1, -1]
    np.testing.assert_array_equal(other.executed, demo.executed)
    assert other.cameras is demo.cameras


def test_the_episode_itself_is_written_after_those_of_other_instructions() -> None:
    label = heeds_words()
    shelf = Shelf()
    collector = Collector(line(), label, label, "e", also_ask=("go left", "wait on the left"))
    store(map(collector.collect, [0, 1]), shelf)
    written = [(d.seed, d.instruction) for d in shelf.written]
    assert written == [(s, w) for s in (0, 1) for w in ("go left", "wait on the left", "go right")]


def test_an_expert_alone_shows_the_task() -> None:
    label = expert()
    demo = Collector(line(), label, label, "expert").collect(seed=0)
    assert demo.actions[:, 0].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(demo.actions, demo.executed)
    assert demo.states[:, 0].tolist() == [0, 1, 2]
    assert demo.success.tolist() == [False, False, True]
    assert (demo.seed, demo.driver, demo.instruction, demo.succeeded) == (0, "expert", "go right", True)


def test_a_learner_drives_and_the_expert_says_what_was_right() -> None:
    learner = FunctionPolicy(lambda observation: -1.0)
    demo = Collector(line(), expert(), learner, "nano").collect(seed=0)
    assert demo.executed[:, 0].tolist() == [-1] * 5
    assert demo.actions[:, 0].tolist() == [1] * 5
    assert demo.states[:, 0].tolist() == [0, -1, -2, -3, -4]
    assert not demo.succeeded


def test_a_learner_that_drives_does_not_see_the_truth() -> None:
    learner = FunctionPolicy(lambda observation: 1.0)
    Collector(line(), expert(), WithoutTruth(learner), "nano").collect(seed=2)
    assert [dict(observation.privileged) for observation in learner.saw] == [{}]
    assert learner.saw[0].images["front"].shape == (16, 16, 3)
    assert learner.seeds == [2]


def test_actions_are_kept_within_the_limits() -> None:
    demo = Collector(line(), expert(), FunctionPolicy(lambda observation: 40.0), "wild").collect(seed=106)
    assert demo.executed.max() == 1
    assert demo.actions.max() == 1


def test_an_episode_ends_at_the_number_of_steps_asked_for() -> None:
    label = expert()
    assert len(Collector(line(), label, label, "expert", max_steps=2).collect(seed=0)) == 2


def test_an_action_that_is_not_finite_is_never_recorded() -> None:
    with pytest.raises(PolicyError, match=r"must be 2 finite numbers, got .*nan.*Nothing was recorded"):
        Collector(line(), expert(), FunctionPolicy(lambda observation: float("nan")), "broken").collect(seed=0)


class Shelf:
    def __init__(self) -> None:
        self.written: list[Demonstration] = []

    def write(self, demonstration: Demonstration) -> None:
        self.written.append(demonstration)


@pytest.mark.parametrize(("keep", "kept"), [("all", [0, 101, 1]), ("success", [0, 1])])
def test_failures_are_kept_or_left_out(keep: str, kept: list[int]) -> None:
    label, shelf, events = expert(), Shelf(), list[Collected]()
    made = store(map(Collector(line(), label, label, "e").collect, [0, 101, 1]), shelf, keep, events.append)  # type: ignore[arg-type]
    assert [demo.seed for demo in shelf.written] == kept
    assert [(e.seed, e.steps, e.success, e.kept) for e in made] == [
        (0, 3, True, True),
        (101, 5, False, keep == "all"),
        (1, 2, True, True),
    ]
    assert events == made


def test_each_episode_is_written_before_the_next_begins() -> None:
    shelf = Shelf()
    label = expert()

    def seeds() -> Iterator[int]:
        yield 0
        assert len(shelf.written) == 1
        yield 1

    store(map(Collector(line(), label, label, "expert").collect, seeds()), shelf)
    assert len(shelf.written) == 2


def test_a_worker_that_dies_is_noticed() -> None:
    # The builder is a function of the standard library, since a worker cannot import one from this file.
    with pytest.raises(WorldError, match=r"ended unexpectedly with exit code 3\..*same command goes on"):
        list(collect_in_processes(partial(os._exit, 3), [0, 1], num_workers=1))  # type: ignore[arg-type]


def test_no_seeds_need_no_process() -> None:
    assert list(collect_in_processes(partial(os._exit, 3), [], num_workers=2)) == []  # type: ignore[arg-type]
