"""`vla finetune` is killed with -9 again and again, at random moments, and ends like a run that was not interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_robot.recipe.finetune import Architecture

KILLS = 3

LAUNCHER = """
import json, os, signal, sys, threading, time
import vla_robot.train.finetune
from vla_robot.cli.main import main

def moment(state):
    try:
        return os.stat(state).st_mtime_ns
    except FileNotFoundError:
        return 0

def kill_self(state, before, delay_s):
    while moment(state) == before:
        time.sleep(0.001)
    end_s = time.process_time() + delay_s
    while time.process_time() < end_s:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

def run(state, delay_s, arguments):
    if delay_s is not None:
        threading.Thread(target=kill_self, args=(state, moment(state), delay_s), daemon=True).start()
    return main(arguments)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            os.dup2(2, 1)
            os._exit(run(*json.loads(line)))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""`vla finetune`, which kills itself some computing time after its next checkpoint: the same moments of its work on
a busy computer. Each run is a fork of one process that has imported torch and done nothing else."""

Launch = Callable[..., int]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """`launch(recipe, out, delay_s)` trains in a process of its own and returns its exit status; it is killed some time
    after a checkpoint where `delay_s` says so."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", LAUNCHER],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the order of sums is part of the bits
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdin is not None and launcher.stdout is not None
        orders, ended = launcher.stdin, launcher.stdout

        def run(recipe: Path, out: Path, delay_s: float | None = None) -> int:
            arguments = ["finetune", str(recipe), "--out", str(out)]
            print(json.dumps([str(out / "resume" / "state.json"), delay_s, arguments]), file=orders, flush=True)
            return int(ended.readline())

        yield run


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
        f'verb = "finetune"\ndata = ["{demos_folder}"]\ndataset_name = "light"\nsteps = 60\nbatch_size = 8\n'
        f"warmup_steps = 2\nevaluate_every = 20\ncheckpoint_every = 5\nheld_out = 0.2\n[architecture]\n{table}\n"
    )
    return path


def test_a_killed_run_ends_with_the_same_losses_and_weights_bit_for_bit(
    recipe_file: Path, tmp_path: Path, launch: Launch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(recipe_file, whole) == 0
    rng = random.Random()
    delays_s = [rng.uniform(0, 0.3) for _ in range(KILLS)]
    ended = [launch(recipe_file, broken, delay_s) for delay_s in delays_s]
    assert ended[0] == -signal.SIGKILL, delays_s
    assert launch(recipe_file, broken) == 0
    weights = sorted(path.relative_to(whole) for path in (whole / "final").rglob("*.safetensors"))
    assert weights
    for name in weights:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), delays_s
    assert losses(broken) == losses(whole), delays_s
