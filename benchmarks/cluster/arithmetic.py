"""Prints how long an evaluation and an epoch take on 1, 8 and 64 nodes, by calculation from measured constants.

    python -m benchmarks.cluster.arithmetic
    python -m benchmarks.cluster.arithmetic --node-cores 32 --inference-ms 120 --store-mb-s 2500

Each line is the largest of what its parts would need alone, so that the part that is named breaks first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tyro

SUITES, TASKS, STATES = 16, 10, 50
"""LIBERO-PRO: suites, tasks of each, initial states of each task."""
NODES = (1, 8, 64)


@dataclass(frozen=True)
class Assumptions:
    """What the calculation assumes. Measured constants say where; the others are the user's cluster."""

    # measured: two cores of an AMD EPYC, busy, software rendering (docs/cluster.md)
    step_cpu_ms: float = 258.0
    """CPU of a control step with two rendered frames of 256 px [ms]"""
    start_cpu_s: float = 15.0
    """CPU of importing and building a world [s]"""
    steps: int = 200
    """control steps of a mean episode, failures at the suites' limits included"""
    world_mb: int = 1840
    """main memory of a world [MB]"""
    worker_mb: int = 250
    """main memory of the process of Ray that has the world [MB]"""
    install_s: float = 30.0
    """making the benchmark's environment once for each node [s]"""
    log_bytes: int = 400
    """a finished episode in trials.jsonl [bytes]"""
    log_ms: float = 10.0
    """writing it to the disk of the driver [ms]"""
    frame_kb: float = 393.0
    """two raw frames of 256 px that an observation has [kB]"""
    # the user's cluster
    node_cores: int = 16
    """cores of a node"""
    node_mb: int = 64_000
    """main memory of a node [MB]"""
    node_mb_s: float = 1000.0
    """network of a node [MB/s]"""
    gpus: int = 1
    """GPUs that answer, in all (--replicas)"""
    inference_ms: float = 60.0
    """a GPU's time for one observation in a full batch [ms]"""
    steps_per_inference: int = 8
    """steps that one answer drives: 8 for OpenVLA-OFT, 1 for OpenVLA"""
    # one epoch of oxe_magic_soup_plus_minus
    episodes: float = 970e3
    """trajectories (OpenVLA, arXiv 2406.09246)"""
    episode_steps: float = 50.0
    """steps of a mean trajectory: an assumption"""
    dataset_gb: float = 2000.0
    """size of its datasets in RLDS, if all were like Bridge's 124 GB of 60,000 trajectories [GB]"""
    read_kb: float = 40.0
    """bytes that a sample reads: one JPEG of its episode [kB]"""
    request_ms: float = 30.0
    """one read from object storage [ms]"""
    reads_at_once: int = 64
    """reads that a process has open at once"""
    decode_ms: float = 3.0
    """CPU of decoding and resizing one sample [ms]"""
    store_mb_s: float = 5000.0
    """what the object store gives to all nodes together [MB/s]"""
    scan_mb_s: float = 150.0
    """reading, checking and indexing shards, a core [MB/s]"""
    gpu_samples_s: float = 136.0
    """samples a second on a node's 8 A100: OpenVLA's 27 epochs took 64 of them 14 days"""


def evaluation_s(a: Assumptions, nodes: int) -> dict[str, float]:
    """Return part -> seconds that it alone needs for all episodes of the 16 suites."""
    episodes = SUITES * TASKS * STATES
    worlds = nodes * worlds_of(a)
    steps = episodes * a.steps
    opened = SUITES * TASKS * min(worlds, STATES)  # the episodes of a task are spread over all workers
    answers = steps / a.steps_per_inference
    return {
        "steps": a.install_s + steps * a.step_cpu_ms / 1e3 / worlds,
        "opening worlds": opened * a.start_cpu_s / worlds,
        "GPUs": answers * a.inference_ms / 1e3 / a.gpus,
        "network of the GPUs' node": answers * a.frame_kb / 1e3 / a.node_mb_s,
        "trial log": episodes * a.log_ms / 1e3,
    }


def worlds_of(a: Assumptions) -> int:
    """Return how many worlds a node holds, by its cores and its memory."""
    return max(1, min(a.node_cores, a.node_mb // (a.world_mb + a.worker_mb)))


def epoch_s(a: Assumptions, nodes: int) -> dict[str, float]:
    """Return part -> seconds that it alone needs for one epoch."""
    samples = a.episodes * a.episode_steps
    return {
        "GPUs": samples / (a.gpu_samples_s * nodes),
        "decoding": samples * a.decode_ms / 1e3 / (a.node_cores * nodes),
        "requests": samples * a.request_ms / 1e3 / (a.reads_at_once * nodes),
        "object store": samples * a.read_kb / 1e3 / a.store_mb_s,
        "network of a node": samples * a.read_kb / 1e3 / (a.node_mb_s * nodes),
    }


def index_s(a: Assumptions, nodes: int) -> dict[str, float]:
    """Return part -> seconds that it alone needs to index all shards and compute the statistics: two readings."""
    read_mb = 2 * 1e3 * a.dataset_gb
    return {
        "checking": read_mb / (a.scan_mb_s * a.node_cores * nodes),
        "object store": read_mb / a.store_mb_s,
        "network of a node": read_mb / (a.node_mb_s * nodes),
    }


def lines(title: str, parts: Mapping[int, Mapping[str, float]]) -> Sequence[str]:
    """Return a table in Markdown: nodes, hours, what limits, and the hours of every part."""
    names = list(next(iter(parts.values())))
    head = [f"| {title}: nodes | hours | limited by | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    rows = [
        f"| {nodes} | {max(found.values()) / 3600:.2f} | {max(found, key=found.__getitem__)} | "
        + " | ".join(f"{found[name] / 3600:.2f}" for name in names)
        + " |"
        for nodes, found in parts.items()
    ]
    return [*head, *rows, ""]


def main(a: Assumptions) -> None:
    """Print the three tables."""
    episodes = SUITES * TASKS * STATES
    print(f"{episodes} episodes, {worlds_of(a)} worlds a node, trial log {episodes * a.log_bytes / 1e6:.1f} MB\n")
    for title, part in (("16 PRO suites", evaluation_s), ("one epoch", epoch_s), ("index and statistics", index_s)):
        print("\n".join(lines(title, {nodes: part(a, nodes) for nodes in NODES})))


if __name__ == "__main__":
    main(tyro.cli(Assumptions, description=__doc__))
