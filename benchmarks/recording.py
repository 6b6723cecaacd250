"""`vla bench loop --recording`: effect of recording two raw 224 x 224 cameras on the control clock.

    nothing is recorded     the bridge ticks, a controller answers every observation at once
    the bridge's log        `vla bridge --record`: every tick as PNG in an episode log, by a process of its own
    a person's recording    `vla record --robot`: the same in the controller; its way from capture to command counts

The three take turns in rounds, each in another order. The frames are noise, the slowest content for PNG: it cannot be
compressed, and each tick writes 300 kB.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.loop import MEASURES, PRIORITY, QUANTILES, EmulatedArm, Measured, compared, measure
from benchmarks.loop_peers import CONTROLLER, RECORDER
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.clock import Ticker
from vla_robot.core.host.provenance import row
from vla_robot.record.episode import read_episode
from vla_robot.serve.bridge.bridge import EpisodeBegan, EpisodeOver, Listener, Ticked
from vla_robot.serve.bridge.log import BridgeLog, recording_process

ROUNDS = 4

NOTHING, LOG, PERSON = "nothing is recorded", "the bridge's log", "a person's recording"
WAYS = (NOTHING, LOG, PERSON)


@dataclass(frozen=True)
class Recorded:
    """The measurements of the three ways.

    Attributes:
        measured: way -> its rounds.
        logged: steps in the bridge's logs.
        without_frames: number of steps that the writer stored without frames.
    """

    measured: Mapping[str, Sequence[Measured]]
    logged: int
    without_frames: int

    def quantile(self, way: str, measure: str, percent: float) -> float:
        """Return a quantile over all rounds of a way, in milliseconds."""
        values = [np.abs(getattr(m, measure)) for m in self.measured[way]]
        return float(np.percentile(np.concatenate(values), percent))

    def moved_ms(self, way: str, measure: str = "interval_error_ms", percent: float = 99.0) -> float:
        """Return the change of a quantile by a way of recording."""
        return self.quantile(way, measure, percent) - self.quantile(NOTHING, measure, percent)

    @property
    def missed(self) -> dict[str, int]:
        """Way -> ticks that were missed."""
        return {way: sum(m.missed for m in rounds) for way, rounds in self.measured.items()}


def measure_recording(ticks: int, rate_hz: float, rounds: int = ROUNDS) -> Recorded:
    """Run a bridge in each of the three ways.

    Args:
        ticks: number of ticks of each way, over all rounds.
        rate_hz: control rate.
        rounds: number of turns of each way.

    Raises:
        TransportError: the controller does not connect.
        DataError: a log cannot be written.
    """
    measured: dict[str, list[Measured]] = {way: [] for way in WAYS}
    logged = without_frames = 0
    for turn in range(rounds):
        for way in (*WAYS[turn % len(WAYS) :], *WAYS[: turn % len(WAYS)]):
            with _log() if way == LOG else contextlib.nullcontext() as log:
                measured[way].append(
                    measure(
                        ticks // rounds,
                        rate_hz,
                        Ticker,
                        priority=PRIORITY,
                        frozen=True,
                        listener=_deaf if log is None else log.listener,
                        controller=RECORDER if way == PERSON else CONTROLLER,
                    )
                )
                if log is not None:
                    steps, dropped = log.counted()
                    logged, without_frames = logged + steps, without_frames + dropped
    return Recorded(measured, logged, without_frames)


def rows(found: Recorded) -> list[dict[str, Any]]:
    """Return each measure of the two ways of recording, next to no recording."""
    made: list[dict[str, Any]] = []
    for way in (LOG, PERSON):
        for name in MEASURES:
            for label, percent in QUANTILES:
                value, baseline = found.quantile(way, name, percent), found.quantile(NOTHING, name, percent)
                made.append(compared(f"{way}/{name.removesuffix('_ms')}/{label}", value, baseline))
    made += [row(f"{way}/missed_ticks", number, "1") for way, number in found.missed.items()]
    return [*made, row("logged_steps", found.logged, "1"), row("steps_without_frames", found.without_frames, "1")]


def show(found: Recorded, priority: str) -> None:
    """Print a table, and a sentence with the result."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("milliseconds", no_wrap=True)
    for way in WAYS:
        table.add_column(way, justify="right")
    for name in MEASURES:
        for label, percent in QUANTILES:
            cells = (f"{found.quantile(way, name, percent):.3f}" for way in WAYS)
            table.add_row(f"{name.removesuffix('_ms')}/{label}", *cells)
    table.add_row("missed ticks", *(str(found.missed[way]) for way in WAYS))
    Terminal().print(table)
    say(
        f"The bridge ran at {priority}. Its log moves the 99th percentile of an interval's error by "
        f"{found.moved_ms(LOG):+.3f} ms,\na person's recording at the other end by {found.moved_ms(PERSON):+.3f} ms, "
        f"and of the way from capture to command by {found.moved_ms(PERSON, 'overhead_ms'):+.3f} ms.\n"
        f"{found.without_frames} of {found.logged} logged steps were stored without frames."
    )


@dataclass
class _Log:
    """The log of one round, in its own folder."""

    folder: Path
    listener: Listener
    settle: Callable[[], None]

    def counted(self) -> tuple[int, int]:
        """Return the number of steps, and of steps without frames."""
        self.settle()
        logs = [read_episode(path) for path in self.folder.iterdir()]
        dropped = [int(log.summary["dropped_frames"]) for log in logs if log.summary is not None]
        return sum(len(log.steps) for log in logs), sum(dropped)


@contextlib.contextmanager
def _log() -> Iterator[_Log]:
    with tempfile.TemporaryDirectory(prefix="vla_bench_") as folder, recording_process() as recording:
        embodiment = EmulatedArm(1.0).embodiment
        log = BridgeLog(Path(folder), {"embodiment": embodiment.to_dict()}, recording)
        yield _Log(Path(folder), log, recording.settle)


def _deaf(event: EpisodeBegan | Ticked | EpisodeOver) -> None:
    """Ignore an event."""
