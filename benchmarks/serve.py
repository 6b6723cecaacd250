"""`vla bench serve`: effect of batching for many robots, next to the same server with batches of one.

Two servers of the same policy run in their own processes and are asked in turns, so that other load on the computer
affects both alike:

- batched: up to --max-batch observations in one inference
- one at a time: the same server with batches of one

With --replicas N, a server with N replicas is measured next to one with a single replica, and in one more turn a
replica is killed while all clients ask.

Each client asks again when it has its answer. Every answer is compared with the client's answer without others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table

from vla_robot.cli.common.cli_common import option, short_path
from vla_robot.cli.common.json_out import write_figure, write_json
from vla_robot.cli.common.terminal import Terminal, say
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import PolicyError, RecipeError, VlaError
from vla_robot.core.host.optional import require
from vla_robot.core.host.provenance import row
from vla_robot.core.messages import Observation
from vla_robot.serve.policy.client import RemotePolicy

LISTENING = "listening on "
FRAME_PX = 224
INSTRUCTION = "lift the red cube"
TOLERANCE = 1e-9
"""Largest difference between an answer in a batch and alone, in the action's unit; a token is 1000 times larger."""


@dataclass(frozen=True)
class ServeBenchArgs:
    """Measure actions per second of many clients, batched and one at a time, in one run."""

    policy: Annotated[str, option("POLICY")] = "openvla_nano"
    """the policy, by name or path"""
    clients: Annotated[int, option("N")] = 8
    """number of clients"""
    max_batch: Annotated[int, option("N")] = 16
    """largest batch of the batching server"""
    replicas: Annotated[int | None, option("N")] = None
    """measure N replicas of the policy against one replica, and kill one of them in a last turn"""
    seconds: Annotated[float, option("S")] = 4.0
    """duration of each turn"""
    rounds: Annotated[int, option("N")] = 3
    """turns per server"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where both servers' weights are, instead of the recipe's device: auto, cpu, cuda, cuda:1, mps"""
    json: Annotated[Path | None, option("FILE")] = None
    """also write the results to this file as JSON"""
    plot: Annotated[Path | None, option("FILE.png")] = None
    """also plot the latencies to this file"""

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 2:
            raise RecipeError("--replicas takes numbers from 2 on: they are measured against one.")
        if min(self.clients, self.max_batch, self.rounds) < 1 or self.seconds <= 0:
            raise RecipeError("--clients, --max-batch and --rounds take numbers from 1 on, --seconds more than 0.")


@dataclass
class Client:
    """A robot that asks without a pause.

    Attributes:
        scene: its observation, always the same.
        alone: (T, D) its answer without other clients.
        latencies_ms: server -> time of each answer.
        differing: number of answers that differ from `alone`.
        failed: number of requests that ended with an error.
    """

    scene: Observation
    alone: NDArray[np.float64]
    latencies_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    differing: int = 0
    failed: int = 0

    def drive(self, address: str, server: str, begin: threading.Barrier, seconds: float) -> None:
        kept = self.latencies_ms.setdefault(server, [])
        with RemotePolicy(address) as policy:
            begin.wait()
            end = time.perf_counter() + seconds
            while (asked := time.perf_counter()) < end:
                try:
                    actions = policy.act([self.scene])[0].actions
                except VlaError:
                    self.failed += 1
                    continue
                kept.append((time.perf_counter() - asked) * 1e3)
                self.differing += not np.allclose(actions, self.alone, rtol=0, atol=TOLERANCE)


@dataclass(frozen=True)
class Servers:
    """The two servers that are compared.

    Attributes:
        ours: name of the first, and its options of `vla serve`.
        baseline: the same of the other.
    """

    ours: tuple[str, tuple[str, ...]]
    baseline: tuple[str, tuple[str, ...]]

    @classmethod
    def of(cls, args: ServeBenchArgs) -> Servers:
        batch = "--max-batch", str(args.max_batch)
        if args.replicas is None:
            return cls(("batched", batch), ("one at a time", ("--max-batch", "1")))
        several = f"{args.replicas} replicas", (*batch, "--replicas", str(args.replicas))
        return cls(several, ("one replica", (*batch, "--replicas", "1")))

    @property
    def names(self) -> tuple[str, str]:
        return self.ours[0], self.baseline[0]


