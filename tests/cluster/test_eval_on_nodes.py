"""`vla eval --cluster`: the outcomes of one process, whatever is killed. VLA_EVAL_EPISODES=60 asks for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

EPISODES = int(os.environ.get("VLA_EVAL_EPISODES", "8"))

pytestmark = [pytest.mark.slow, pytest.mark.sim]


def command(out: Path, *more: str) -> Sequence[str]:
    words = ["eval", "--env", "lift", "--policy", "expert", "--episodes", str(EPISODES), "--videos", "none"]
    return [sys.executable, "-m", "vla_robot.cli.main", *words, "--out", str(out), *more]


def trials(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the log of finished episodes."""
    path = out / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []


def outcomes(out: Path) -> list[tuple[int, str, int]]:
    return sorted((trial["seed"], trial["outcome"], trial["steps"]) for trial in trials(out))


def test_a_killed_node_and_a_killed_driver_cost_no_episode_and_double_none(
    nodes: Callable[..., Any], tmp_path: Path
) -> None:
    assert subprocess.run(command(tmp_path / "one", "--workers", "1"), check=False).returncode == 0
    alone = outcomes(tmp_path / "one")
    assert [seed for seed, _, _ in alone] == list(range(10_000, 10_000 + EPISODES))

    cluster = nodes(3)
    driver = subprocess.Popen(command(tmp_path / "nodes", "--cluster", "auto"))
    eventually(lambda: len(trials(tmp_path / "nodes")) >= 2 or driver.poll() is not None)
    cluster.kill()
    assert driver.wait(timeout=900) == 0
    assert outcomes(tmp_path / "nodes") == alone

    driver = subprocess.Popen(command(tmp_path / "again", "--cluster", "auto"))
    eventually(lambda: len(trials(tmp_path / "again")) >= 1 or driver.poll() is not None)
    driver.kill()
    driver.wait()
    before = trials(tmp_path / "again")
    assert 0 < len(before) < EPISODES
    assert subprocess.run(command(tmp_path / "again", "--cluster", "auto"), check=False).returncode == 0
    assert outcomes(tmp_path / "again") == alone
    assert trials(tmp_path / "again")[: len(before)] == before
