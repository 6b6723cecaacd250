"""`vla bench loop`: lateness of the bridge's control clock, and time from a camera's frame to its command.

    this process           bridge with an emulated arm, two 224x224 cameras, 50 Hz
    a controller           answers every observation at once, as a policy without inference time
    an inference beside    the nano policy, without a pause, on the last core

The baseline is the same bridge in a loop that sleeps for a period after each tick, as control loops are often written:
ordinary priority, garbage collection on. Both take turns within one run.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.children import start_child
from benchmarks.loop_peers import CONTROLLER, INFERENCE, READY
from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_figure, write_json
from vla_robot.cli.common.realtime import freeze_garbage, give_priority_back, take_priority
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.clock import NS_PER_MS, Clock, MonotonicClock, Ticker
from vla_robot.core.embodiment import ActionSpace, CameraSpec, Dim, Embodiment
from vla_robot.core.errors import RecipeError, TransportError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.recipe import find
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge, Listener
from vla_robot.serve.bridge.server import BridgeServer, Pace
from vla_robot.transport.sockets import ServerSocket

PRIORITY = 40
"""Real-time priority above all ordinary processes, below the kernel's threads."""

BASELINE_SHARE = 4
"""The relative loop runs 1/4 of the ticks, which is enough to show its drift."""

WARM_UP = 25
"""Ticks that are not counted, while connections are made and caches fill."""

MEASURES = ("late_ms", "interval_error_ms", "overhead_ms")
QUANTILES = (("p50", 50.0), ("p99", 99.0), ("max", 100.0))
STAGES = ("publish", "way_to_controller", "controller", "way_to_bridge")

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LoopArgs:
    """Measure the jitter of the bridge's control clock and its time from capture to command, beside inference."""

    ticks: Annotated[int, option("N")] = 1500
    """number of ticks; 10000 show that the clock does not drift"""
    rate_hz: Annotated[float, option("HZ")] = 50.0
    """control rate"""
    policy: Annotated[str | None, option("POLICY")] = "openvla_nano"
    """policy that runs inference beside it, by name or path; 'none' for no inference"""
    recording: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """instead of the baseline, compare recording two cameras, at the bridge and at its peer, with not recording"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
    plot: Annotated[Path | None, option("FILE.png")] = None
    """also plot the results to this file"""

    def __post_init__(self) -> None:
        if not 100 <= self.ticks <= 1_000_000:
            raise RecipeError(f"--ticks {self.ticks}: 100 to 1000000.")
        if not 1 <= self.rate_hz <= 500:
            raise RecipeError(f"--rate-hz {self.rate_hz:g}: 1 to 500.")
        if self.recording and self.plot:
            raise RecipeError("--plot draws the clock beside its baseline; leave out --recording, or --plot.")


@dataclass(frozen=True)
class Measured:
    """The measurements of one loop.

    Attributes:
        late_ms: (N,) delay of each tick after its time in the absolute schedule. In a loop that skips missed periods,
            the nearest time counts; in one that skips none, lateness adds up.
        interval_error_ms: (N - 1,) difference of each interval between ticks from the period.
        stages_ms: stage -> (M,) duration for each chunk, from capture to its arrival at the bridge.
        missed: number of skipped periods.
        priority: the process's priority, in words.
    """

    late_ms: Numbers
    interval_error_ms: Numbers
    stages_ms: Mapping[str, Numbers]
    missed: int
    priority: str

    @property
    def drift_ms(self) -> float:
        """Delay of the loop at the end."""
        return float(np.median(self.late_ms[-10:]))

    @property
    def overhead_ms(self) -> Numbers:
        """(M,) time from capture to the command's arrival, without a model."""
        return np.sum([self.stages_ms[name] for name in STAGES], axis=0)


class RelativePace:
    """A clock that sleeps for a period after the work of each tick, so that lateness adds up."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self.missed = 0

    def next_ns(self) -> int:
        return self._clock.now_ns() + self._period_ns


@dataclass
class EmulatedArm:
    """An arm with two cameras and no motor, which logs the times of its commands."""

    rate_hz: float
    can_wait: bool = False
    instruction: str = "lift the red cube"
    told_ns: list[int] = field(default_factory=list[int])
    embodiment: Embodiment = field(init=False)

    def __post_init__(self) -> None:
        dims = tuple(Dim(name, "m", -0.05, 0.05) for name in ("dx", "dy", "dz"))
        cameras = tuple(CameraSpec(name, 224, 224) for name in ("front", "wrist"))
        state = tuple(Dim(name, "m", -1.5, 1.5) for name in ("x", "y", "z"))
        space = ActionSpace("eef_delta", "base", (*dims, Dim("gripper", "1", 0.0, 1.0)))
        self.embodiment = Embodiment("emulated", space, state, cameras, self.rate_hz)
        rng = np.random.default_rng(0)
        self.frame = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        self._clock = MonotonicClock()
        self._step = 0

    @property
    def camera_stamps_ns(self) -> Mapping[str, int]:
        return {}

    def reset(self, seed: int) -> Observation:
        self._step = 0
        self.told_ns.clear()
        return self._observe()

    def command(self, action: Vector) -> StepResult:
        self.told_ns.append(self._clock.now_ns())
        self._step += 1
        return StepResult(self._observe(), action, False, False, False)

    def hold(self) -> StepResult:
        return self.command(np.array([0.0, 0.0, 0.0, 1.0]))

    def look(self) -> Observation:
        return self._observe()

    def stop(self) -> None:
        """Do nothing: there is no motor."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _observe(self) -> Observation:
        images = {"front": self.frame, "wrist": self.frame.copy()}
        return Observation(images, np.zeros(3), self.instruction, self._clock.now_ns(), self._step)


