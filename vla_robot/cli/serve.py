"""`vla serve`: serves one policy to many robots, in batches of their observations."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from vla_robot.cli.build import open_runner, require_cluster_name, server_security
from vla_robot.cli.common.cli_common import on, option, shown
from vla_robot.cli.common.interrupt import stop_on_interrupt
from vla_robot.cli.common.json_out import write_json
from vla_robot.cli.common.metrics import metrics_at, metrics_in_words
from vla_robot.cli.common.terminal import say
from vla_robot.core.clock import NS_PER_MS
from vla_robot.core.embodiment import Embodiment
from vla_robot.core.errors import ContractError, RecipeError
from vla_robot.core.ports import TaskRunner
from vla_robot.recipe.peer import PeerRecipe
from vla_robot.recipe.policy import GrootRecipe, OpenpiRecipe, WeightsRecipe
from vla_robot.recipe.policy_source import PolicySource, find_policy
from vla_robot.serve.interop.openpi_schema import ExampleWords, RecipeWords, Words
from vla_robot.serve.interop.openpi_server import OpenpiServer
from vla_robot.serve.interop.rest import RestServer
from vla_robot.serve.interop.vla_eval_server import EvalSchema, EvalServer
from vla_robot.serve.metrics.process import MetricsProcess, Periodic, metrics_address
from vla_robot.serve.policy.batcher import Batcher, Line
from vla_robot.serve.policy.load import build_served_policy, device_of, model_needs, weights_of
from vla_robot.serve.policy.server import PolicyServer, Served, answering
from vla_robot.serve.replicas.batcher import ReplicatedBatcher
from vla_robot.serve.replicas.placed import LoadThere, PlacedReplica
from vla_robot.serve.replicas.placement import core_sets
from vla_robot.serve.replicas.replica import ProcessReplica, Replica, program
from vla_robot.transport.sockets import ServerSocket
from vla_robot.transport.wake import Wake

LOOPBACK = "tcp://127.0.0.1:5580"
LINE_EVERY_S = 10.0
MAX_REPLICAS = 64


@dataclass(frozen=True)
class ServeArgs:
    """Serve a policy to many robots at once. `vla run --policy ADDRESS` connects to it."""

    policy: Annotated[str, tyro.conf.Positional, option("POLICY")]
    """the policy, by name or path"""
    bind: Annotated[str, option("ADDRESS")] = LOOPBACK
    """address where robots connect; off this computer it needs keys, see `vla keys`"""
    key: Annotated[str | None, option("NAME")] = None
    """which of this computer's keys to use; only needed if there are several"""
    device: Annotated[str | None, option("DEVICE")] = None
    """where the policy's weights are, instead of its recipe's device:
    auto (a GPU if there is one), cpu, cuda, cuda:1 or mps"""
    replicas: Annotated[int | None, option("N")] = None
    """run the policy in N processes, each on its own GPU or its share of the cores, behind this one address"""
    cluster: Annotated[str | None, option("local|auto|ray://HOST:10001")] = None
    """place the replicas (one without --replicas) on the nodes of a Ray cluster (extra [cluster]; docs/cluster.md)"""
    max_batch: Annotated[int, option("N")] = 16
    """largest number of observations in one inference"""
    max_wait_ms: Annotated[float, option("MS")] = 5.0
    """how long the first of a batch waits for others; it does not wait if all recent clients have asked"""
    rest: Annotated[int | None, option("PORT")] = None
    """also answer POST /act on this port of this computer, as OpenVLA's own server does; 0 for a free one"""
    openpi: Annotated[int | None, option("PORT")] = None
    """also answer clients of openpi on this port of this computer; 0 for a free one"""
    openpi_words: Annotated[str | None, option("RECIPE")] = None
    """answer openpi's clients in the words and units of this recipe's table [peer], e.g. openpi_libero"""
    vla_eval: Annotated[int | None, option("PORT")] = None
    """also answer AllenAI's vla-eval on this port of this computer; 0 for a free one"""
    vla_eval_words: Annotated[str | None, option("RECIPE")] = None
    """answer vla-eval in the words and units of this recipe's table [peer]: openpi_libero fits its LIBERO"""
    metrics: Annotated[str | None, option("[HOST:]PORT")] = None
    """answer GET /metrics in Prometheus' format on this port of this computer, from a process of its own"""
    json: Annotated[Path | None, option("FILE")] = None
    """at the end, also write the counts and times to this file as JSON"""

    def __post_init__(self) -> None:
        for flag, port in (("--rest", self.rest), ("--openpi", self.openpi), ("--vla-eval", self.vla_eval)):
            if port is not None and not 0 <= port < 1 << 16:
                raise RecipeError(f"{flag} {port}: a port, 0 to 65535.")
        if self.metrics is not None:
            metrics_address(self.metrics)
        if self.replicas is not None and not 1 <= self.replicas <= MAX_REPLICAS:
            raise RecipeError(f"--replicas {self.replicas}: 1 to {MAX_REPLICAS} processes.")
        if self.cluster is not None:
            require_cluster_name(self.cluster)
        if self.openpi_words is not None and self.openpi is None:
            raise RecipeError("--openpi-words is an option of --openpi PORT, which is missing.")
        if self.vla_eval_words is not None and self.vla_eval is None:
            raise RecipeError("--vla-eval-words is an option of --vla-eval PORT, which is missing.")


