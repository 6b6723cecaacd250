"""What a bridge counts, as Prometheus' own parser reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vla_robot.serve.metrics.program import Newest

HOLD_S, STOP_S = 0.5, 3.0


def samples(stage: Any) -> dict[tuple[str, ...], float]:
    """Return (name, label values ..) -> value of the bridge's present status."""
    newest, registry = Newest(), CollectorRegistry(auto_describe=False)
    newest.snapshot = {"kind": "bridge", "time_s": 1.0, "status": stage.status}
    registry.register(newest)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_holds_stops_and_clamps_are_counted(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(2.0)
    running = samples(stage)
    assert running["vla_bridge_mode", "run"] == 1.0
    assert running["vla_bridge_running",] == 1.0
    assert running["vla_bridge_watchdog_total", "holds"] == 0.0
    assert running["vla_bridge_ticks_total",] >= 18
    stage.controller.alive = False
    stage.play(HOLD_S + STOP_S + HOLD_S)
    stopped = samples(stage)
    assert stopped["vla_bridge_mode", "stopped"] == 1.0
    assert stopped["vla_bridge_running",] == 0.0
    assert stopped["vla_bridge_watchdog_total", "holds"] == 1.0
    assert stopped["vla_bridge_watchdog_total", "silence_stops"] == 1.0
    assert stopped["vla_bridge_watchdog_total", "emergency_stops"] == 0.0
    assert stopped["vla_bridge_events_total", "arm_failures"] == 0.0
    cuts = {(cut["dim"], cut["cause"]): cut["times"] for cut in stage.status["cuts"]}
    assert {key[1:]: n for key, n in stopped.items() if key[0] == "vla_bridge_clamps_total"} == cuts


def test_an_emergency_stop_is_counted_once_however_often_it_is_pressed(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    stage.begin()
    stage.play(1.0)
    for _ in range(3):
        stage.server.emergency_stop("a key")
    assert samples(stage)["vla_bridge_watchdog_total", "emergency_stops"] == 1.0


def test_the_times_of_a_commands_stages_are_those_that_the_arm_reports(make_stage: Callable[..., Any]) -> None:
    stage = make_stage()
    assert not [key for key in samples(stage) if key[0] == "vla_bridge_arm_stage_seconds"]
    stage.arm.last_stages_ms = {"bounds": 2.0}
    stage.begin()
    stage.play(1.0)
    assert stage.status["arm_stages_ms"] == {"bounds": {"p50": 2.0, "p99": 2.0}}
    shown = samples(stage)
    assert shown["vla_bridge_arm_stage_seconds", "0.5", "bounds"] == 0.002
    assert shown["vla_bridge_arm_stage_seconds", "0.99", "bounds"] == 0.002
