"""Converts snapshots, which are plain data, to families of Prometheus' metrics.

Labels have few values: names of errors, limits, dimensions, states and numbers of replicas. What goes beyond MAX_VALUES
of them is summed under "other", so that no client can fill the memory of who stores the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from vla_robot.core.robot import Mode
from vla_robot.serve.policy.tally import RETRIED, TIME_BOUNDS_S

MAX_VALUES = 64
"""Most values of a label, or of a pair of labels."""

OTHER = "other"

ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the classes of batch sizes [rows]."""

REPLICA_STATES = ("starting", "ready", "draining", "waiting")
MODES: tuple[Mode, ...] = ("run", "hold", "stopped")


def families(snapshot: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of a snapshot.

    Args:
        snapshot: "kind" ("serve" or "bridge"), "time_s" (seconds since 1970), "status" of the server, and for "serve"
            "histograms": name -> {"counts", "sum_s"}.
    """
    kind, status = snapshot["kind"], snapshot["status"]
    when = GaugeMetricFamily(
        f"vla_{kind}_snapshot_timestamp_seconds",
        "Time of these numbers; it stands still if the server hangs.",
        value=snapshot["time_s"],
    )
    yield when
    yield from _serve(status, snapshot["histograms"]) if kind == "serve" else _bridge(status)


def _serve(status: Mapping[str, Any], histograms: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    counts = dict(status["counts"])
    yield _counter("vla_serve_retried_requests", "Requests whose replica was lost.", counts.pop(RETRIED, 0))
    yield _counters("vla_serve_requests", "Requests by outcome.", ("outcome",), ((n, (k,)) for k, n in counts.items()))
    waiting = "Requests that wait for a batch."
    yield GaugeMetricFamily("vla_serve_waiting_requests", waiting, value=status["waiting"])
    yield _sizes("vla_serve_batch_rows", "Observations of an inference.", status["batches"])
    for name, each, text in (
        ("vla_serve_queue_seconds", "wait", "From a request's arrival to its batch."),
        ("vla_serve_inference_seconds", "inference", "From a batch's begin to its answers."),
    ):
        yield _times(name, text, histograms[each]["counts"], histograms[each]["sum_s"])
    if replicas := status.get("replicas"):
        yield from _replicas(replicas)


def _replicas(replicas: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    states = [replica["state"] for replica in replicas]
    gauge = GaugeMetricFamily("vla_serve_replicas", "Replicas by state.", labels=["state"])
    for state in REPLICA_STATES:
        gauge.add_metric([state], states.count(state))
    yield gauge
    for key, text in (("restarts", "Starts after the first."), ("rows", "Observations answered.")):
        values = ((replica[key], (str(number),)) for number, replica in enumerate(replicas))
        yield _counters(f"vla_serve_replica_{key}", text, ("replica",), values)


def _bridge(status: Mapping[str, Any]) -> Iterator[Metric]:
    mode = GaugeMetricFamily("vla_bridge_mode", "1 for the arm's present mode.", labels=["mode"])
    for each in MODES:
        mode.add_metric([each], float(status["mode"] == each))
    yield mode
    yield GaugeMetricFamily("vla_bridge_running", "1 while an episode runs.", value=float(status["running"]))
    yield _counter("vla_bridge_ticks", "Control ticks.", status["ticks"])
    watchdog = ((count, (event,)) for event, count in status["watchdog"].items())
    yield _counters("vla_bridge_watchdog", "Holds and stops by cause.", ("event",), watchdog)
    cuts = ((cut["times"], (cut["dim"], cut["cause"])) for cut in status["cuts"])
    yield _counters("vla_bridge_clamps", "Actions that a limit changed.", ("dim", "cause"), cuts)
    yield _arm_stages(status["arm_stages_ms"])
    events = ((count, (event,)) for event, count in status["counts"].items())
    yield _counters("vla_bridge_events", "Refused, late and lost things, and failures.", ("event",), events)


def _arm_stages(stages_ms: Mapping[str, Mapping[str, float]]) -> Metric:
    text = "Times of the newest commands' stages."
    family = GaugeMetricFamily("vla_bridge_arm_stage_seconds", text, labels=["stage", "quantile"])
    for stage, times_ms in stages_ms.items():
        for quantile, label in (("p50", "0.5"), ("p99", "0.99")):
            family.add_metric([stage, label], times_ms[quantile] / 1e3)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[float, Sequence[str]]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    ordered = sorted(values, key=lambda value: -value[0])
    for value, names in ordered[:MAX_VALUES]:
        family.add_metric(list(names), value)
    if ordered[MAX_VALUES:]:
        family.add_metric([OTHER] * len(labels), sum(value for value, _ in ordered[MAX_VALUES:]))
    return family


def _sizes(name: str, text: str, batches: Mapping[str, int]) -> Metric:
    sizes = {int(size): count for size, count in batches.items()}
    classes = [(str(float(b)), sum(n for size, n in sizes.items() if size <= b)) for b in ROW_BOUNDS]
    rows = sum(size * count for size, count in sizes.items())
    return HistogramMetricFamily(name, text, buckets=[*classes, ("+Inf", sum(sizes.values()))], sum_value=rows)


def _times(name: str, text: str, counts: Sequence[int], sum_s: float) -> Metric:
    bounds = [*map(str, TIME_BOUNDS_S), "+Inf"]
    return HistogramMetricFamily(
        name, text, buckets=list(zip(bounds, accumulate(counts), strict=True)), sum_value=sum_s
    )
