"""`vla bridge`: runs the arm, the control clock, the limits and the e-stop, and serves them to one controller."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vla_robot.cli.build import build_arm, build_limits, server_security
from vla_robot.cli.common.cli_common import option
from vla_robot.cli.common.interrupt import not_suspended, stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.metrics import metrics_at, metrics_in_words
from vla_robot.cli.common.realtime import MAX_PRIORITY, freeze_garbage, take_priority
from vla_robot.cli.common.terminal import say
from vla_robot.core.clock import MonotonicClock
from vla_robot.core.errors import DataError, RecipeError, VlaError
from vla_robot.core.ports import Arm
from vla_robot.recipe import dump
from vla_robot.recipe.env import EnvRecipe, at_speed
from vla_robot.recipe.env_source import find_env
from vla_robot.safety.chunk import ChunkMerge
from vla_robot.serve.bridge.bridge import Bridge, EpisodeBegan, EpisodeOver, ExecutionConfig, Listener, Ticked
from vla_robot.serve.bridge.faults import Faults, contained
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.serve.metrics.process import MetricsProcess, Periodic, metrics_address
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

if TYPE_CHECKING:
    from vla_robot.serve.bridge.log import Recording

LOOPBACK = "tcp://127.0.0.1:5570"
HOLDS = "The arm holds until a controller arms it again"
STDIN = 0
MAX_LINE_BYTES = 4096
"""Largest number of bytes that a terminal returns for one line."""


@dataclass(frozen=True)
class BridgeArgs:
    """Serve a robot: its arm, control clock and limits. `vla run --robot ADDRESS` connects to it."""

    env: Annotated[str, tyro.conf.Positional, option("ENV")]
    """the world or robot, by name or path"""
    bind: Annotated[str, option("ADDRESS")] = LOOPBACK
    """where controllers connect; off this computer it needs keys, see `vla keys`"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to use; only needed if there are several"""
    jpeg: Annotated[int | None, option("1..100")] = None
    """send frames as JPEG of this quality; by default without loss"""
    max_age_s: Annotated[float, option("S")] = 0.5
    """largest age of the oldest frame that an action is based on; older actions are refused"""
    splice: ChunkMerge = "drop"
    """how chunks that overlap are combined: the newest, a blend, ACT's ensemble, or real-time chunking"""
    hold_after_s: Annotated[float, option("S")] = 0.5
    """hold the pose if no action or heartbeat arrived for this long"""
    stop_after_s: Annotated[float, option("S")] = 3.0
    """stop the arm, with torque, if nothing arrived for this long"""
    speed: Annotated[float, option("0..1")] = 1.0
    """share of the recipe's speeds, also on the way home; 0.25 for a first motion"""
    horizon: Annotated[int | None, option("N")] = None
    """control steps after which an episode ends; by default the recipe's, which are few for a person"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """read a real arm, without torque, and show the commands instead of sending them"""
    priority: Annotated[int, option("0..99")] = 0
    """real-time priority of the control clock; for real robots, since a simulation would block other processes"""
    record: Annotated[Path | None, option("FOLDER")] = None
    """write each episode's log to this folder, also if the episode fails"""
    metrics: Annotated[str | None, option("[HOST:]PORT")] = None
    """answer GET /metrics in Prometheus' format on this port of this computer, from a process of its own"""
    json: Annotated[Path | None, option("FILE")] = None
    """at the end, also write the counts to this file as JSON"""

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise RecipeError(f"--priority {self.priority}: 0 to {MAX_PRIORITY}; 40 suits most computers.")
        if self.horizon is not None and self.horizon < 1:
            raise RecipeError(f"--horizon {self.horizon}: at least 1 step.")
        if self.max_age_s > self.hold_after_s + self.stop_after_s:
            raise RecipeError(
                f"--max-age-s {self.max_age_s:g} and --hold-after-s {self.hold_after_s:g} with --stop-after-s "
                f"{self.stop_after_s:g} contradict: an action may be {self.max_age_s:g} s old, and an arm "
                f"without one for {self.hold_after_s + self.stop_after_s:g} s is stopped. Raise --stop-after-s, or "
                "lower --max-age-s."
            )
        if self.metrics is not None:
            metrics_address(self.metrics)
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise RecipeError(f"--jpeg {self.jpeg}: a quality from 1 to 100.")


