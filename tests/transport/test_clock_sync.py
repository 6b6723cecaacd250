"""The bound on the other clock's offset holds whatever the network does, and a clock that jumps is noticed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.errors import TransportError
from vla_robot.transport.clock_sync import MAX_DRIFT_PPM, ClockSample, ClockSync


@dataclass
class TwoComputers:
    """A clock here, one there that drifts against it, and a network in between."""

    offset_ns: float = 0.0
    drift_ppm: float = 0.0
    here: FakeClock = field(default_factory=lambda: FakeClock(10**15))

    def true_offset_ns(self) -> float:
        return self.offset_ns

    def there_ns(self) -> int:
        return round(self.here.now_ns() + self.offset_ns)

    def wait_ns(self, duration_ns: int) -> None:
        self.here.advance_ns(duration_ns)
        self.offset_ns += duration_ns * self.drift_ppm * 1e-6

    def exchange(self, there_ns: int, back_ns: int, answer_ns: int = 0) -> ClockSample:
        sent = self.here.now_ns()
        self.wait_ns(there_ns)
        received = self.there_ns()
        self.wait_ns(answer_ns)
        answered = self.there_ns()
        self.wait_ns(back_ns)
        return ClockSample(sent, received, answered, self.here.now_ns())


ways_ns = st.integers(0, 50 * NS_PER_MS)
exchanges = st.lists(
    st.tuples(
        ways_ns,  # there
        ways_ns,  # back: nothing says that both are alike
        st.integers(0, 5 * NS_PER_MS),  # answering
        st.integers(0, 2 * NS_PER_S),  # until the next one
        st.floats(-0.99 * MAX_DRIFT_PPM, 0.99 * MAX_DRIFT_PPM),  # temperature changes the drift
    ),
    min_size=1,
    max_size=20,
)


@given(st.integers(-(10**18), 10**14), exchanges)
def test_the_true_offset_always_lies_within_the_bound(
    start_ns: int, steps: list[tuple[int, int, int, int, float]]
) -> None:
    world, sync = TwoComputers(offset_ns=start_ns), ClockSync(window=8)
    for there_ns, back_ns, answer_ns, pause_ns, drift_ppm in steps:
        world.drift_ppm = drift_ppm
        assert sync.add(world.exchange(there_ns, back_ns, answer_ns))
        for _ in range(2):
            guess = sync.offset(world.here.now_ns())
            # float64 holds an offset of 10^18 ns to 128 ns.
            assert abs(guess.offset_ns - world.true_offset_ns()) <= guess.bound_ns + 256
            world.wait_ns(pause_ns)
    assert sync.jumps == 0


@given(exchanges, st.integers(0, 2 * NS_PER_S))
def test_the_true_age_always_lies_within_its_bound(
    steps: list[tuple[int, int, int, int, float]], waited_ns: int
) -> None:
    world, sync = TwoComputers(offset_ns=-5e9), ClockSync()
    for there_ns, back_ns, answer_ns, pause_ns, drift_ppm in steps:
        world.drift_ppm = drift_ppm
        stamp_ns, happened_ns = world.there_ns(), world.here.now_ns()
        sync.add(world.exchange(there_ns, back_ns, answer_ns))
        world.wait_ns(min(pause_ns, waited_ns))
        now_ns = world.here.now_ns()
        age_ns, bound_ns = sync.age_ns(stamp_ns, now_ns)
        assert abs(age_ns - (now_ns - happened_ns)) <= bound_ns + 2


def test_equal_ways_give_the_offset_itself() -> None:
    world = TwoComputers(offset_ns=7 * NS_PER_S)
    sync = ClockSync()
    sync.add(world.exchange(NS_PER_MS, NS_PER_MS))
    guess = sync.offset(world.here.now_ns())
    assert guess.offset_ns == 7 * NS_PER_S
    assert guess.bound_ns == pytest.approx(NS_PER_MS, rel=0.01)


def test_one_quick_exchange_outweighs_many_slow_ones() -> None:
    world, sync = TwoComputers(offset_ns=3e9), ClockSync(max_drift_ppm=0)
    for _ in range(10):
        sync.add(world.exchange(40 * NS_PER_MS, NS_PER_MS))
    slow = sync.offset(world.here.now_ns())
    sync.add(world.exchange(10_000, 10_000))
    assert slow.bound_ns > 15 * NS_PER_MS
    assert sync.offset(world.here.now_ns()).bound_ns <= 20_000 + 2


def test_unequal_ways_on_different_exchanges_pin_the_offset_from_both_sides() -> None:
    world, sync = TwoComputers(offset_ns=3e9), ClockSync(max_drift_ppm=0)
    sync.add(world.exchange(1_000, 30 * NS_PER_MS))
    sync.add(world.exchange(30 * NS_PER_MS, 1_000))
    guess = sync.offset(world.here.now_ns())
    assert abs(guess.offset_ns - 3e9) <= guess.bound_ns <= 2_002


def test_the_drift_is_found() -> None:
    world, sync = TwoComputers(offset_ns=1e9, drift_ppm=80.0), ClockSync()
    for _ in range(30):
        sync.add(world.exchange(100_000, 120_000))
        world.wait_ns(NS_PER_S)
    guess = sync.offset(world.here.now_ns())
    assert guess.drift_ppm == pytest.approx(80.0, abs=1.0)
    # A second after the last exchange, the line still hits: a held offset would be 80 us off.
    assert abs(guess.offset_ns - world.true_offset_ns()) < 20_000


def test_the_bound_grows_with_silence() -> None:
    world, sync = TwoComputers(), ClockSync()
    sync.add(world.exchange(1_000, 1_000))
    now_ns = world.here.now_ns()
    one_s, ten_s = (sync.offset(now_ns + s * NS_PER_S).bound_ns for s in (1, 10))
    assert one_s == pytest.approx(MAX_DRIFT_PPM * 1_000, rel=0.01)
    assert ten_s == pytest.approx(10 * MAX_DRIFT_PPM * 1_000, rel=0.01)


@pytest.mark.parametrize("jump_ns", [50 * NS_PER_MS, -50 * NS_PER_MS, 3600 * NS_PER_S, -(10**15)])
def test_a_clock_that_jumps_between_exchanges_is_noticed_and_known_anew(jump_ns: int) -> None:
    world, sync = TwoComputers(offset_ns=1e9), ClockSync()
    for _ in range(5):
        assert sync.add(world.exchange(NS_PER_MS, NS_PER_MS))
        world.wait_ns(NS_PER_S // 10)
    world.offset_ns += jump_ns
    assert not sync.add(world.exchange(NS_PER_MS, NS_PER_MS))
    assert sync.jumps == 1
    guess = sync.offset(world.here.now_ns())
    assert abs(guess.offset_ns - world.true_offset_ns()) <= guess.bound_ns
    assert sync.add(world.exchange(NS_PER_MS, NS_PER_MS))


@pytest.mark.parametrize(
    "sample",
    [
        ClockSample(sent_ns=1000, received_ns=50, answered_ns=60, returned_ns=900),
        ClockSample(sent_ns=1000, received_ns=60, answered_ns=50, returned_ns=1100),
        ClockSample(sent_ns=1000, received_ns=50, answered_ns=10_000, returned_ns=1100),
    ],
    ids=["here, back", "there, back", "there, forward"],
)
def test_a_clock_that_jumps_within_an_exchange_makes_it_void(sample: ClockSample) -> None:
    sync = ClockSync()
    sync.add(TwoComputers(offset_ns=1e9).exchange(1_000, 1_000))
    assert not sync.add(sample)
    assert not sync.ready


def test_a_jump_smaller_than_the_bound_cannot_be_told_from_the_network() -> None:
    world, sync = TwoComputers(), ClockSync()
    sync.add(world.exchange(20 * NS_PER_MS, 20 * NS_PER_MS))
    world.offset_ns += 10 * NS_PER_MS
    assert sync.add(world.exchange(20 * NS_PER_MS, 20 * NS_PER_MS))


def test_before_the_first_exchange_nothing_is_known() -> None:
    for ask in (ClockSync().offset, lambda now_ns: ClockSync().age_ns(0, now_ns)):
        with pytest.raises(TransportError, match="no stamps were exchanged"):
            ask(5)
