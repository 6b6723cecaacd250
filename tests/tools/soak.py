"""Half an hour of everything at once: four bridges, four controllers, one policy server, each a process of its own.

    python tests/tools/soak.py --minutes 30 --json soak.json --plot soak.png

The arms are emulated and the policy is real. Every command carries a stamp that no other command has, so that the
bridges can tell which came twice, in the wrong order, or not at all. Memory is read from /proc once a second (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla_robot.core.clock import MonotonicClock
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import ActionChunk, Observation, StepResult, Vector
from vla_robot.core.robot import Tick
from vla_robot.loop.live_loop import run_live_episode
from vla_robot.recipe.limits import LimitsRecipe
from vla_robot.safety.filter import SafetyFilter
from vla_robot.safety.limits import RangeGuard, limits_of
from vla_robot.safety.watchdog import Watchdog
from vla_robot.serve.bridge.bridge import Bridge
from vla_robot.serve.bridge.remote_robot import RemoteRobot
from vla_robot.serve.bridge.server import BridgeServer
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.transport.sockets import ServerSocket

BRIDGES = 4
HORIZON = 300
"""Ticks of an episode: half a minute at 10 Hz, so that episodes begin and end too."""

SAMPLE_S = 1.0
START_S = 180.0
WARM_UP_SHARE = 0.2
"""Of the time; what is allocated then are caches, and slopes are taken of the rest."""


@dataclass
class EmulatedArm:
    """Stands still and sees noise, in the shape of what a policy was made for."""

    embodiment: Embodiment
    can_wait: bool = False
    instruction: str = "lift the red cube"
    camera_stamps_ns: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = {c.name: (c.height, c.width, 3) for c in self.embodiment.cameras}
        self._images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}
        self._clock, self._step = MonotonicClock(), 0

    def reset(self, seed: int) -> Observation:
        self._step = 0
        return self._observe()

    def command(self, action: Vector) -> StepResult:
        self._step += 1
        return StepResult(self._observe(), action, False, False, self._step >= HORIZON)

    def hold(self) -> StepResult:
        return self.command(np.zeros(len(self.embodiment.action)))

    def stop(self) -> None:
        """It rests already."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _observe(self) -> Observation:
        images = {name: image.copy() for name, image in self._images.items()}
        state = np.array([(d.low + d.high) / 2 for d in self.embodiment.state])
        return Observation(images, state, self.instruction, self._clock.now_ns(), self._step)