def main(args: ServeBenchArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: the policy cannot be served.
    """
    if args.plot:
        require("matplotlib", "report", "a plot")
    console = Terminal()
    console.print(f"vla bench serve: {args.policy}, {args.clients} clients, {args.rounds} turns of {args.seconds:g} s")
    servers = Servers.of(args)
    killed = ""
    with (
        served(args.policy, servers.ours[1], args.device) as ours,
        served(args.policy, servers.baseline[1], args.device) as baseline,
    ):
        clients = _clients(baseline, args.clients)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("turns", total=2 * args.rounds)
            for _ in range(args.rounds):
                for name, address in zip(servers.names, (ours, baseline), strict=True):
                    _turn(clients, address, name, args.seconds)
                    bar.advance(task)
        with RemotePolicy(ours) as policy:
            mean_batch = float(policy.status()["mean_batch"])
        if args.replicas:
            killed = _killed(clients, ours, args.seconds)
    seconds = args.seconds * args.rounds
    console.print(_table(clients, seconds, servers.names))
    console.print(_words(clients, seconds, mean_batch, servers.names) + killed)
    if args.json:
        write_json(args.json, "bench serve", rows(clients, seconds, mean_batch, servers.names))
    if args.plot:
        _draw(clients, args.plot, servers.names)
        say(f"\nDrawn in {short_path(args.plot)}.")
    return 0


@contextlib.contextmanager
def served(policy: str, options: Sequence[str], device: str | None = None) -> Iterator[str]:
    """Run a `vla serve` during the `with` block; yield its address.

    Raises:
        PolicyError: it did not start; its reason is on stderr.
    """
    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", policy]
    command += ["--bind", "tcp://127.0.0.1:0", *options]
    command += [] if device is None else ["--device", device]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield _address(process.stdout)
    finally:
        process.terminate()
        process.communicate()


def _address(lines: Iterator[str] | Any) -> str:
    for line in lines:
        if LISTENING in line:
            return line.partition(LISTENING)[2].strip()
    raise PolicyError("the policy server ended before it listened.")


def _clients(address: str, count: int) -> list[Client]:
    with RemotePolicy(address) as policy:
        scenes = [_scene(policy.embodiment, index) for index in range(count)]
        return [Client(scene, policy.act([scene])[0].actions) for scene in scenes]


def _scene(embodiment: Embodiment | None, index: int) -> Observation:
    """Return an observation of noise: the time does not depend on the frames."""
    rng = np.random.default_rng(index)
    sizes = {c.name: (c.height, c.width) for c in embodiment.cameras} if embodiment else {"image": (FRAME_PX, FRAME_PX)}
    frames = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in sizes.items()}
    dims = embodiment.state if embodiment else ()
    state = np.array([rng.uniform(max(d.low, -1.0), min(d.high, 1.0)) for d in dims])
    return Observation(frames, state, INSTRUCTION, stamp_ns=index, step=0)


def _turn(clients: Sequence[Client], address: str, name: str, seconds: float) -> None:
    begin = threading.Barrier(len(clients))
    threads = [threading.Thread(target=c.drive, args=(address, name, begin, seconds)) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _killed(clients: Sequence[Client], address: str, seconds: float) -> str:
    """Kill a replica in the midst of a turn, and return what came of its requests, in words."""
    name = "a replica is killed"
    failed = sum(client.failed for client in clients)
    with RemotePolicy(address) as policy:
        timer = threading.Timer(seconds / 2, os.kill, (policy.status()["replicas"][0]["pid"], signal.SIGKILL))
        timer.start()
        _turn(clients, address, name, seconds)
        timer.join()
        retried = policy.status()["counts"].get("retried", 0)
    failed = sum(client.failed for client in clients) - failed
    return (
        f"\nA replica was killed after half of {seconds:g} s: {_answers(clients, name)} answers, {retried} of them to "
        f"requests that went to another replica; {failed} requests failed; the longest answer took "
        f"{_all_ms(clients, name).max():.0f} ms."
    )


def rows(clients: Sequence[Client], seconds: float, mean_batch: float, names: tuple[str, str]) -> list[dict[str, Any]]:
    """Return rates and latencies of the first server beside the other's."""
    rate, baseline = (_answers(clients, name) / seconds for name in names)
    found = [row("rate", rate, "actions/s", baseline, rate / baseline)]
    for label, percent in (("p50", 50.0), ("p99", 99.0)):
        ours, theirs = (np.percentile(_all_ms(clients, name), percent) for name in names)
        found.append(row(f"latency/{label}", float(ours), "ms", float(theirs), float(theirs / ours)))
    for index, client in enumerate(clients):
        ours, theirs = (float(np.percentile(client.latencies_ms[name], 99)) for name in names)
        found.append(row(f"client{index}/p99", ours, "ms", theirs, theirs / ours))
    found.append(row("mean_batch", mean_batch, "rows", 1.0, mean_batch))
    found.append(row("differing_answers", float(_differing(clients)), "answers"))
    return found


def _table(clients: Sequence[Client], seconds: float, names: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("client", no_wrap=True)
    for server in names:
        for column in ("actions/s", "p50 ms", "p99 ms"):
            table.add_column(f"{server}\n{column}", justify="right", no_wrap=True)
    for index, client in enumerate(clients):
        table.add_row(str(index), *(text for name in names for text in _figures([client], name, seconds)))
    table.add_row("all", *(text for name in names for text in _figures(clients, name, seconds)))
    return table


def _figures(clients: Sequence[Client], server: str, seconds: float) -> tuple[str, str, str]:
    p50, p99 = np.percentile(_all_ms(clients, server), (50, 99))
    return f"{_answers(clients, server) / seconds:.1f}", f"{p50:.1f}", f"{p99:.1f}"


def _words(clients: Sequence[Client], seconds: float, mean_batch: float, names: tuple[str, str]) -> str:
    rate, baseline = (_answers(clients, name) / seconds for name in names)
    total = sum(len(times) for client in clients for times in client.latencies_ms.values())
    return (
        f"\nWith {names[0]}, the clients get {rate / baseline:.2f}x the actions per second, in batches of "
        f"{mean_batch:.1f}.\n"
        f"{_differing(clients)} of {total} answers differ from what the client gets when it is alone."
    )


def _answers(clients: Sequence[Client], server: str) -> int:
    return sum(len(c.latencies_ms[server]) for c in clients)


def _differing(clients: Sequence[Client]) -> int:
    return sum(c.differing for c in clients)


def _all_ms(clients: Sequence[Client], server: str) -> NDArray[np.float64]:
    return np.concatenate([c.latencies_ms[server] for c in clients])


def _draw(clients: Sequence[Client], path: Path, names: tuple[str, str]) -> None:
    """Plot the number of answers within a time, a line per client."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(names, ("C0", "C7"), strict=True):
        for index, client in enumerate(clients):
            times = np.sort(client.latencies_ms[name])
            share = np.arange(1, len(times) + 1) / len(times)
            axes.plot(times, share, color=colour, alpha=0.7, linewidth=1, label=name if index == 0 else None)
    axes.set(title=f"{len(clients)} clients, one policy", xlabel="from asking to the answer, ms", ylabel="answers")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlim(left=0)
    axes.legend()
    write_figure(path, figure)