class TimedBridge(Bridge):
    """A bridge that logs, for each chunk that arrives, the time since its frames' capture."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrivals: list[tuple[float, Mapping[str, float]]] = []

    def put(self, chunk: ActionChunk) -> int:
        self.arrivals.append(((self._clock.now_ns() - chunk.stamp_ns) / NS_PER_MS, chunk.stages_ms))
        return super().put(chunk)


def main(args: LoopArgs) -> int:
    """Measure, and print a table.

    Raises:
        RecipeError: the policy for the inference does not exist.
        TransportError: the controller does not connect.
        MissingDependencyError: the plot's package is not installed.
    """
    if args.plot:
        require("matplotlib", "report", "a plot")
    policy = None if args.policy in (None, "none") else find("policies", args.policy)
    beside = "nothing" if policy is None else policy.parent.name if policy.name == "recipe.toml" else policy.stem
    say(
        f"vla bench loop: {args.ticks} ticks at {args.rate_hz:g} Hz, two raw 224x224 cameras, beside {beside}",
        flush=True,
    )
    if args.recording:
        return _measure_recording(args, policy)
    with peer(INFERENCE, str(policy)) if policy else contextlib.nullcontext():
        relative = measure(args.ticks // BASELINE_SHARE, args.rate_hz, RelativePace, priority=0, frozen=False)
        absolute = measure(args.ticks, args.rate_hz, Ticker, priority=PRIORITY, frozen=True)
    found = rows(absolute, relative)
    Terminal().print(_table(found))
    say(f"The bridge ran at {absolute.priority}; {absolute.missed} ticks were missed.")
    if args.json:
        write_json(args.json, "bench loop", found, ticks=args.ticks, rate_hz=args.rate_hz, priority=absolute.priority)
    if args.plot:
        _draw(absolute, relative, args.plot)
        say(f"Drawn in {short_path(args.plot)}.")
    return 0


def _measure_recording(args: LoopArgs, policy: Path | None) -> int:
    from benchmarks import recording as bench_recording

    with peer(INFERENCE, str(policy)) if policy else contextlib.nullcontext():
        found = bench_recording.measure_recording(args.ticks, args.rate_hz)
    priority = found.measured[bench_recording.NOTHING][0].priority
    bench_recording.show(found, priority)
    if args.json:
        made = bench_recording.rows(found)
        write_json(args.json, "bench loop --recording", made, ticks=args.ticks, rate_hz=args.rate_hz, priority=priority)
    return 0


def measure(
    ticks: int,
    rate_hz: float,
    pace: Callable[[Clock, int], Pace],
    *,
    priority: int,
    frozen: bool,
    listener: Listener = lambda _: None,
    controller: str = CONTROLLER,
) -> Measured:
    """Run a bridge with a controller that answers it.

    Args:
        ticks: number of measured ticks.
        rate_hz: rate of the clock.
        pace: makes the clock.
        priority: real-time priority of the bridge, 0 for none.
        frozen: switch garbage collection off, as `vla bridge` does.
        listener: listener of the bridge, such as its log.
        controller: peer that answers.

    Raises:
        TransportError: the controller ended early.
    """
    clock, arm = MonotonicClock(), EmulatedArm(rate_hz)
    limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
    bridge = TimedBridge(arm, limits, Watchdog(clock, stop_after_s=3600.0), clock, listener=listener)
    wanted = ticks + WARM_UP
    with ServerSocket() as socket, peer(controller, socket.address) as process, punctual(priority, frozen) as given:
        server = BridgeServer(bridge, socket, clock, pace=pace)
        server.serve(lambda: len(arm.told_ns) >= wanted or process.poll() is not None)
        missed = server.status()["counts"]["missed_ticks"]
        socket.settle()  # before its peer is ended
    if len(arm.told_ns) < wanted:
        raise TransportError(f"the loop ended after {len(arm.told_ns)} of {wanted} ticks: its controller ended early.")
    at_ms = (np.array(arm.told_ns[WARM_UP:wanted], dtype=np.float64) - arm.told_ns[WARM_UP]) / NS_PER_MS
    period_ms = 1000 / rate_hz
    late_ms = lateness(at_ms, period_ms, skips=pace is Ticker)
    return Measured(late_ms, np.diff(at_ms) - period_ms, _stages(bridge.arrivals[WARM_UP:]), missed, given)


def lateness(at_ms: Numbers, period_ms: float, *, skips: bool) -> Numbers:
    """Return (N,) delays to an absolute schedule [ms], in the phase of the most punctual of the first ticks.

    Args:
        at_ms: (N,) times of the ticks.
        period_ms: period of the schedule.
        skips: whether the loop skips missed periods.
    """
    place = np.round(at_ms / period_ms) if skips else np.arange(len(at_ms))
    late_ms = at_ms - place * period_ms
    return late_ms - late_ms[: max(len(late_ms) // 20, 10)].min()


@contextlib.contextmanager
def punctual(priority: int, frozen: bool) -> Iterator[str]:
    """Give this process a bridge's priority and garbage collection during the block, or the ordinary ones."""
    if frozen:
        freeze_garbage()
    try:
        yield take_priority(priority)
    finally:
        give_priority_back()
        gc.unfreeze()
        gc.enable()