class CountingBridge(Bridge):
    """Notes which commands came, and in which order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.came = self.reordered = 0
        self._newest_ns = 0

    def put(self, chunk: ActionChunk) -> int:
        self.came += 1
        self.reordered += chunk.stamp_ns <= self._newest_ns
        self._newest_ns = max(self._newest_ns, chunk.stamp_ns)
        return super().put(chunk)


class CountingRobot:
    """The Robot port, with a count of the commands that were sent."""

    def __init__(self, robot: RemoteRobot) -> None:
        self._robot = robot
        self.embodiment, self.instruction = robot.embodiment, robot.instruction
        self.sent = 0

    def begin(self, seed: int) -> Observation:
        return self._robot.begin(seed)

    def send(self, chunk: ActionChunk) -> None:
        self._robot.send(chunk)
        self.sent += 1

    def ticks(self, timeout_s: float) -> list[Tick]:
        return self._robot.ticks(timeout_s)

    def end(self) -> None:
        self._robot.end()


def serve_bridge(policy: str, stop: threading.Event) -> dict[str, Any]:
    """A bridge with an arm that fits the policy, until the end; what came."""
    with RemotePolicy(policy) as remote:
        embodiment = remote.embodiment
    assert embodiment is not None
    clock, arm = MonotonicClock(), EmulatedArm(embodiment)
    limits = SafetyFilter(embodiment, limits_of(embodiment, LimitsRecipe()))
    # Two cores for nine processes: an answer may take its time, and this is not about latency.
    bridge = CountingBridge(arm, limits, Watchdog(clock, 2.0, 3600.0, 2.0), clock)
    with ServerSocket() as socket:
        say({"address": socket.address})
        server = BridgeServer(bridge, socket, clock)
        server.serve(stop.is_set)
    return {"came": bridge.came, "reordered": bridge.reordered, **server.status()["counts"]}


def control(policy: str, bridge: str, seed: int, stop: threading.Event) -> dict[str, Any]:
    """Episode after episode until the end; what was sent."""
    outcomes: dict[str, int] = {}
    errors: list[str] = []
    with RemotePolicy(policy) as remote, RemoteRobot(bridge) as robot:
        counting = CountingRobot(robot)
        guard = RangeGuard(robot.embodiment.action)
        say({"address": ""})
        while not stop.is_set():
            ended = run_live_episode(counting, remote, seed, guard=guard, should_stop=stop.is_set)
            outcomes[ended.outcome] = outcomes.get(ended.outcome, 0) + 1
            errors += [ended.error] if ended.error else []
            seed += BRIDGES
        robot.end()  # its answer comes after all commands before it
    return {"sent": counting.sent, "outcomes": outcomes, "errors": errors[:5]}


def say(what: Mapping[str, Any]) -> None:
    print(json.dumps(what), flush=True)


class Part:
    """A process of the soak. Closing its stdin asks it to end, and to say what it counted."""

    def __init__(self, name: str, *arguments: str) -> None:
        command = [sys.executable, os.path.abspath(__file__), *arguments]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rss_mb: list[float] = []

    def line(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def sample(self) -> None:
        """Note how much memory it has now."""
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} ended with status {self._process.returncode}")
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        self.rss_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    def finish(self) -> dict[str, Any]:
        _pipe(self._process.stdin).close()
        said = self.line()
        self._process.wait()
        return said

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def serve_policy(policy: str, stop: threading.Event) -> dict[str, Any]:
    """The policy server of `vla serve`, with a line that a program reads; what it answered."""
    from vla_robot.recipe.policy_source import find_policy
    from vla_robot.serve.policy.batcher import Batcher, Line
    from vla_robot.serve.policy.load import build_served_policy
    from vla_robot.serve.policy.server import PolicyServer, Served, answering
    from vla_robot.transport.wake import Wake

    built = build_served_policy(find_policy(policy))
    with contextlib.closing(Wake()) as wake, ServerSocket(wake=wake) as socket:
        batcher = Batcher(built.act, Line(BRIDGES, 5_000_000), prepare=built.prepare)
        thread = answering(batcher)
        say({"address": socket.address})
        PolicyServer(Served(policy, built.embodiment, BRIDGES), batcher, socket, wake).serve(stop.is_set)
        status = batcher.status()
        batcher.close()
        thread.join()
    return {"status": status}


@contextlib.contextmanager
def parts(policy: str) -> Iterator[list[Part]]:
    """All processes, once everybody is connected: the server, the bridges, the controllers."""
    started: list[Part] = []

    def start(name: str, *arguments: str) -> str:
        part = Part(name, *arguments)
        started.append(part)
        return part.line()["address"]

    try:
        server = start("policy server", "policy", policy)
        bridges = [start(f"bridge {i}", "bridge", server) for i in range(BRIDGES)]
        for i, bridge in enumerate(bridges):
            start(f"controller {i}", "control", server, bridge, str(i))
        yield started
    finally:
        for part in started:
            part.kill()


def soak(policy: str, minutes: float) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Let everything run; rows of what was counted, and each process's memory [MB], once a second."""
    with parts(policy) as running:
        end_s = time.monotonic() + 60 * minutes
        next_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s:
            for part in running:
                part.sample()
            next_s += SAMPLE_S
            time.sleep(max(next_s - now_s, 0.0))
        server, bridges, controllers = running[0], running[1 : 1 + BRIDGES], running[1 + BRIDGES :]
        sent = [part.finish() for part in controllers]
        came = [part.finish() for part in bridges]
        answered = server.finish()
    rows = [{"name": p.name, "rss_mb": round(p.rss_mb[-1], 1), "slope_mb_per_h": _slope(p.rss_mb)} for p in running]
    lost = sum(s["sent"] for s in sent) - sum(c["came"] for c in came)
    total = {
        "name": "all",
        "commands": sum(s["sent"] for s in sent),
        "lost": lost,
        "reordered": sum(c["reordered"] + c["replayed"] for c in came),
        "late": sum(c["dropped_rows"] for c in came),
        "refused": sum(c["refused"] for c in came),
    }
    rows += [{**total, "controllers": sent, "bridges": came, "server": answered}]
    return rows, {p.name: p.rss_mb for p in running}


def _slope(rss_mb: Sequence[float]) -> float:
    """By least squares after the warm-up [MB per hour]."""
    kept = np.array(rss_mb[int(len(rss_mb) * WARM_UP_SHARE) :])
    hours = np.arange(len(kept)) * SAMPLE_S / 3600
    return round(float(np.polyfit(hours, kept, 1)[0]), 2) if len(kept) > 2 else 0.0


def draw(rss_mb: Mapping[str, Sequence[float]], path: Path) -> None:
    """Memory over time, above each process's own after the warm-up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in rss_mb.items():
        start = values[int(len(values) * WARM_UP_SHARE)]
        axes.plot(np.arange(len(values)) * SAMPLE_S / 60, np.array(values) - start, label=f"{name}, {start:.0f} MB")
    axes.set(xlabel="minutes", ylabel="MB above the value after the warm-up")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _until_parent_lets_go() -> threading.Event:
    stop = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    return stop


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # Popen was asked for it
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--policy", default="openvla_nano", help="by name or path; one that says which arm it drives")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw memory over time in this PNG")
    args = parser.parse_args()
    rows, rss_mb = soak(args.policy, args.minutes)
    for row in rows:
        print({name: value for name, value in row.items() if not isinstance(value, dict | list)})
    if args.json:
        args.json.write_text(json.dumps({"minutes": args.minutes, "rows": rows}, indent=1))
    if args.plot:
        draw(rss_mb, args.plot)


def part(what: str, *arguments: str) -> None:
    """One process of the soak."""
    stop = _until_parent_lets_go()
    try:
        if what == "policy":
            say(serve_policy(arguments[0], stop))
        elif what == "bridge":
            say(serve_bridge(arguments[0], stop))
        else:
            say(control(arguments[0], arguments[1], int(arguments[2]), stop))
    except VlaError as error:
        raise SystemExit(f"{what}: {error}") from error


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("policy", "bridge", "control"):
        part(*sys.argv[1:])
    else:
        main()
