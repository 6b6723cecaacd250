"""Ray clusters of emulated nodes on this computer: separate processes with a declared number of cores each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STORE_BYTES = 80 * 2**20
NODE_BYTES = 2500 * 10**6


class Nodes:
    """A head without cores, and nodes of one core and 2.5 GB each, which may be killed and added.

    Emulated GPUs are numbers: Ray hands them out, and nothing computes on them.
    """

    def __init__(self, count: int, cores: int = 1, gpus: int = 0) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        for _ in range(count):
            self.add(cores, gpus)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cores: int = 1, gpus: int = 0) -> None:
        room = cores * NODE_BYTES
        node = self._cluster.add_node(num_cpus=cores, num_gpus=gpus, memory=room, object_store_memory=STORE_BYTES)
        self._nodes.append(node)

    def kill(self) -> None:
        """End all processes of a node with SIGKILL, its workers included."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session", autouse=True)
def importable() -> Iterator[None]:
    """Let Ray's processes import this package and toy_tasks, and ask for a token."""
    repository = Path(__file__).resolve().parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")  # Ray reads both once in a process
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        patch.setenv("PYTHONPATH", f"{repository}:{repository / 'tests/shared'}")
        yield


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Nodes]]:
    """Return a function that starts a cluster, which `--cluster auto` then finds."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy computer takes its time
    monkeypatch.setenv("RAY_health_check_timeout_ms", "60000")  # of a living node that is slow; a killed one refuses
    started: list[Nodes] = []

    def start(count: int, cores: int = 1, gpus: int = 0) -> Nodes:
        started.append(Nodes(count, cores, gpus))
        monkeypatch.setenv("RAY_ADDRESS", started[-1].address)
        return started[-1]

    yield start
    for each in started:
        each.close()
