"""The numbers that reports show."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_robot.loop.timing import by_stage, summarise


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_quantiles_are_ordered_and_within_the_data(durations_ms: list[float]) -> None:
    latency = summarise(durations_ms)
    assert min(durations_ms) <= latency.p50 <= latency.p99 <= latency.max == max(durations_ms)
    assert latency.count == len(durations_ms)


def test_quantiles_of_one_to_a_hundred() -> None:
    latency = summarise(np.arange(1, 101))
    assert (latency.p50, round(latency.p99, 2), latency.max) == (50.5, 99.01, 100)


def test_a_stage_counts_only_the_steps_that_had_it() -> None:
    table = by_stage([{"receive": 1.0, "policy": 20.0}, {"receive": 2.0}, {"receive": 3.0, "policy": 22.0}])
    assert {name: values.tolist() for name, values in table.items()} == {"receive": [1, 2, 3], "policy": [20, 22]}
