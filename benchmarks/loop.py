"""`vla bench loop`: how punctual the bridge's control clock is, and how soon a camera's frame becomes a command.

    this process           bridge with an emulated arm, two 224x224 cameras, 50 Hz
    a controller           answers every observation at once, as a policy would that needs no time
    an inference beside    the nano policy, as fast as it goes, on the last core

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
from vla_robot.core.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock, Ticker
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
"""Above everything ordinary, below the kernel's own threads."""

BASELINE_SHARE = 4
"""The relative loop runs a quarter as many ticks: it drifts away soon enough."""

SLACK_S = 30.0
"""How much longer than its ticks a loop may run."""

WARM_UP = 25
"""Ticks that are not counted: connections are made, caches fill."""

MEASURES = ("late_ms", "interval_error_ms", "overhead_ms")
QUANTILES = (("p50", 50.0), ("p99", 99.0), ("max", 100.0))
STAGES = ("publish", "way_to_controller", "controller", "way_to_bridge")

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LoopArgs:
    """Jitter of the bridge's control clock and its way from capture to command, with inference running beside it."""

    ticks: Annotated[int, option("N")] = 1500
    """how many ticks are measured; 10000 shows that nothing drifts"""
    rate_hz: Annotated[float, option("HZ")] = 50.0
    """control rate"""
    policy: Annotated[str | None, option("POLICY")] = "openvla_nano"
    """what infers beside it, by name or path; 'none' for nothing"""
    recording: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """instead of the baseline: the same with and without recording two cameras, here and at the other end, in turns"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file, for machines"""
    plot: Annotated[Path | None, option("FILE.png")] = None
    """also draw them"""

    def __post_init__(self) -> None:
        if not 100 <= self.ticks <= 1_000_000:
            raise RecipeError(f"--ticks {self.ticks}: 100 to 1000000.")
        if not 1 <= self.rate_hz <= 500:
            raise RecipeError(f"--rate-hz {self.rate_hz:g}: 1 to 500.")
        if self.recording and self.plot:
            raise RecipeError("--plot draws the clock beside its baseline; leave out --recording, or --plot.")


@dataclass(frozen=True)
class Measured:
    """What one loop did.

    Attributes:
        late_ms: (N,) how long after its place in the absolute schedule each tick came. Where a loop skips the periods
            that it missed, the place is the nearest one; where it skips none, lateness adds up.
        interval_error_ms: (N - 1,) by how much each interval between ticks differs from the period.
        stages_ms: stage -> (M,) of each chunk, from capture to its arrival at the bridge.
        missed: periods that were skipped.
        priority: what the process was given.
    """

    late_ms: Numbers
    interval_error_ms: Numbers
    stages_ms: Mapping[str, Numbers]
    missed: int
    priority: str

    @property
    def drift_ms(self) -> float:
        """How far behind its schedule the loop was at the end."""
        return float(np.median(self.late_ms[-10:]))

    @property
    def overhead_ms(self) -> Numbers:
        """(M,) from capture to the command's arrival; there is no model in it."""
        return np.sum([self.stages_ms[name] for name in STAGES], axis=0)


class RelativePace:
    """Sleeps for a period after the work of each tick: every bit of lateness stays."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self.missed = 0

    def next_ns(self) -> int:
        return self._clock.now_ns() + self._period_ns


@dataclass
class EmulatedArm:
    """Two cameras and no motor; writes down when it was told something."""

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
        """It rests already."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _observe(self) -> Observation:
        images = {"front": self.frame, "wrist": self.frame.copy()}
        return Observation(images, np.zeros(3), self.instruction, self._clock.now_ns(), self._step)


