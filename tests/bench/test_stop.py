"""`vla bench stop`: every server and flood of it works, and rows compare each case with its server in peace."""

from __future__ import annotations

import itertools
from typing import cast

import pytest

from benchmarks import stop as bench_stop
from benchmarks.stop import (
    CASES,
    Case,
    Measured,
    StopArgs,
    _ask_for,
    _begin_again,
    _running_episode,
    _servers,
    _stop_bridge,
    _table,
    measure,
    measure_signal,
    rows,
)
from benchmarks.stop_peers import BRIDGE, FLOODS, OPENPI, VIEW
from vla_robot.core.errors import RecipeError, TransportError
from vla_robot.serve.bridge.remote_robot import RemoteRobot


@pytest.mark.parametrize(
    "case",
    [
        Case("bridge_keys/idle", BRIDGE, "idle", keys=True),
        Case("bridge/hellos", BRIDGE, "hellos"),
        Case("page/slow_head", VIEW, "slow_head", VIEW),
        Case("bridge/garbage", BRIDGE, "garbage"),
        Case("openpi/idle", OPENPI, "idle", OPENPI),
    ],
    ids=lambda case: case.name,
)
def test_a_stop_is_answered_under_a_flood(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes on a busy computer: the benchmark tells the times."""
    monkeypatch.setattr(bench_stop, "UNANSWERED_S", 60.0)
    found = measure(case, seconds=0.5)
    assert found.times_ms and found.unanswered == 0


def test_each_stop_meets_an_arm_that_runs() -> None:
    with _servers(Case("bridge/quiet", BRIDGE)) as servers, _running_episode(servers) as robot:
        for _ in range(3):
            assert robot.status()["running"]
            assert _stop_bridge(servers.addresses[BRIDGE], None)
            assert not robot.status()["running"]
            assert _begin_again(robot)


class _Refusing:
    """A robot at which every other episode does not begin."""

    def __init__(self) -> None:
        self.asked = 0

    def arm(self) -> None:
        """Ready."""

    def begin(self, seed: int) -> None:
        self.asked += 1
        if self.asked % 2:
            raise TransportError("no answer came in time.")


def test_episodes_that_do_not_begin_after_a_stop_are_counted_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_stop.time, "sleep", lambda seconds: None)
    robot, stops = _Refusing(), itertools.count(1)
    monkeypatch.setattr(bench_stop.time, "perf_counter", lambda: float(robot.asked))
    found = _ask_for(lambda: next(stops) != 3, cast(RemoteRobot, robot), seconds=5.0)
    assert (len(found.times_ms), found.unanswered, found.not_begun) == (4, 1, 3)
    made = {row["name"]: row["value"] for row in rows({Case("bridge/quiet", BRIDGE): found}, Measured([0.5], 0))}
    assert made["bridge/quiet/not_begun"] == 3
    table = _table({"bridge/quiet": found})
    assert (table.columns[-1].header, list(table.columns[-1].cells)) == ("not begun", ["3"])


def test_sigusr1_holds_the_arm_each_time() -> None:
    found = measure_signal(3)
    assert len(found.times_ms) == 3 and found.unanswered == 0


def test_a_row_compares_a_case_with_its_server_in_peace() -> None:
    results = {
        Case("bridge/quiet", BRIDGE): Measured([1.0, 3.0], 0),
        Case("bridge/idle", BRIDGE, "idle"): Measured([2.0, 6.0], 1),
        Case("page/quiet", VIEW): Measured([5.0], 0),
        Case("page/idle", VIEW, "idle", VIEW): Measured([], 2),
    }
    made = {row["name"]: row for row in rows(results, Measured([0.5], 0))}
    assert (made["bridge/idle/p50"]["value"], made["bridge/idle/p50"]["baseline"]) == (4.0, 2.0)
    assert made["bridge/idle/max"]["ratio"] == 2.0
    assert made["bridge/idle/unanswered"]["value"] == 1
    assert made["page/idle/p99"]["value"] is None and made["page/idle/unanswered"]["value"] == 2
    assert made["sigusr1/max"]["value"] == 0.5


def test_every_server_has_a_case_in_peace_and_every_flood_exists() -> None:
    assert {case.flood for case in CASES} - {None} == set(FLOODS)
    in_peace = {case.name.partition("/")[0] for case in CASES if case.flood is None}
    assert {case.name.partition("/")[0] for case in CASES} == in_peace


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(seconds: float) -> None:
    with pytest.raises(RecipeError, match="more than 0, at most 60"):
        StopArgs(seconds=seconds)
