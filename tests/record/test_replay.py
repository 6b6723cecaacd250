"""A recorded demonstration, repeated without looking: in the same state it arrives, and elsewhere it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_robot.core.errors import ContractError, DataError, PolicyError
from vla_robot.data.formats.lerobot.writer import LeRobotWriter
from vla_robot.loop.control_loop import run_episode
from vla_robot.recipe.policy import ReplayRecipe
from vla_robot.record.collect import Collector, store
from vla_robot.record.replay import build_replay
from vla_robot.testing import FunctionPolicy, NoLimits, ToyWorld, toy_embodiment

pytest.importorskip("pyarrow")

POINT = toy_embodiment(step_m=1, reach_m=10, height=16, width=16)


def line(start: float | None = None) -> ToyWorld:
    """Return a world whose goal is x = 3 and whose start is the seed, or `start` for every seed."""
    return ToyWorld(embodiment=POINT, start=lambda seed: float(seed) if start is None else start, goal=3, horizon=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three demonstrations: one that fails, and two that arrive in two steps and in three; the labels are others."""
    label = FunctionPolicy(lambda observation: 0.25)
    world, writer = line(), LeRobotWriter(tmp_path / "demos")
    drivers = [
        (1, FunctionPolicy(lambda o: 0.0)),
        (1, FunctionPolicy(lambda o: 1.0)),
        (0, FunctionPolicy(lambda o: 1.0)),
    ]
    store((Collector(world, label, driver, "d").collect(seed) for seed, driver in drivers), writer)
    return tmp_path / "demos"


def test_the_first_success_is_repeated_and_arrives_only_where_it_began(data: Path) -> None:
    policy = build_replay(ReplayRecipe(data=data), POINT)
    outcomes = [run_episode(line(start), policy, 0, guard=NoLimits()) for start in (1.0, 0.0, 1.0)]
    assert [(o.outcome, o.steps) for o in outcomes] == [("success", 2), ("timeout", 8), ("success", 2)]


def test_an_episode_may_be_named(data: Path) -> None:
    policy = build_replay(ReplayRecipe(data=data, episode=2), POINT)
    assert run_episode(line(0.0), policy, 0, guard=NoLimits()).steps == 3
    with pytest.raises(DataError, match="no whole episode 7 of its 3"):
        build_replay(ReplayRecipe(data=data, episode=7), POINT)


def test_after_its_end_the_arm_stays_and_the_gripper_keeps_its_state(data: Path) -> None:
    policy = build_replay(ReplayRecipe(data=data), POINT)
    observation = line(1.0).reset(0)
    policy.reset(0)
    sent = [policy.act([replace(observation, step=step)])[0].actions[0] for step in range(4)]
    np.testing.assert_array_equal([a[0] for a in sent], [1, 1, 0, 0])
    assert sent[3][-1] == sent[1][-1]


def test_an_instruction_without_a_demonstration_is_refused(data: Path) -> None:
    policy = build_replay(ReplayRecipe(data=data), POINT)
    policy.reset(0)
    with pytest.raises(PolicyError, match="no successful demonstration of it: unknown instruction 'dance'"):
        policy.act([replace(line().reset(0), instruction="dance")])


def test_demonstrations_of_another_arm_are_refused(data: Path) -> None:
    with pytest.raises(ContractError, match="A replay needs the same"):
        build_replay(ReplayRecipe(data=data), toy_embodiment(step_m=2))