class TimedBridge(Bridge):
    """Notes how long ago the frames of each chunk were captured when it arrives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrivals: list[tuple[float, Mapping[str, float]]] = []

    def put(self, chunk: ActionChunk) -> int:
        self.arrivals.append(((self._clock.now_ns() - chunk.stamp_ns) / NS_PER_MS, chunk.stages_ms))
        return super().put(chunk)


def main(args: LoopArgs) -> int:
    """Measure, and print what was found.

    Raises:
        RecipeError: the policy beside it does not exist.
        TransportError: the controller does not come.
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
    """Let a bridge tick while a controller answers it.

    Args:
        ticks: how many are measured.
        rate_hz: of the clock.
        pace: makes the clock.
        priority: real-time priority of the bridge, 0 for none.
        frozen: without garbage collection, as a bridge runs.
        listener: of the bridge, such as its log.
        controller: which peer answers.

    Raises:
        TransportError: the controller did not stay.
    """
    clock, arm = MonotonicClock(), EmulatedArm(rate_hz)
    limits = SafetyFilter(arm.embodiment, limits_of(arm.embodiment, LimitsRecipe()))
    bridge = TimedBridge(arm, limits, Watchdog(clock, stop_after_s=3600.0), clock, listener=listener)
    wanted = ticks + WARM_UP
    end_ns = clock.now_ns() + round((1.5 * wanted / rate_hz + SLACK_S) * NS_PER_S)
    with ServerSocket() as socket, peer(controller, socket.address), punctual(priority, frozen) as given:
        server = BridgeServer(bridge, socket, clock, pace=pace)
        server.serve(lambda: len(arm.told_ns) >= wanted or clock.now_ns() > end_ns)
        missed = server.status()["counts"]["missed_ticks"]
        socket.settle()  # before its peer is ended
    if len(arm.told_ns) < wanted:
        raise TransportError(f"the loop came to {len(arm.told_ns)} of {wanted} ticks: its controller did not stay.")
    at_ms = (np.array(arm.told_ns[WARM_UP:wanted], dtype=np.float64) - arm.told_ns[WARM_UP]) / NS_PER_MS
    period_ms = 1000 / rate_hz
    late_ms = lateness(at_ms, period_ms, skips=pace is Ticker)
    return Measured(late_ms, np.diff(at_ms) - period_ms, _stages(bridge.arrivals[WARM_UP:]), missed, given)


def lateness(at_ms: Numbers, period_ms: float, *, skips: bool) -> Numbers:
    """(N,) behind an absolute schedule in the phase of the most punctual of the first ticks.

    Args:
        at_ms: (N,) when the ticks came.
        period_ms: of the schedule.
        skips: whether the loop leaves out the periods that it missed.
    """
    place = np.round(at_ms / period_ms) if skips else np.arange(len(at_ms))
    late_ms = at_ms - place * period_ms
    return late_ms - late_ms[: max(len(late_ms) // 20, 10)].min()


@contextlib.contextmanager
def punctual(priority: int, frozen: bool) -> Iterator[str]:
    """A process as a bridge's is, or as any other; and as it was, afterwards."""
    if frozen:
        freeze_garbage()
    try:
        yield take_priority(priority)
    finally:
        give_priority_back()
        gc.unfreeze()
        gc.enable()


@contextlib.contextmanager
def peer(*arguments: str) -> Iterator[None]:
    """A process of `loop_peers`, once it is ready, for the length of a `with` block.

    Raises:
        TransportError: it ended instead.
    """
    process = start_child("loop_peers", *arguments, stdin=subprocess.PIPE)
    assert process.stdout is not None
    try:
        # The controller is ready once it runs; it connects when the bridge answers.
        if process.stdout.readline().strip() != READY:
            raise TransportError(f"the process beside the bridge ('{arguments[0]}') ended before it began.")
        yield
    finally:
        process.kill()
        process.communicate()


def rows(absolute: Measured, relative: Measured) -> list[dict[str, Any]]:
    """Each measure of the bridge's loop next to the relative one's."""
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
    """A number of milliseconds beside the baseline's; the ratio says how many times better it is."""
    return row(name, value, "ms", baseline, baseline / value if value else 0.0)


def _stages(arrivals: list[tuple[float, Mapping[str, float]]]) -> dict[str, Numbers]:
    """Those that the controller told, and what is left of the total: the way back to the bridge."""
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
    """Lateness over time, its histogram, and the way from capture to command by stage."""
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
