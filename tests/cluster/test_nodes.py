"""Nodes that die, join and differ, on emulated nodes of a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_tasks
from waiting import eventually

from vla_robot.cluster import ray_connection, versions
from vla_robot.cluster.ray_connection import ray_cluster
from vla_robot.core.errors import ContractError, TransportError
from vla_robot.core.ports.tasks import Resources

ONE = Resources(cpus=1, memory_mb=100)

pytestmark = pytest.mark.slow


def test_a_node_killed_in_the_middle_costs_no_job_and_a_new_node_gets_some(
    nodes: Callable[[int], Any], tmp_path: Path
) -> None:
    cluster, gate, begun = nodes(2), tmp_path / "gate", tmp_path / "begun"
    results: list[int] = []
    task = toy_tasks.SlowSquare(gate, begun)
    with ray_cluster("auto") as runner, runner.workers(toy_tasks.counter, 2, ONE) as workers:
        assert runner.most_workers(ONE) == 2

        def drive() -> None:
            results.extend(workers.run(task, range(6)))

        driver = threading.Thread(target=drive)
        driver.start()
        eventually(lambda: begun.exists() and len(begun.read_text().split()) == 2)
        cluster.kill()
        eventually(lambda: runner.most_workers(ONE) == 1)
        cluster.add()
        eventually(lambda: len(begun.read_text().split()) == 3)  # the lost job begins again, on the new node
        gate.touch()
        driver.join(timeout=120)
    assert sorted(results) == [k * k for k in range(6)]


def test_copies_of_a_policy_get_a_gpu_each(nodes: Callable[..., Any]) -> None:
    nodes(1, cores=2, gpus=2)
    with ray_cluster("auto") as runner:
        assert runner.has_gpu()
        with runner.share(toy_tasks.visible_gpus, 1, Resources(1, 100, gpus=1), copies=2) as shared:
            assert {shared.call(toy_tasks.first) for _ in range(4)} == {"0", "1"}


def test_what_cannot_go_on_is_told(nodes: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(1)
    with ray_cluster("auto") as runner, runner.workers(toy_tasks.counter, 1, ONE) as workers:
        with pytest.raises(TransportError, match="lost its worker 4 times"):
            list(workers.run(toy_tasks.Dies(), [1]))
        assert sorted(workers.run(toy_tasks.Dies(), [2, 3])) == [2, 3]
        with pytest.raises(ContractError, match="the cluster has room for 0 of 1 workers with 3 cores, 100 MB each"):
            runner.workers(toy_tasks.counter, 1, Resources(3, 100)).__enter__()
    here = versions.present()
    monkeypatch.setattr(ray_connection, "present", lambda: here | {"vla_robot": "9.9, source 0123"})
    with pytest.raises(ContractError, match=r"source \w+ there and 9\.9, source 0123 here"), ray_cluster("auto"):
        pass
