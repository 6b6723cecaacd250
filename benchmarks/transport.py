"""`vla bench transport`: observations per second between two processes, next to two other protocols.

    client                                      server, a process of its own
    observation -> bytes  ======loopback=====>  bytes -> arrays
                          <------ a number ---

One observation is sent at a time, as between a robot and its policy. The contenders send the same one in turns, so
that other load on the computer affects them alike. Encoding and decoding count, also of JPEG.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from benchmarks.transport_contenders import CONTENDERS, Exchange, running
from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_figure, write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.errors import RecipeError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import Image, Observation

OURS, *BASELINES = CONTENDERS

SIZES = ((224, 224), (480, 640))
"""Height and width of a policy's frames, and of a camera's, in pixels."""
CAMERAS = ("front", "wrist")
JPEG_QUALITY = 90

DECADES = (1, 10, 100, 1000, 10_000)
"""Observations per second that are marked on the plot's axis."""

ROUNDS = 8
WARM_UP = 3
"""Exchanges that are not counted, while connections are made and buffers grow."""


@dataclass(frozen=True)
class TransportArgs:
    """Measure observations per second between two processes, next to JSON with base64 and WebSockets with msgpack."""

    seconds: Annotated[float, option("S")] = 4.0
    """duration for each contender in each of the four cases"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
    plot: Annotated[Path | None, option("FILE.png")] = None
    """also plot the results to this file"""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < 3600:
            raise RecipeError(f"--seconds {self.seconds:g}: more than 0, less than an hour.")


@dataclass(frozen=True)
class Case:
    """The frames that are sent.

    Attributes:
        height, width: size of each frame in pixels.
        quality: quality of JPEG; None sends raw frames.
    """

    height: int
    width: int
    quality: int | None

    @property
    def name(self) -> str:
        coding = "raw" if self.quality is None else f"jpeg{self.quality}"
        return f"{len(CAMERAS)}x{self.width}x{self.height}/{coding}"


CASES = tuple(Case(*size, quality) for quality in (None, JPEG_QUALITY) for size in SIZES)


@dataclass
class Tally:
    """The measurements of one contender in one case."""

    durations_s: list[float] = field(default_factory=list[float])
    sent_bytes: int = 0

    @property
    def rate_hz(self) -> float:
        return len(self.durations_s) / sum(self.durations_s)

    @property
    def bytes_per_s(self) -> float:
        return self.sent_bytes / sum(self.durations_s)

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.durations_s, percent)) * 1e3


Results = Mapping[Case, Mapping[str, Tally]]


def main(args: TransportArgs) -> int:
    """Measure, and print a line for each case and contender.

    Raises:
        MissingDependencyError: a contender's package, or the plot's, is not installed.
        TransportError: a contender does not answer.
    """
    if args.plot:
        require("matplotlib", "report", "a plot")
    say("vla bench transport: one observation at a time, two cameras, over the loopback interface", flush=True)
    results = measure(args.seconds)
    Terminal().print(_table(results))
    if args.json:
        write_json(args.json, "bench transport", rows(results))
    if args.plot:
        _draw(results, args.plot)
        say(f"\nDrawn in {short_path(args.plot)}.")
    return 0


def measure(seconds: float, cases: Sequence[Case] = CASES) -> Results:
    """Run all contenders in turns in each case."""
    with contextlib.ExitStack() as stack:
        exchanges = {name: stack.enter_context(running(name)) for name in CONTENDERS}
        return {case: _take_turns(exchanges, case, seconds) for case in cases}


def rows(results: Results) -> list[dict[str, Any]]:
    """Return a row for each case, measure and baseline."""
    return [
        _row(f"{name}/{case.name}/vs_{baseline}", unit, getattr(tallies[OURS], name), getattr(tallies[baseline], name))
        for case, tallies in results.items()
        for name, unit in (("rate_hz", "observations/s"), ("bytes_per_s", "B/s"))
        for baseline in BASELINES
    ]


def scene(height: int, width: int) -> Image:
    """Return a (height, width, 3) uint8 image, smooth with some texture, like a camera's. Always the same one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 200 // width, y * 200 // height, (x + y) * 200 // (height + width)], axis=-1)
    return (smooth + rng.integers(0, 12, smooth.shape)).astype(np.uint8)


def _take_turns(exchanges: Mapping[str, Exchange], case: Case, seconds: float) -> dict[str, Tally]:
    image = scene(case.height, case.width)
    observation = Observation(dict.fromkeys(CAMERAS, image), np.zeros(8), "lift the red cube", stamp_ns=1, step=0)
    tallies = {name: Tally() for name in exchanges}
    for exchange in exchanges.values():
        for _ in range(WARM_UP):
            exchange(observation, case.quality)
    for _ in range(ROUNDS):
        for name, exchange in exchanges.items():
            _run(exchange, observation, case.quality, seconds / ROUNDS, tallies[name])
    return tallies


def _run(exchange: Exchange, observation: Observation, quality: int | None, seconds: float, tally: Tally) -> None:
    end_s = time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < end_s:
        tally.sent_bytes += exchange(observation, quality)
        tally.durations_s.append(time.perf_counter() - start_s)


def _row(name: str, unit: str, value: float, baseline: float) -> dict[str, Any]:
    return row(name, value, unit, baseline, value / baseline)


def _table(results: Results) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("two cameras", "sent by"):
        table.add_column(column, no_wrap=True)
    for column in ("per s", "MB/s", "p50 ms", "p99 ms", "ours is"):
        table.add_column(column, justify="right", no_wrap=True)
    for case, tallies in results.items():
        for name, tally in tallies.items():
            times = "" if name == OURS else f"{tallies[OURS].rate_hz / tally.rate_hz:.1f}x"
            table.add_row(
                case.name if name == OURS else "",
                name,
                f"{tally.rate_hz:.0f}",
                f"{tally.bytes_per_s / 1e6:.0f}",
                f"{tally.percentile_ms(50):.2f}",
                f"{tally.percentile_ms(99):.2f}",
                times,
            )
    return table


def _draw(results: Results, path: Path) -> None:
    """Plot a bar of observations per second for each contender and case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.5), layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True)
    for panel, (case, tallies) in zip(axes, results.items(), strict=True):
        bars = panel.bar(range(len(tallies)), [t.rate_hz for t in tallies.values()], color=["C0", "C9", "C7", "C8"])
        panel.bar_label(bars, fmt="%.0f")
        panel.set_title(case.name.replace("/", "\n"), fontsize=10)
        panel.set_xticks(range(len(tallies)), [name.replace("_", "\n") for name in tallies], fontsize=6)
    axes[0].set_yscale("log")
    axes[0].minorticks_off()
    axes[0].set_yticks(DECADES, [f"{rate:,}" for rate in DECADES])
    axes[0].set_ylabel("observations/s")
    write_figure(path, figure)
