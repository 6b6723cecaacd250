"""`vla bench serve`: effect of batching for many robots, next to the same server with batches of one.

Two servers of the same policy run in their own processes and are asked in turns, so that other load on the computer
affects both alike:

- batched: up to --max-batch observations in one inference
- one at a time: the same server with batches of one

Each client asks again when it has its answer. Every answer is compared with the client's answer without others.
"""

from __future__ import annotations

import contextlib
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
from vla_robot.core.errors import PolicyError, RecipeError
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
    """

    scene: Observation
    alone: NDArray[np.float64]
    latencies_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    differing: int = 0

    def drive(self, address: str, server: str, begin: threading.Barrier, seconds: float) -> None:
        kept = self.latencies_ms.setdefault(server, [])
        with RemotePolicy(address) as policy:
            begin.wait()
            end = time.perf_counter() + seconds
            while (asked := time.perf_counter()) < end:
                actions = policy.act([self.scene])[0].actions
                kept.append((time.perf_counter() - asked) * 1e3)
                self.differing += not np.allclose(actions, self.alone, rtol=0, atol=TOLERANCE)


BATCHED, ALONE = "batched", "one at a time"


def main(args: ServeBenchArgs) -> int:
    """Measure, and print a table.

    Raises:
        VlaError: the policy cannot be served.
    """
    if args.plot:
        require("matplotlib", "report", "a plot")
    console = Terminal()
    console.print(f"vla bench serve: {args.policy}, {args.clients} clients, {args.rounds} turns of {args.seconds:g} s")
    with (
        served(args.policy, args.max_batch, args.device) as batched,
        served(args.policy, 1, args.device) as alone,
    ):
        clients = _clients(alone, args.clients)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("turns", total=2 * args.rounds)
            for _ in range(args.rounds):
                for name, address in ((BATCHED, batched), (ALONE, alone)):
                    _turn(clients, address, name, args.seconds)
                    bar.advance(task)
        with RemotePolicy(batched) as policy:
            mean_batch = float(policy.status()["mean_batch"])
    seconds = args.seconds * args.rounds
    console.print(_table(clients, seconds))
    console.print(_words(clients, seconds, mean_batch))
    if args.json:
        write_json(args.json, "bench serve", rows(clients, seconds, mean_batch))
    if args.plot:
        _draw(clients, args.plot)
        say(f"\nDrawn in {short_path(args.plot)}.")
    return 0


@contextlib.contextmanager
def served(policy: str, max_batch: int, device: str | None = None) -> Iterator[str]:
    """Run a `vla serve` during the `with` block; yield its address.

    Raises:
        PolicyError: it did not start; its reason is on stderr.
    """
    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", policy]
    command += ["--bind", "tcp://127.0.0.1:0", "--max-batch", str(max_batch)]
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


def rows(clients: Sequence[Client], seconds: float, mean_batch: float) -> list[dict[str, Any]]:
    """Return rates and latencies of the batching server beside the other's."""
    rate, baseline = (_answers(clients, name) / seconds for name in (BATCHED, ALONE))
    found = [row("rate", rate, "actions/s", baseline, rate / baseline)]
    for label, percent in (("p50", 50.0), ("p99", 99.0)):
        ours, theirs = (np.percentile(_all_ms(clients, name), percent) for name in (BATCHED, ALONE))
        found.append(row(f"latency/{label}", float(ours), "ms", float(theirs), float(theirs / ours)))
    for index, client in enumerate(clients):
        ours, theirs = (float(np.percentile(client.latencies_ms[name], 99)) for name in (BATCHED, ALONE))
        found.append(row(f"client{index}/p99", ours, "ms", theirs, theirs / ours))
    found.append(row("mean_batch", mean_batch, "rows", 1.0, mean_batch))
    found.append(row("differing_answers", float(_differing(clients)), "answers"))
    return found


def _table(clients: Sequence[Client], seconds: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("client", no_wrap=True)
    for server in (BATCHED, ALONE):
        for column in ("actions/s", "p50 ms", "p99 ms"):
            table.add_column(f"{server}\n{column}", justify="right", no_wrap=True)
    for index, client in enumerate(clients):
        table.add_row(str(index), *(text for name in (BATCHED, ALONE) for text in _figures([client], name, seconds)))
    table.add_row("all", *(text for name in (BATCHED, ALONE) for text in _figures(clients, name, seconds)))
    return table


def _figures(clients: Sequence[Client], server: str, seconds: float) -> tuple[str, str, str]:
    p50, p99 = np.percentile(_all_ms(clients, server), (50, 99))
    return f"{_answers(clients, server) / seconds:.1f}", f"{p50:.1f}", f"{p99:.1f}"


def _words(clients: Sequence[Client], seconds: float, mean_batch: float) -> str:
    rate, baseline = (_answers(clients, name) / seconds for name in (BATCHED, ALONE))
    total = sum(_answers(clients, name) for name in (BATCHED, ALONE))
    return (
        f"\nBatched, the clients get {rate / baseline:.2f}x the actions per second, in batches of {mean_batch:.1f}.\n"
        f"{_differing(clients)} of {total} answers differ from what the client gets when it is alone."
    )


def _answers(clients: Sequence[Client], server: str) -> int:
    return sum(len(c.latencies_ms[server]) for c in clients)


def _differing(clients: Sequence[Client]) -> int:
    return sum(c.differing for c in clients)


def _all_ms(clients: Sequence[Client], server: str) -> NDArray[np.float64]:
    return np.concatenate([c.latencies_ms[server] for c in clients])


def _draw(clients: Sequence[Client], path: Path) -> None:
    """Plot the number of answers within a time, a line per client."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in ((BATCHED, "C0"), (ALONE, "C7")):
        for index, client in enumerate(clients):
            times = np.sort(client.latencies_ms[name])
            share = np.arange(1, len(times) + 1) / len(times)
            axes.plot(times, share, color=colour, alpha=0.7, linewidth=1, label=name if index == 0 else None)
    axes.set(title=f"{len(clients)} clients, one policy", xlabel="from asking to the answer, ms", ylabel="answers")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlim(left=0)
    axes.legend()
    write_figure(path, figure)