class EStop:
    """Causes of an e-stop, from a key or a signal, until the serving thread handles them.

    Enter stops the arm while this process is in its terminal's foreground. A shell may start it in the background, or
    move it there and back: then the keys are another program's, and are not read.
    """

    def __init__(self, wake: Wake) -> None:
        """
        Args:
            wake: ends the wait of the serving thread.
        """
        self.causes: list[str] = []
        self._wake = wake
        self._has_key = self._in_foreground()

    def watch_signal(self) -> None:
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.causes.append("signal SIGUSR1")
        self._wake.ring()

    def how(self) -> str:
        """Return how to trigger it now, for the terminal."""
        key = "Enter here, or " if self._has_key else ""
        return f"e-stop: {key}kill -USR1 {os.getpid()}"

    def poll_key(self) -> None:
        """Read the terminal if this process is in its foreground, and print when that changed; returns at once."""
        if self._in_foreground() != self._has_key:
            self._has_key = not self._has_key
            say(f"  {self.how()}", flush=True)
        if self._has_key and _typed(STDIN):
            self.causes.append("the Enter key at the bridge")

    @staticmethod
    def _in_foreground() -> bool:
        try:
            return os.tcgetpgrp(STDIN) == os.getpgrp()
        except OSError:  # a pipe, a file, another session's terminal, or one that hung up
            return False


def _typed(terminal: int) -> bool:
    """Return whether a line was typed. One read: `readline` would wait for the end of a line that Ctrl-D cut off."""
    try:
        return bool(select.select([terminal], [], [], 0)[0] and os.read(terminal, MAX_LINE_BYTES))
    except OSError:  # meanwhile another program got the terminal, or it hung up
        return False


def main(args: BridgeArgs) -> int:
    """Serve until Ctrl-C; then the arm holds, and the process ends.

    Raises:
        VlaError: the recipe, the world or the address cannot be used.
    """
    env = find_env(args.env)
    recipe = at_speed(env.recipe, args.speed)
    recipe = recipe if args.horizon is None else replace(recipe, horizon=args.horizon)
    security = server_security(args.bind, args.key)
    say(f"vla bridge: {env.path}", flush=True)
    with (
        not_suspended(),
        metrics_at(args.metrics) as metrics,  # before a priority that it would inherit
        _logs(args) as logs,
        contextlib.closing(Wake()) as wake,
        ServerSocket(args.bind, security, wake) as socket,
        stop_on_interrupt() as stop,
    ):
        e_stop = EStop(wake)
        e_stop.watch_signal()
        faults = Faults()
        servers: list[BridgeServer] = []  # the arm's `interrupted` asks it; it is made after the arm
        arm = build_arm(recipe, lambda: any(s.interrupted() for s in servers), say if args.dry_run else None)
        try:
            freeze_garbage()
            say(f"  {take_priority(args.priority)}", flush=True)
            bridge = _bridge(args, recipe, arm, logs, faults)
            quality = {} if args.jpeg is None else dict.fromkeys((c.name for c in arm.embodiment.cameras), args.jpeg)
            server = BridgeServer(bridge, socket, jpeg_quality=quality, dry_run=args.dry_run)
            servers.append(server)
            _announce(socket.address, arm, args, e_stop, metrics)
            server.serve(until_stopped(stop.is_set, e_stop, server, _metrics_of(server, metrics)))
        finally:
            _release(arm, faults)
        socket.settle()  # Ctrl-C may have ended the controller at the same time
    status = server.status()
    if args.json:
        rows = [{"name": name, "value": value, "unit": ""} for name, value in status["counts"].items()]
        write_json(args.json, "bridge", rows, status=status)
    say(f"\n{server.unstopped or 'The arm was held, and its connection is closed'}. {_counts(status['counts'])}")
    for stage, times in status["arm_stages_ms"].items():
        say(
            f"  {stage} of a command: {times['p50']:.2f} ms at the median, {times['p99']:.2f} ms at the 99th percentile"
        )
    return 0


def _release(arm: Arm, faults: Faults) -> None:
    """Close the arm. An error is added to `faults`: the arm was held before, and the caller's cleanup goes on."""
    try:
        contained(arm, faults).close()
    except VlaError as error:
        faults.add("arm", error)


