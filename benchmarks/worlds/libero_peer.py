"""LIBERO's own environment with its two cameras, as a program for the environment `libero`: it imports nothing of ours.

    PYTHON -I libero_peer.py SUITE TASK STATE SIZE

It does what openvla's run_libero_eval.py does before an episode: seed 0, a hard reset, the initial state, ten settling
steps. Then each line of its input is a list of actions as JSON; it executes them, and answers with the wall time of all
steps and the digest of the last frames, upright.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

SETTLE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def main(suite: str, task: int, state: int, size: int) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the benchmark prints while it is imported
    from libero.libero import benchmark  # pyright: ignore[reportMissingImports]
    from libero.libero.envs import OffScreenRenderEnv  # pyright: ignore[reportMissingImports]

    tasks = benchmark.get_benchmark(suite)()
    env = OffScreenRenderEnv(
        bddl_file_name=tasks.get_task_bddl_file_path(task), camera_heights=size, camera_widths=size
    )
    env.seed(0)
    env.reset()
    env.set_init_state(tasks.get_task_init_states(task)[state])
    for _ in range(10):
        env.step(SETTLE)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_stepped(env, json.loads(line))), file=answers, flush=True)


def _stepped(env: Any, actions: list[list[float]]) -> dict[str, Any]:
    seen: Any = {}
    begun_s = time.perf_counter()
    for action in actions:
        seen, *_ = env.step(action)
    took_s = time.perf_counter() - begun_s
    frames = b"".join(seen[name][::-1].tobytes() for name in CAMERAS)
    return {"wall_s": took_s, "frames": hashlib.sha256(frames).hexdigest()}


if __name__ == "__main__":
    suite, task, state, size = sys.argv[1:]
    main(suite, int(task), int(state), int(size))
