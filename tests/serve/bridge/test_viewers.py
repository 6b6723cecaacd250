"""Who watches a bridge gets the newest tick, never more than it takes, and takes no time from anybody else."""

from __future__ import annotations

import numpy as np
import pytest

from vla_robot.core.clock import NS_PER_MS, FakeClock
from vla_robot.core.errors import TransportError
from vla_robot.core.messages import Clamp, Observation, StepResult
from vla_robot.core.robot import Tick
from vla_robot.serve.bridge.viewers import MOST_HZ, MOST_VIEWERS, RESEND_S, SILENT_S, Viewers

PERIOD_MS = round(1000 / MOST_HZ)


def tick(step: int = 0, *clamps: Clamp) -> Tick:
    seen = Observation({}, np.zeros(1), "lift", stamp_ns=0, step=step)
    return Tick(StepResult(seen, np.zeros(2), False, False, False, clamps), "hold", "", -1, 0, 0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def viewers(clock: FakeClock) -> Viewers:
    return Viewers(clock)


def test_a_tick_goes_to_everybody_who_watches_once(viewers: Viewers) -> None:
    viewers.acknowledge(b"a", 0)
    viewers.acknowledge(b"b", 0)
    assert viewers.due() == []
    viewers.push(tick())
    assert viewers.due() == [b"a", b"b"]
    assert viewers.due() == []


def test_a_slow_viewer_gets_the_newest_tick_and_the_quick_one_gets_all(viewers: Viewers, clock: FakeClock) -> None:
    viewers.acknowledge(b"slow", 0)
    viewers.acknowledge(b"quick", 0)
    sent: list[list[bytes]] = []
    for number in range(1, 6):
        viewers.push(tick(number))
        sent.append(viewers.due())
        viewers.acknowledge(b"quick", number)
        clock.advance_ns(PERIOD_MS * NS_PER_MS)
    assert sent == [[b"slow", b"quick"], *([[b"quick"]] * 4)]
    viewers.acknowledge(b"slow", 1)
    assert viewers.due() == [b"slow"]
    assert viewers.newest is not None and viewers.newest.result.observation.step == 5


def test_nobody_gets_more_ticks_than_a_person_sees(viewers: Viewers, clock: FakeClock) -> None:
    viewers.acknowledge(b"a", 0)
    sent = 0
    for number in range(100):  # at 100 Hz
        viewers.push(tick(number))
        sent += len(viewers.due())
        viewers.acknowledge(b"a", viewers.number)
        clock.advance_ns(10 * NS_PER_MS)
    assert 0.9 * MOST_HZ <= sent <= MOST_HZ


def test_what_was_lost_on_the_way_is_sent_again(viewers: Viewers, clock: FakeClock) -> None:
    viewers.acknowledge(b"a", 0)
    viewers.push(tick())
    assert viewers.due() == [b"a"]
    clock.advance_ns(round(RESEND_S * 1000) * NS_PER_MS)
    viewers.acknowledge(b"a", 0)
    assert viewers.due() == [b"a"]


def test_who_says_nothing_more_is_forgotten(viewers: Viewers, clock: FakeClock) -> None:
    viewers.acknowledge(b"a", 0)
    clock.advance_ns(round(SILENT_S * 1000 + 1) * NS_PER_MS)
    viewers.push(tick())
    assert viewers.due() == [] and len(viewers) == 0


def test_too_many_viewers_are_refused_until_one_leaves(viewers: Viewers) -> None:
    for k in range(MOST_VIEWERS):
        viewers.acknowledge(bytes([k]), 0)
    with pytest.raises(TransportError, match=f"{MOST_VIEWERS} viewers watch this bridge already"):
        viewers.acknowledge(b"one more", 0)
    viewers.drop(bytes([0]))
    viewers.acknowledge(b"one more", 0)


def test_a_number_from_the_future_is_not_believed(viewers: Viewers) -> None:
    viewers.acknowledge(b"a", 10**12)
    viewers.push(tick())
    assert viewers.due() == [b"a"]


def test_what_limits_cut_is_counted_whoever_saw_the_tick(viewers: Viewers) -> None:
    viewers.push(tick(1, Clamp("dx", "range", 0.2, 0.05), Clamp("dz", "reach", 0.02, 0.01)))
    viewers.push(tick(2, Clamp("dx", "range", 0.3, 0.05)))
    dx, dz = viewers.cuts()
    assert dx == {"dim": "dx", "cause": "range", "times": 2, "wanted": 0.3, "allowed": 0.05}
    assert dz["times"] == 1
