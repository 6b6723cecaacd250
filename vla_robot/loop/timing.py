"""Times the stages of a control step, from the camera's shutter to the motor's command.

    capture      received   recorded   waited     answered  guarded   command      next capture
       |-- receive --|-- record --|-- wait --|-- policy --|- guard -|-- send --|-- world_step --|
       |<------------------------ capture_to_command ------------------------->|

`receive` is rendering, encoding and sending the frames; a world that reports its stages (`ReportsStages`) splits it,
as a policy splits its own with `ActionChunk.stages_ms`. `world_step` lies outside of capture_to_command.

World and loop must share a clock, as two processes of one computer do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_robot.core.clock import NS_PER_MS, Clock
from vla_robot.core.messages import Observation, StepResult
from vla_robot.core.ports import ReportsStages, World

TOTAL = "capture_to_command"
WORLD_STEP = "world_step"

REST = "_rest"
"""Suffix of the time that the known parts of a stage leave."""

RECEIVE_PARTS = ("render", "transport_back")
"""A world's own stages between a capture and its arrival in the loop."""


class Stopwatch:
    """Times consecutive stages of one control step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stages_ms: dict[str, float] = {}
        self._capture_ns = self._last_ns = clock.now_ns()

    def received(self, observation: Observation, world: World) -> None:
        """Begin a step; its first stage lasts from the observation's capture to now."""
        self._stages_ms = {}
        self._capture_ns = self._last_ns = observation.stamp_ns
        known = world.last_stages_ms if isinstance(world, ReportsStages) else {}
        self.lap("receive", {name: known[name] for name in RECEIVE_PARTS if name in known})

    def lap(self, stage: str, parts: Mapping[str, float] | None = None) -> None:
        """Add the time since the last lap to `stage`, or `parts` [ms] to their names and the rest to STAGE_rest."""
        self._book(stage, self._clock.now_ns(), parts or {})

    def commanded(self, result: StepResult) -> dict[str, float]:
        """End the step at the world's command stamp, and return all its stages [ms].

        For a world that stamps no command (`command_ns` is 0), the end of the last lap is taken.
        """
        command_ns = result.command_ns or self._last_ns
        self._book("send", command_ns, {})
        self._stages_ms[TOTAL] = (command_ns - self._capture_ns) / NS_PER_MS
        self._stages_ms[WORLD_STEP] = (result.observation.stamp_ns - command_ns) / NS_PER_MS
        return self._stages_ms

    def _book(self, stage: str, now_ns: int, parts: Mapping[str, float]) -> None:
        rest_ms = (now_ns - self._last_ns) / NS_PER_MS - sum(parts.values())
        self._last_ns = now_ns
        rest = f"{stage}{REST}" if parts else stage
        for name, duration_ms in (*parts.items(), (rest, max(rest_ms, 0.0))):
            self._stages_ms[name] = self._stages_ms.get(name, 0.0) + duration_ms


@dataclass(frozen=True)
class Latency:
    """Statistics of durations.

    Attributes:
        count: number of durations.
        p50: median [ms].
        p99: 99th percentile [ms].
        max: the longest [ms].
    """

    count: int
    p50: float
    p99: float
    max: float


def summarise(durations_ms: ArrayLike) -> Latency:
    """Return statistics of (N,) durations [ms], N at least 1."""
    values = np.asarray(durations_ms, dtype=np.float64)
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return Latency(len(values), float(p50), float(p99), float(values.max()))


def by_stage(steps: Iterable[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Collect the stages of steps into (N,) durations [ms] by stage, in the order of their first occurrence.

    N differs by stage: a step that continues an earlier chunk has no policy stages.
    """
    columns: dict[str, list[float]] = {}
    for stages_ms in steps:
        for name, duration_ms in stages_ms.items():
            columns.setdefault(name, []).append(duration_ms)
    return {name: np.array(values) for name, values in columns.items()}
