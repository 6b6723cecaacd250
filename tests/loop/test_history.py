"""A policy that reads several observations gets those of the control steps before, in both loops and in wrappers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import FakeClock
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.ports import Guard
from vla_robot.loop.control_loop import run_episode
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.loop.takeover import Takeover
from vla_robot.policy.adapter import ObservationAdapter
from vla_robot.policy.execution_horizon import ExecutionHorizon
from vla_robot.record.collect import WithoutTruth
from vla_robot.safety.limits import RangeGuard
from vla_robot.serve.policy.shared_policy import SharedPolicy
from vla_robot.testing import ScriptedTeleoperator

from .conftest import EMBODIMENT
from .test_live_loop import SPACE, Ticking


class Reader:
    """Reads two earlier observations, and notes the steps of those that it got."""

    history_steps = 2

    def __init__(self) -> None:
        self.got: list[tuple[int, list[int]]] = []

    def reset(self, seed: int) -> None:
        self.got.clear()

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        (seen,) = observations
        assert all(not o.privileged and not o.before for o in seen.before)
        self.got.append((seen.step, [o.step for o in seen.before]))
        return [ActionChunk(np.zeros((4, 2)), seen.stamp_ns, seen.step)]


def shared(policy: Any, kept: contextlib.ExitStack) -> Any:
    return kept.enter_context(SharedPolicy(policy, 1)).seat()


def beside_a_person(policy: Any, kept: contextlib.ExitStack) -> Any:
    teleop = ScriptedTeleoperator()
    return kept.enter_context(Takeover(policy, teleop, EMBODIMENT, row_by_row=False))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda policy, kept: policy,
        lambda policy, kept: ExecutionHorizon(policy, 3),
        lambda policy, kept: ObservationAdapter(policy, EMBODIMENT, EMBODIMENT),
        lambda policy, kept: WithoutTruth(policy),
        shared,
        beside_a_person,
    ],
)
def test_a_world_that_waits(
    wrap: Callable[..., Any], make_world: Callable[..., Any], clock: FakeClock, guard: Guard
) -> None:
    reader = Reader()
    world = make_world(succeed_at=None, horizon=9)
    with contextlib.ExitStack() as kept:
        policy = wrap(reader, kept)
        run_episode(world, policy, 7, guard=guard, clock=clock)
    every = 3 if isinstance(policy, ExecutionHorizon) else 4
    assert reader.got == [(step, [k for k in (step - 2, step - 1) if k >= 0]) for step in range(0, 9, every)]


def test_an_episode_begins_without_the_last_ones_observations(
    make_world: Callable[..., Any], clock: FakeClock, guard: Guard
) -> None:
    reader = Reader()
    for _ in range(2):
        run_episode(make_world(succeed_at=None, horizon=5), reader, 7, guard=guard, clock=clock)
        assert reader.got[0] == (0, [])


def test_a_robot_with_its_own_clock_whose_ticks_may_be_lost() -> None:
    reader = Reader()
    robot = Ticking(horizon=12, lost=lambda step: step in (6, 7))
    run_live_episode(robot, reader, 3, guard=RangeGuard(SPACE), clock=robot.clock)
    got = dict(reader.got)
    assert got[0] == [] and got[1] == [0] and got[5] == [3, 4]
    assert got[8] == [4, 5] and got[9] == [5, 8]  # what was lost was never seen
