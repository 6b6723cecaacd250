"""`vla finetune` is killed with -9 again and again, at moments that nobody chose, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vla_robot.recipe.finetune import Architecture

KILLS = 3
DEADLINE_S = 1000.0
"""A run takes seconds where nothing else is at work."""

RUN = """
import os, signal, sys, threading, time
from vla_robot.cli.main import main

def moment():
    try:
        return os.stat(state).st_mtime_ns
    except FileNotFoundError:
        return 0

def kill_self():
    while moment() == before:
        time.sleep(0.001)
    end_s = time.process_time() + float(delay_s)
    while time.process_time() < end_s:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

state, delay_s, *arguments = sys.argv[1:]
before = moment()
if delay_s:
    threading.Thread(target=kill_self, daemon=True).start()
sys.exit(main(arguments))
"""
"""`vla finetune`, which kills itself some computing time after its next checkpoint: the same moments of its work on
a busy computer."""


def launch(recipe: Path, out: Path, delay_s: str = "") -> subprocess.Popen[bytes]:
    state = out / "resume" / "state.json"
    command = [sys.executable, "-P", "-c", RUN, str(state), delay_s, "finetune", str(recipe), "--out", str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the order of sums is part of the bits
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=one_thread)


def finish(recipe: Path, out: Path) -> None:
    with launch(recipe, out) as process:
        told, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, told.decode()


def kill_somewhere(recipe: Path, out: Path, delay_s: float) -> bool:
    """Kill a run some time after it wrote a checkpoint; False when it was done before."""
    with launch(recipe, out, str(delay_s)) as process:
        process.communicate(timeout=DEADLINE_S)
    return process.returncode == -signal.SIGKILL


def losses(out: Path) -> list[dict[str, Any]]:
    """What was measured, line by line."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def recipe_file(tmp_path: Path, demos_folder: Path, tiny_architecture: Architecture) -> Path:
    table = "\n".join(
        f"{name} = {json.dumps(value)}" for name, value in vars(tiny_architecture).items() if value is not None
    )
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'verb = "finetune"\ndata = ["{demos_folder}"]\ndataset_name = "light"\nsteps = 100\nbatch_size = 8\n'
        f"warmup_steps = 2\nevaluate_every = 20\ncheckpoint_every = 5\nheld_out = 0.2\n[architecture]\n{table}\n"
    )
    return path


@pytest.mark.timeout(3600)
def test_a_killed_run_ends_with_the_same_losses_and_weights_bit_for_bit(recipe_file: Path, tmp_path: Path) -> None:
    finish(recipe_file, tmp_path / "whole")
    rng = random.Random()
    delays_s = [rng.uniform(0, 0.3) for _ in range(KILLS)]
    killed = [kill_somewhere(recipe_file, tmp_path / "broken", delay_s) for delay_s in delays_s]
    assert killed[0], delays_s
    finish(recipe_file, tmp_path / "broken")
    weights = sorted(
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "final").rglob("*.safetensors")
    )
    assert weights
    for name in weights:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), delays_s
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole"), delays_s
