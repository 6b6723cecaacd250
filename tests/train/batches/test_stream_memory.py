"""Shuffling over 200,000 frames on disk takes little memory, in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LIMIT_KIB = 2**20


@pytest.mark.slow
def test_shuffling_200000_frames_stays_below_a_gigabyte_per_process(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(tool: str, *arguments: str) -> str:
        command = [sys.executable, str(TOOLS / tool), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    run("synthesise_rlds.py", str(tmp_path), "200000")
    measured = json.loads(run("measure_stream_memory.py", str(tmp_path / "large.toml"), "24", "2"))
    assert measured["steps"] == 190_000, "95 % of 200,000 train"
    assert measured["peak_kib"] < LIMIT_KIB
    assert measured["peak_worker_kib"] < LIMIT_KIB