@contextlib.contextmanager
def peer(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process of `loop_peers` during a `with` block, which begins when the process is ready.

    Raises:
        TransportError: it ended early.
    """
    process = start_child("loop_peers", *arguments, stdin=subprocess.PIPE)
    assert process.stdout is not None
    try:
        # The controller is ready once it runs; it connects when the bridge answers.
        if process.stdout.readline().strip() != READY:
            raise TransportError(f"the process beside the bridge ('{arguments[0]}') ended before it was ready.")
        yield process
    finally:
        process.kill()
        process.communicate()


def rows(absolute: Measured, relative: Measured) -> list[dict[str, Any]]:
    """Return each measure of the bridge's loop next to the relative one's."""
    found: list[dict[str, Any]] = []
    for name in MEASURES:
        for label, percent in QUANTILES:
            values = [float(np.percentile(np.abs(getattr(m, name)), percent)) for m in (absolute, relative)]
            found.append(compared(f"{name.removesuffix('_ms')}/{label}", *values))
    found.append(compared("drift_at_the_end", absolute.drift_ms, relative.drift_ms))
    for stage in STAGES:
        values = [float(np.percentile(m.stages_ms[stage], 99)) for m in (absolute, relative)]
        found.append(compared(f"stage/{stage}/p99", *values))
    return found


def compared(name: str, value: float, baseline: float) -> dict[str, Any]:
    """Return a number of milliseconds beside the baseline's; `ratio` is how many times smaller it is."""
    return row(name, value, "ms", baseline, baseline / value if value else 0.0)


def _stages(arrivals: list[tuple[float, Mapping[str, float]]]) -> dict[str, Numbers]:
    """Return the stages that the controller reported, and the rest of the total: the way back to the bridge."""
    *told, last = STAGES
    stages_ms = {name: np.array([stages[name] for _, stages in arrivals]) for name in told}
    total_ms = np.array([total for total, _ in arrivals])
    return {**stages_ms, last: total_ms - np.sum(list(stages_ms.values()), axis=0)}


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("milliseconds", no_wrap=True)
    for column in ("ours", "relative sleep", "better by"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in found:
        ratio = f"{r['ratio']:.1f}x" if r["ratio"] else ""
        table.add_row(r["name"], f"{r['value']:.3f}", f"{r['baseline']:.3f}", ratio)
    return table


def _draw(absolute: Measured, relative: Measured, path: Path) -> None:
    """Plot lateness over time, its histogram, and the time from capture to command by stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    course, jitter, way = figure.subplots(1, 3)
    for measured, label, colour in ((relative, "relative sleep", "C7"), (absolute, "absolute deadlines", "C0")):
        course.plot(measured.late_ms, color=colour, label=label)
        jitter.hist(
            np.abs(measured.interval_error_ms), bins=np.geomspace(1e-3, 100, 60).tolist(), color=colour, alpha=0.7
        )
    course.set(title="behind the schedule", xlabel="tick", ylabel="ms", yscale="symlog")
    course.legend()
    jitter.set(title="error of an interval", xlabel="ms", ylabel="ticks", xscale="log")
    for stage in STAGES:
        way.hist(absolute.stages_ms[stage], bins=np.geomspace(1e-2, 50, 60).tolist(), alpha=0.6, label=stage)
    way.set(title="capture to command, by stage", xlabel="ms", ylabel="chunks", xscale="log")
    way.legend(fontsize=7)
    write_figure(path, figure)
