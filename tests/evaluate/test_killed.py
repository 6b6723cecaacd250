"""`vla eval --suite` killed with SIGKILL at a random moment, and started again: the same table as in one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libero_environment import needs_metaworld

from vla_robot.cli.main import main

pytestmark = [needs_metaworld, pytest.mark.sim, pytest.mark.slow]

EPISODES = 5 * 2
"""Five tasks, two parameter sets."""


def words(out: Path, workers: int) -> list[str]:
    suite = ["eval", "--suite", "metaworld_ml10_test", "--policy", "expert", "--episodes-per-task", "2"]
    return [*suite, "--videos", "none", "--workers", str(workers), "--out", str(out), "--json", str(out) + ".json"]


def table(out: Path) -> tuple[Any, ...]:
    """What does not depend on the clock."""
    found = json.loads(Path(f"{out}.json").read_text())
    episodes = [{name: e[name] for name in e if name != "duration_s"} for e in found["episodes"]]
    return found["rows"], found["by_task"], found["comparisons"], episodes


def finished(out: Path) -> int:
    """Number of finished episodes on the disk."""
    trials = out / "trials.jsonl"
    return trials.read_text().count("\n") - 1 if trials.is_file() else 0


@pytest.mark.timeout(1800)  # some fifteen worlds, a few seconds each where nothing else is at work
def test_a_killed_evaluation_of_a_suite_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(tmp_path / "whole", workers=2)) == 0
    kill_after = int(np.random.default_rng().integers(1, EPISODES - 1))
    command = [sys.executable, "-m", "vla_robot.cli.main", *words(tmp_path / "killed", workers=1)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ) as it:
        while finished(tmp_path / "killed") < kill_after and it.poll() is None:
            time.sleep(0.05)
        it.send_signal(signal.SIGKILL)
    assert it.returncode == -signal.SIGKILL
    assert kill_after <= finished(tmp_path / "killed") < EPISODES, "it was killed in the middle"
    assert main(words(tmp_path / "killed", workers=1)) == 0
    assert table(tmp_path / "killed") == table(tmp_path / "whole"), f"killed after {kill_after} episodes"
