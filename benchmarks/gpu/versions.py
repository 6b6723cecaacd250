"""Compares the time of an answer between checkouts, on the CPU: `python benchmarks/gpu/versions.py OTHER_CHECKOUT`.

Each version is loaded in a process of its own; they answer in turns, so that a busy computer is busy for all.

    here          this checkout's shipped policy
    here, blocks  the same in blocks of fixed sizes, which a CPU does not use by itself
    other         the other checkout's
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROUNDS, ANSWERS = 15, 8
ROWS = (1, 8)


def child(in_blocks: bool) -> None:
    """Load the shipped policy, and for each line of input print the mean times of an answer by rows [ms]."""
    import numpy as np

    import vla_robot
    from vla_robot.core.messages import Observation

    policy = vla_robot.load_policy("policies/openvla_nano", device="cpu", statistics_key="lift")
    policy.in_blocks = in_blocks
    rng = np.random.default_rng(0)
    state = np.zeros(policy.model.config.inputs.proprio_dim or 0)
    cameras = [camera.name for camera in policy.embodiment.cameras] if policy.embodiment else []
    frames = [{name: rng.integers(0, 256, (84, 84, 3), np.uint8) for name in cameras} for _ in range(max(ROWS))]
    seen = [Observation(images, state, "lift the red cube", 0, 0) for images in frames]
    for rows in ROWS:
        policy.act(seen[:rows])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(*(_mean_ms(lambda rows=rows: policy.act(seen[:rows])) for rows in ROWS), flush=True)


def _mean_ms(work: object) -> float:
    assert callable(work)
    start = time.process_time()  # of this process alone, whatever else runs
    for _ in range(ANSWERS):
        work()
    return (time.process_time() - start) * 1e3 / ANSWERS


def main(other: Path) -> None:
    """Print median times and their ratios to the other checkout's, round by round."""
    here = Path.cwd()
    versions = {"other": (other, False), "here": (here, False), "here, blocks": (here, True)}
    running = {name: _start(folder, here / __file__, blocks) for name, (folder, blocks) in versions.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in versions}
    for _ in range(ROUNDS):
        for name, process in running.items():
            times[name].append(_asked(process))
    for process in running.values():
        process.kill()
    for place, rows in enumerate(ROWS):
        for name, rounds in times.items():
            ms = statistics.median(each[place] for each in rounds)
            pairs = zip(rounds, times["other"], strict=True)
            ratio = statistics.median(mine[place] / theirs[place] for mine, theirs in pairs)
            print(f"{rows} rows, {name}: {ms:.1f} ms of processor time, {ratio:.2f} of the other checkout's")


def _start(folder: Path, script: Path, in_blocks: bool) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--child", *["--blocks"] * in_blocks]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert _pipe(process.stdout).readline() == "ready\n"
    return process


def _asked(process: subprocess.Popen[str]) -> list[float]:
    to, answers = _pipe(process.stdin), _pipe(process.stdout)
    to.write("again\n")
    to.flush()
    return [float(word) for word in answers.readline().split()]


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


if __name__ == "__main__":
    if "--child" in sys.argv:
        child("--blocks" in sys.argv)
    else:
        main(Path(sys.argv[1]).resolve())