def main(args: ServeArgs) -> int:
    """Serve until Ctrl-C.

    Raises:
        VlaError: the policy or the address cannot be used.
    """
    source = find_policy(args.policy).on_device(args.device)
    peers = _Peers(_peer("--openpi-words", args.openpi_words), _peer("--vla-eval-words", args.vla_eval_words))
    line = Line(args.max_batch, round(args.max_wait_ms * NS_PER_MS))
    security = server_security(args.bind, args.key)
    weights_of(source)  # refuses before a process starts
    device = None if args.replicas or args.cluster else device_of(source)
    say(f"vla serve: {shown(source)}{on(device)}", flush=True)
    with contextlib.ExitStack() as stack:
        wake = stack.enter_context(contextlib.closing(Wake()))
        socket = stack.enter_context(ServerSocket(args.bind, security, wake))
        stop = stack.enter_context(stop_on_interrupt())
        metrics = stack.enter_context(metrics_at(args.metrics))
        batcher, embodiment = stack.enter_context(_running(args, source, line))
        served = Served(source.name, embodiment, args.max_batch)
        urls = _front_ends(stack, args, batcher, served, _cameras(source, served), peers, _mirrors(source))
        _announce(socket.address, urls + metrics_in_words(metrics) + _replicas_in_words(batcher), served)
        PolicyServer(served, batcher, socket, wake).serve(_until(stop.is_set, batcher, _metrics_of(batcher, metrics)))
        status = batcher.status()
    if args.json:
        write_json(args.json, "serve", _rows(status), status=status, device=device)
    say(f"\nThe policy is no longer served. {_told(status)}.")
    return 0


@contextlib.contextmanager
def _running(args: ServeArgs, source: PolicySource, line: Line) -> Iterator[tuple[Batcher, Embodiment | None]]:
    """Run the policy in a thread of this process, or in replicas; yield its batcher and its embodiment."""
    if args.cluster is not None:
        with (
            open_runner(args.cluster, args.replicas or 1) as runner,
            _replicated(_placed(args, source, runner), line) as it,
        ):
            yield it
        return
    if args.replicas:
        with _replicated(_started(args, args.replicas), line) as it:
            yield it
        return
    policy = build_served_policy(source)
    batcher = Batcher(policy.act, line, prepare=policy.prepare)
    thread = answering(batcher)
    try:
        yield batcher, policy.embodiment
    finally:
        batcher.close()
        thread.join()


def _started(args: ServeArgs, count: int) -> list[Callable[[], Replica]]:
    """Return what starts each replica on this computer."""
    places = core_sets(sorted(os.sched_getaffinity(0)), count)
    commands = [program(args.policy, number, args.device, cores) for number, cores in enumerate(places)]
    return [partial(ProcessReplica, command) for command in commands]


def _placed(args: ServeArgs, source: PolicySource, runner: TaskRunner) -> list[Callable[[], Replica]]:
    """Return what places each replica on a node."""
    needs = model_needs(source, has_gpu=runner.has_gpu())
    return [partial(PlacedReplica, runner, LoadThere(source, number), needs) for number in range(args.replicas or 1)]


@contextlib.contextmanager
def _replicated(starts: Sequence[Callable[[], Replica]], line: Line) -> Iterator[tuple[Batcher, Embodiment | None]]:
    """Run the policy in replicas, which SIGUSR2 restarts one after the other."""
    batcher = ReplicatedBatcher(starts, line, on_event=lambda text: say(f"  {text}", flush=True))
    with contextlib.closing(batcher):
        loaded = batcher.start()
        signal.signal(signal.SIGUSR2, lambda *_: batcher.restart())
        yield batcher, loaded.embodiment


def _replicas_in_words(batcher: Batcher) -> str:
    """Return the line of the replicas' processes; empty if the policy runs in this one."""
    if not isinstance(batcher, ReplicatedBatcher):
        return ""
    replicas = batcher.status()["replicas"]
    places = ", ".join(f"{replica['pid']} on {replica['device']}" for replica in replicas)
    return f"  {len(replicas)} replicas: processes {places}; kill -USR2 {os.getpid()} restarts them in turn\n"


