"""`vla serve --cluster`: replicas on nodes answer as one policy here does, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_tasks
from waiting import eventually

from vla_robot.cluster.ray_connection import ray_cluster
from vla_robot.core.errors import VlaError
from vla_robot.core.messages import Observation
from vla_robot.core.ports.tasks import Resources
from vla_robot.serve.policy.batcher import Line
from vla_robot.serve.policy.client import RemotePolicy
from vla_robot.serve.replicas.batcher import ReplicatedBatcher
from vla_robot.serve.replicas.placed import PlacedReplica
from vla_robot.testing import toy_embodiment

ONE = Resources(cpus=1, memory_mb=100)
PATIENCE_S = 300.0
"""For an answer that a busy computer may delay."""

pytestmark = pytest.mark.slow


def answers(batcher: ReplicatedBatcher, count: int) -> list[tuple[float, float]]:
    """The answer to each of `count` requests, and the process that gave it."""
    found: list[tuple[float, float]] = []
    for step in range(count):
        state = np.full(len(toy_embodiment().state), float(step))
        chunk = batcher.ask(Observation({}, state, "go", step, step), client=str(step), timeout_s=PATIENCE_S)
        found.append((float(chunk.actions[0, 0]), chunk.stages_ms["pid"]))
    return found


def states(batcher: ReplicatedBatcher) -> list[str]:
    return [each["state"] for each in batcher.status()["replicas"]]


def test_a_killed_node_costs_no_answer_and_a_new_one_gets_its_replica(nodes: Callable[[int], Any]) -> None:
    cluster = nodes(2)
    with ray_cluster("auto") as runner:
        starts = [partial(PlacedReplica, runner, toy_tasks.served, ONE) for _ in range(2)]
        with contextlib.closing(ReplicatedBatcher(starts, Line(1, 0))) as batcher:
            assert batcher.start().embodiment == toy_embodiment()
            status = batcher.status()["replicas"]
            assert all(each["pid"] and each["device"].startswith("a toy on ") for each in status)
            assert [answer for answer, _ in answers(batcher, 6)] == [2.0 * step for step in range(6)]
            cluster.kill()
            assert [answer for answer, _ in answers(batcher, 6)] == [2.0 * step for step in range(6)]
            eventually(lambda: states(batcher).count("ready") == 1)
            cluster.add()
            eventually(lambda: states(batcher) == ["ready", "ready"])
            # More than one restart if Ray still thought the dead node alive.
            assert sorted(each["restarts"] > 0 for each in batcher.status()["replicas"]) == [False, True]
            assert len(answers(batcher, 4)) == 4


def test_a_policy_that_a_node_cannot_load_is_told(nodes: Callable[[int], Any]) -> None:
    nodes(1)
    with ray_cluster("auto") as runner:
        batcher = ReplicatedBatcher([partial(PlacedReplica, runner, toy_tasks.refused, ONE)], Line(1, 0))
        with contextlib.closing(batcher), pytest.raises(VlaError, match=r"^no policy can be loaded here\.$"):
            batcher.start()


def test_the_command_places_replicas_that_answer_as_the_policy_does_here(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("torch")
    import vla_robot

    told = tmp_path / "serve.json"
    command = [sys.executable, "-P", "-m", "vla_robot.cli.main", "serve", "openvla_nano", "--cluster", "local"]
    command += ["--replicas", "2", "--bind", "tcp://127.0.0.1:0", "--device", "cpu", "--json", str(told)]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert "2 replicas: processes " in lines[3] and " on cpu on " in lines[3]
        with RemotePolicy(lines[2].partition("listening on ")[2].strip(), answer_timeout_s=PATIENCE_S) as policy:
            arm = policy.embodiment
            assert arm is not None
            rng = np.random.default_rng(0)
            images = {c.name: rng.integers(0, 256, (c.height, c.width, 3)).astype(np.uint8) for c in arm.cameras}
            scene = Observation(images, np.zeros(len(arm.state)), "lift the red cube", 0, 0)
            there = policy.act([scene] * 4)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    here = vla_robot.load_policy(repository / "policies" / "openvla_nano", device="cpu").act([scene])
    for chunk in there:
        np.testing.assert_allclose(chunk.actions, here[0].actions, atol=1e-12)
    assert json.loads(told.read_text())["status"]["counts"] == {"answered": 4}