def _logs(args: BridgeArgs) -> AbstractContextManager[Recording | None]:
    """Start the process that writes logs, apart from the control clock; None without --record.

    Raises:
        DataError: --record names a file.
    """
    if args.record is None:
        return nullcontext()
    if args.record.exists() and not args.record.is_dir():
        raise DataError(f"--record {args.record} is a file; give a folder, for one log per episode.")
    from vla_robot.serve.bridge.log import recording_process

    return recording_process()


def _bridge(args: BridgeArgs, recipe: EnvRecipe, arm: Arm, logs: Recording | None, faults: Faults) -> Bridge:
    from vla_robot.safety.watchdog import Watchdog

    clock = MonotonicClock()
    watchdog = Watchdog(clock, hold_after_s=args.hold_after_s, stop_after_s=args.stop_after_s)
    limits = build_limits(arm.embodiment, recipe)
    listener = _listener(args, recipe, arm, logs, faults)
    return Bridge(arm, limits, watchdog, clock, ExecutionConfig(args.max_age_s, args.splice), listener, faults)


def _listener(args: BridgeArgs, recipe: EnvRecipe, arm: Arm, logs: Recording | None, faults: Faults) -> Listener:
    log = None if args.record is None or logs is None else _log(args.record, args.env, recipe, arm, logs, faults)

    def listen(event: EpisodeBegan | Ticked | EpisodeOver) -> None:
        if isinstance(event, EpisodeOver):
            gc.collect()  # nothing is urgent between episodes, see `freeze_garbage`
        if log is not None:
            log(event)

    return listen


def _log(folder: Path, env: str, recipe: EnvRecipe, arm: Arm, logs: Recording, faults: Faults) -> Listener:
    from vla_robot.core.host.provenance import machine, versions
    from vla_robot.serve.bridge.log import BridgeLog

    header = {
        "env": env,
        "recipes": {"env.toml": dump(recipe)},
        "embodiment": arm.embodiment.to_dict(),
        "versions": versions(),
        "machine": machine(),
    }
    return BridgeLog(folder, header, logs, faults)


def _metrics_of(server: BridgeServer, metrics: MetricsProcess | None) -> Callable[[], None]:
    """Return a function that publishes the status once a second; it does nothing without metrics."""
    if metrics is None:
        return lambda: None
    return Periodic(metrics, lambda: {"kind": "bridge", "status": server.status()})


def until_stopped(
    stopped: Callable[[], bool], e_stop: EStop, server: BridgeServer, meanwhile: Callable[[], None] = lambda: None
) -> Callable[[], bool]:
    """Return the server's stop flag, which also calls `meanwhile` and handles the e-stop's key and signal."""

    def should_stop() -> bool:
        meanwhile()
        e_stop.poll_key()
        while e_stop.causes:
            cause = e_stop.causes.pop(0)
            server.emergency_stop(cause)
            say(f"E-STOP: {cause}. {server.unstopped or HOLDS}.", flush=True)
        return stopped()

    return should_stop


def _announce(address: str, arm: Arm, args: BridgeArgs, e_stop: EStop, metrics: MetricsProcess | None = None) -> None:
    embodiment = arm.embodiment
    cameras = ", ".join(f"{c.name} {c.width}x{c.height}" for c in embodiment.cameras) or "none"
    if args.dry_run:
        say("  DRY RUN: the arm has no torque, and nothing is sent to it", flush=True)
    if args.speed < 1:
        say(f"  at {args.speed:.0%} of the recipe's speeds", flush=True)
    dry = " --dry-run" if args.dry_run else ""
    policy = "openvla_nano" if embodiment.action.kind == "eef_delta" else "POLICY"
    say(
        f"  {embodiment.name} at {embodiment.rate_hz:g} Hz, cameras {cameras}\n"
        f"  listening on {address}, process {os.getpid()}\n{metrics_in_words(metrics)}"
        f"  {e_stop.how()}; Ctrl-C holds the arm and ends\n"
        f"Next: vla run --robot {address} --policy {policy}{dry}",
        flush=True,
    )


def _counts(counts: dict[str, int]) -> str:
    told = [f"{value} {name.replace('_', ' ')}" for name, value in counts.items() if value]
    return f"Refused or late: {', '.join(told) or 'nothing'}."
