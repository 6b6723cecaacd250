"""Real-time chunking over a bridge: what is committed reaches the policy, and its word decides what its rows count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.messages import ActionChunk, Observation
from vla_robot.core.robot import Tick
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, ExecutionConfig, Ticked
from vla_robot.testing import ToyArm, toy_embodiment
from vla_robot.transport.bridge_codec import pack_tick, unpack_tick
from vla_robot.transport.codec import MessageReader, pack_action_chunk, unpack_action_chunk

PERIOD_MS = 20
ROWS = 8
ARM = toy_embodiment(reach_m=9, rate_hz=1000 / PERIOD_MS)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start_ns=10**12)


@pytest.fixture
def wanted() -> list[float]:
    """What the plan said at each tick, before the limits."""
    return []


@pytest.fixture
def bridge(clock: FakeClock, wanted: list[float]) -> Bridge:
    def note(event: object) -> None:
        if isinstance(event, Ticked) and event.wanted is not None:
            wanted.append(float(event.wanted[0]))

    limits = SafetyFilter(ARM, limits_of(ARM, LimitsRecipe()))
    return Bridge(
        ToyArm(clock, ARM, can_wait=False), limits, Watchdog(clock), clock, ExecutionConfig(splice="rtc"), note
    )


def ticks(bridge: Bridge, clock: FakeClock, count: int) -> list[Tick]:
    passed: list[Tick] = []
    for _ in range(count):
        clock.advance_ns(PERIOD_MS * NS_PER_MS)
        bridge.watchdog.beat()
        passed.append(bridge.tick())
    return passed


def over_the_wire(tick: Tick) -> Observation:
    return unpack_tick(MessageReader(pack_tick(tick, {}, 0), "tick")).result.observation


def chunk_of(observation: Observation, values: Any, conditioned: bool) -> ActionChunk:
    rows = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    chunk = ActionChunk(rows, observation.stamp_ns, observation.step, conditioned=conditioned)
    return unpack_action_chunk(MessageReader(pack_action_chunk(chunk), "chunk"))


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_conditioned_chunk_is_played_as_it_is_and_any_other_is_laid_over_the_plan(
    bridge: Bridge, clock: FakeClock, wanted: list[float], conditioned: bool
) -> None:
    first = bridge.begin(1, 0)
    clock.advance_ns(PERIOD_MS * NS_PER_MS)
    bridge.watchdog.beat()
    bridge.put(chunk_of(first, [0.01] * ROWS, conditioned))  # an answer takes one period, as the bridge has seen now

    seen = over_the_wire(ticks(bridge, clock, 1)[-1])
    assert seen.step == 1 and seen.committed is not None
    np.testing.assert_array_equal(seen.committed, [[0.01, 1.0]])
    assert seen.planned is not None and seen.planned.tolist() == [[0.01, 1.0]] * (ROWS - 2)

    ticks(bridge, clock, 1)  # while the policy thinks, the arm does what it has committed to
    own = [float(seen.committed[0, 0]), *[-0.02] * (ROWS - 1)]
    assert bridge.put(chunk_of(seen, own, conditioned)) == 1
    wanted.clear()
    ticks(bridge, clock, ROWS - 1)
    played = list(wanted)
    assert (played == [-0.02] * (ROWS - 1)) == conditioned
    assert played[0] == pytest.approx(-0.02) or -0.02 < played[0] < 0.01
    assert played[-1] == -0.02


def test_what_is_committed_and_the_mark_survive_the_wire(clock: FakeClock) -> None:
    chunk = ActionChunk(np.zeros((2, 2)), 5, 1, conditioned=True)
    assert unpack_action_chunk(MessageReader(pack_action_chunk(chunk), "chunk")).conditioned
    plain = replace(chunk, conditioned=False)
    assert "conditioned" not in pack_action_chunk(plain)
