"""Metrics as Prometheus' own parser reads them, from a process whose floods and failures do not reach its server."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from waiting import eventually

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.errors import ContractError, OverdueError, RecipeError, TransportError
from vla_robot.core.messages import ActionChunk
from vla_robot.serve.metrics.families import MAX_VALUES, families
from vla_robot.serve.metrics.process import MetricsProcess, Periodic, metrics_address
from vla_robot.serve.metrics.program import Newest
from vla_robot.serve.policy.tally import Tally


def snapshot(tally: Tally, **more: Any) -> dict[str, Any]:
    histograms = {name: asdict(histogram) for name, histogram in tally.histograms().items()}
    status = {"waiting": 3, **tally.summary(), **more}
    return {"kind": "serve", "status": status, "histograms": histograms}


def parsed(shot: Mapping[str, Any]) -> dict[str, Metric]:
    newest, registry = Newest(), CollectorRegistry(auto_describe=False)
    newest.snapshot = {**json.loads(json.dumps(shot)), "time_s": 5.0}
    registry.register(newest)
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    return {(sample.name.removeprefix(family.name), *sample.labels.values()): sample.value for sample in family.samples}


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    for error in (ContractError("no"), OverdueError("late"), OverdueError("late")):
        tally.answered(error)
    chunk = ActionChunk(actions=np.zeros((1, 1)), stamp_ns=0, step=0)
    for _ in range(7):
        tally.answered(chunk)
    tally.count("retried", 2)
    for rows, ms in ((1, 4), (4, 40), (2, 99_000)):
        tally.batch(rows, ms * NS_PER_MS)
        tally.waited(2 * ms * NS_PER_MS)
    return tally


def test_counts_sizes_and_times_of_a_policy_server(tally: Tally) -> None:
    found = parsed(snapshot(tally))
    outcomes = {"answered": 7.0, "OverdueError": 2.0, "ContractError": 1.0}
    assert values(found["vla_serve_requests"]) == {("_total", name): n for name, n in outcomes.items()}
    assert values(found["vla_serve_retried_requests"]) == {("_total",): 2.0}
    assert values(found["vla_serve_waiting_requests"]) == {("",): 3.0}
    rows = values(found["vla_serve_batch_rows"])
    assert (rows["_count",], rows["_sum",], rows["_bucket", "2.0"]) == (3.0, 7.0, 2.0)
    inference = values(found["vla_serve_inference_seconds"])
    assert (inference["_count",], inference["_sum",]) == (3.0, pytest.approx(99.044))
    assert inference["_bucket", "0.005"] == 1.0
    assert (inference["_bucket", "10.0"], inference["_bucket", "+Inf"]) == (2.0, 3.0)
    assert found["vla_serve_inference_seconds"].type == "histogram"
    assert values(found["vla_serve_queue_seconds"])["_sum",] == pytest.approx(198.088)
    assert "vla_serve_replicas" not in found


def test_classes_of_a_histogram_only_grow(tally: Tally) -> None:
    for family in parsed(snapshot(tally)).values():
        if family.type == "histogram":
            buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1][0] == math.inf


def test_replicas_are_labelled_by_number_and_state(tally: Tally) -> None:
    replicas = [
        {"state": state, "pid": 4711, "device": "cpu", "restarts": n, "rows": 10 * n}
        for n, state in enumerate(("ready", "ready", "waiting"))
    ]
    found = parsed(snapshot(tally, replicas=replicas))
    states = {"starting": 0.0, "ready": 2.0, "draining": 0.0, "waiting": 1.0}
    assert values(found["vla_serve_replicas"]) == {("", state): n for state, n in states.items()}
    assert values(found["vla_serve_replica_rows"]) == {("_total", str(n)): 10.0 * n for n in range(3)}


def test_labels_have_a_bounded_number_of_values(tally: Tally) -> None:
    shot = snapshot(tally)
    shot["status"]["counts"] = {f"Error{n}": n + 1 for n in range(1000)}
    counts = values(parsed(shot)["vla_serve_requests"])
    assert len(counts) == MAX_VALUES + 1
    assert sum(counts.values()) == sum(range(1, 1001))


@pytest.fixture
def process(tally: Tally) -> Iterator[MetricsProcess]:
    with MetricsProcess("127.0.0.1", 0) as process:
        process.publish(snapshot(tally))
        eventually(lambda: b"vla_serve" in get(process.url))
        yield process


def get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read()


def test_the_process_answers_with_the_newest_snapshot(process: MetricsProcess, tally: Tally) -> None:
    with urllib.request.urlopen(process.url, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    tally.count("retried", 5)
    before_s = time.time()
    process.publish(snapshot(tally))
    eventually(lambda: b"vla_serve_retried_requests_total 7.0" in get(process.url))
    found = {family.name: family for family in text_string_to_metric_families(get(process.url).decode())}
    assert values(found["vla_serve_snapshot_timestamp_seconds"])["",] >= before_s - 1.0


def test_silent_connections_keep_nobody_out(process: MetricsProcess) -> None:
    place = urlsplit(process.url)
    assert place.port is not None
    silent = [socket.create_connection((place.hostname, place.port)) for _ in range(300)]
    for connection in silent[:100]:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")  # and no more of it
    assert b"vla_serve" in get(process.url)
    for connection in silent:
        connection.close()


@pytest.mark.parametrize(
    ("path", "headers", "status"), [("/", {}, 404), ("/metrics", {"Host": "example.org"}, 403)], ids=["page", "site"]
)
def test_nothing_else_is_answered(process: MetricsProcess, path: str, headers: dict[str, str], status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        get(process.url.removesuffix("/metrics") + path, **headers)
    assert raised.value.code == status


def test_a_taken_port_is_told_before_anything_starts(process: MetricsProcess) -> None:
    with pytest.raises(TransportError, match=r"cannot serve metrics on 127\.0\.0\.1:\d+: Address already in use"):
        MetricsProcess("127.0.0.1", urlsplit(process.url).port or 0)


def test_a_process_that_dies_or_does_not_read_never_stops_or_delays_who_publishes(
    process: MetricsProcess, tally: Tally
) -> None:
    pid = process._process.pid
    os.kill(pid, signal.SIGSTOP)
    for _ in range(2000):  # more than a pipe holds: a waiting send would never return
        process.publish(snapshot(tally))
    os.kill(pid, signal.SIGKILL)
    process._process.wait()
    process.publish(snapshot(tally))
    process.publish(snapshot(tally))


def test_a_snapshot_is_made_once_a_second_however_often_the_loop_turns(process: MetricsProcess, tally: Tally) -> None:
    made: list[int] = []

    def shot() -> dict[str, Any]:
        made.append(1)
        return snapshot(tally)

    periodic, begin_s = Periodic(process, shot), time.monotonic()
    for _ in range(1000):
        periodic()
    assert 1 <= len(made) <= 1 + (time.monotonic() - begin_s)


@pytest.mark.parametrize("text", ["here", "70000", "host:", ":80", "-1", "1.5"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="a port of this computer"):
        metrics_address(text)


def test_families_of_one_snapshot_have_distinct_names(tally: Tally) -> None:
    names = [family.name for family in families({**snapshot(tally), "time_s": 0.0})]
    assert len(names) == len(set(names))
