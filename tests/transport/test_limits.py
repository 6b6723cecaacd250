"""A client gets its rate and no more; stop always gets through."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.core.clock import NS_PER_MS, NS_PER_S, FakeClock
from vla_robot.core.errors import TransportError
from vla_robot.transport.limits import MAX_CLIENTS, RateLimit


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def admitted(limit: RateLimit, client: str, requests: int) -> int:
    count = 0
    for _ in range(requests):
        with contextlib.suppress(TransportError):
            limit.admit(client, "chunk")
            count += 1
    return count


def test_a_burst_is_admitted_and_then_the_rate(clock: FakeClock) -> None:
    limit = RateLimit(10.0, 5, clock)
    assert admitted(limit, "desk", 20) == 5
    clock.advance_ns(NS_PER_S)
    assert admitted(limit, "desk", 20) == 5  # a second brings ten, the bucket holds five
    clock.advance_ns(200 * NS_PER_MS)
    assert admitted(limit, "desk", 20) == 2
    assert limit.refused == 15 + 15 + 18


def test_the_refusal_names_client_rate_and_request(clock: FakeClock) -> None:
    limit = RateLimit(10.0, 1, clock)
    limit.admit("desk", "chunk")
    with pytest.raises(TransportError, match=r"client 'desk' asks for more than 10 requests a second; 'chunk' was"):
        limit.admit("desk", "chunk")


def test_one_client_does_not_spend_what_is_anothers(clock: FakeClock) -> None:
    limit = RateLimit(10.0, 3, clock)
    assert admitted(limit, "desk", 10) == 3
    assert admitted(limit, "lab", 10) == 3


def test_stop_is_always_admitted_and_costs_nothing(clock: FakeClock) -> None:
    limit = RateLimit(10.0, 1, clock)
    for _ in range(100):
        limit.admit("desk", "stop")
    assert admitted(limit, "desk", 1) == 1
    limit.admit("desk", "stop")


def test_a_client_at_its_rate_is_never_refused(clock: FakeClock) -> None:
    limit = RateLimit(10.0, 2, clock)
    for _ in range(500):
        limit.admit("desk", "chunk")
        clock.advance_ns(101 * NS_PER_MS)


def test_many_clients_do_not_fill_the_memory(clock: FakeClock) -> None:
    limit = RateLimit(1.0, 1, clock)
    for index in range(MAX_CLIENTS * 3):
        limit.admit(f"client {index}", "chunk")
    assert len(limit._buckets) == MAX_CLIENTS


@pytest.mark.parametrize(("rate_hz", "burst"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (1.0, 0)])
def test_a_limit_that_lets_nobody_through_is_refused(clock: FakeClock, rate_hz: float, burst: int) -> None:
    with pytest.raises(TransportError, match="lets none through"):
        RateLimit(rate_hz, burst, clock)


@given(st.lists(st.tuples(st.integers(-NS_PER_S, NS_PER_S), st.integers(0, 5)), max_size=40))
def test_no_pattern_gets_more_than_burst_and_rate(pauses: list[tuple[int, int]]) -> None:
    clock = FakeClock(10 * NS_PER_S)
    limit = RateLimit(7.0, 4, clock)
    count, forward_ns = 0, 0
    for pause_ns, requests in pauses:
        clock.advance_ns(pause_ns)  # backwards too
        forward_ns += max(pause_ns, 0)
        count += admitted(limit, "desk", requests)
    assert count <= 4 + 7.0 * forward_ns / NS_PER_S + 1e-6