def _front_ends(
    stack: contextlib.ExitStack,
    args: ServeArgs,
    batcher: Batcher,
    served: Served,
    cameras: Sequence[str],
    peers: _Peers,
    mirror: bool,
) -> str:
    """Start servers of other protocols that share the batcher; return the lines with their addresses."""
    lines = ""
    if args.rest is not None:
        rest = stack.enter_context(contextlib.closing(RestServer(batcher, served.name, cameras, args.rest, mirror)))
        lines += f"  POST {rest.url}\n"
    if args.openpi is not None:
        words = _openpi_words(served, cameras, peers.openpi, mirror)
        openpi = stack.enter_context(contextlib.closing(OpenpiServer(batcher, served.name, words, args.openpi)))
        lines += f"  openpi's clients: {openpi.url}\n"
    if args.vla_eval is not None:
        if peers.vla_eval is not None:
            _require_embodiment("--vla-eval-words", served)
        schema = EvalSchema(cameras, served.embodiment, peers.vla_eval, mirror)
        harness = stack.enter_context(contextlib.closing(EvalServer(batcher, schema, args.vla_eval)))
        lines += f"  vla-eval: {harness.url}\n"
    return lines


@dataclass(frozen=True)
class _Peers:
    """Words and units of the clients of other protocols; None for the policy's own."""

    openpi: PeerRecipe | None
    vla_eval: PeerRecipe | None


def _peer(flag: str, name: str | None) -> PeerRecipe | None:
    """Return the table [peer] of a recipe."""
    if name is None:
        return None
    recipe = find_policy(name).recipe
    if not isinstance(recipe, OpenpiRecipe | GrootRecipe):
        raise RecipeError(f"{flag} {name}: this recipe has no table [peer]; openpi_libero is one that has.")
    return recipe.peer


def _openpi_words(served: Served, cameras: Sequence[str], peer: PeerRecipe | None, mirror: bool) -> Words:
    if peer is None:
        return ExampleWords(cameras, served.embodiment, mirror)
    return RecipeWords(peer, _require_embodiment("--openpi-words", served))


def _require_embodiment(flag: str, served: Served) -> Embodiment:
    if served.embodiment is None:
        raise ContractError(
            f"{flag}: '{served.name}' has numbers of unknown meaning, so they cannot be converted to the units "
            "of a recipe. Leave the option out; clients then get the policy's own numbers."
        )
    return served.embodiment


def _mirrors(source: PolicySource) -> bool:
    return isinstance(source.recipe, WeightsRecipe) and source.recipe.mirror


def _cameras(source: PolicySource, served: Served) -> Sequence[str]:
    """Return the policy's camera names in its order; none if the checkpoint does not name them."""
    if served.embodiment is not None:
        return [camera.name for camera in served.embodiment.cameras]
    return source.recipe.camera_names if isinstance(source.recipe, WeightsRecipe) else ()


def _announce(address: str, urls: str, served: Served) -> None:
    drives = "any arm that fits" if served.embodiment is None else served.embodiment.name
    say(
        f"  {served.name}, made for {drives}, up to {served.max_batch} observations in one batch\n"
        f"  listening on {address}\n{urls}"
        f"  Ctrl-C ends it; an arm that it drives holds then\n"
        f"Next: vla run --env lift --policy {address}",
        flush=True,
    )


def _metrics_of(batcher: Batcher, metrics: MetricsProcess | None) -> Callable[[], None]:
    """Return a function that publishes counts and times once a second; it does nothing without metrics."""
    if metrics is None:
        return lambda: None

    def snapshot() -> dict[str, Any]:
        histograms = {name: asdict(histogram) for name, histogram in batcher.tally.histograms().items()}
        return {"kind": "serve", "status": batcher.status(), "histograms": histograms}

    return Periodic(metrics, snapshot)


def _until(stopped: Callable[[], bool], batcher: Batcher, meanwhile: Callable[[], None]) -> Callable[[], bool]:
    """Return the server's stop flag, which also calls `meanwhile`, and prints a line at intervals while clients ask."""
    told, next_s = "", time.monotonic() + LINE_EVERY_S

    def should_stop() -> bool:
        nonlocal told, next_s
        meanwhile()
        if time.monotonic() > next_s:
            next_s = time.monotonic() + LINE_EVERY_S
            now = _told(batcher.status())
            if now != told:
                say(f"  {now}", flush=True)
            told = now
        return stopped()

    return should_stop


def _told(status: dict[str, Any]) -> str:
    counts = status["counts"]
    others = [f"{n} {kind.removesuffix('Error').lower()}" for kind, n in sorted(counts.items()) if kind != "answered"]
    text = f"{counts.get('answered', 0)} answered{''.join(f', {o}' for o in others)}"
    if status["inference_ms"]:
        inference, wait = status["inference_ms"], status["wait_ms"]
        text += (
            f"; batches of {status['mean_batch']:.1f}, inference p50 {inference['p50']:.1f} ms, "
            f"p99 {inference['p99']:.1f} ms, waiting p50 {wait['p50']:.1f} ms, p99 {wait['p99']:.1f} ms"
        )
    return text


def _rows(status: dict[str, Any]) -> list[dict[str, object]]:
    counts = [{"name": name, "value": value, "unit": "requests"} for name, value in status["counts"].items()]
    return [*counts, {"name": "mean_batch", "value": status["mean_batch"], "unit": "rows"}]
