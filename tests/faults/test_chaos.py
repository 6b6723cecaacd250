"""Faults drawn at random over a running robot cell. By hand: `python tests/faults/chaos --faults 1000 --cells 2`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FAULTS = 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_whatever_happens_the_arm_is_safe_and_no_finished_episode_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "chaos"), "--faults", str(FAULTS), "--seed", "11"]
    command += ["--json", str(tmp_path / "chaos.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "chaos.json").read_text())
    assert sum(row["count"] for row in result["faults"].values()) == FAULTS
    assert result["wrong"] == []
    assert result["moves"] > FAULTS and result["logs"] > 0
