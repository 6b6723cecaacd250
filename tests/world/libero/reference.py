"""The benchmark's own evaluation of one episode, as a program for the environment `libero`: it imports nothing of ours.

    PYTHON -I reference.py SUITE TASK STATE SIZE ACTIONS.npy OUT.npz

It does what openvla's run_libero_eval.py does: seed 0, a hard reset, the initial state, ten settling steps, and then
fractions of the controller's range. It writes the observations after the settling and after each action.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

SETTLE = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]


def main(suite: str, task: int, state: int, size: int, actions: Any) -> dict[str, Any]:
    from libero.libero import benchmark  # pyright: ignore[reportMissingImports]
    from libero.libero.envs import OffScreenRenderEnv  # pyright: ignore[reportMissingImports]

    tasks = benchmark.get_benchmark(suite)()
    env = OffScreenRenderEnv(
        bddl_file_name=tasks.get_task_bddl_file_path(task), camera_heights=size, camera_widths=size
    )
    env.seed(0)
    env.reset()
    seen = env.set_init_state(tasks.get_task_init_states(task)[state])
    for _ in range(10):
        seen, *_ = env.step(SETTLE)
    episode, done = [seen], []
    for action in actions:
        seen, _, success, _ = env.step(action.tolist())
        episode.append(seen)
        done.append(success)
    return {
        "front": np.stack([o["agentview_image"] for o in episode]),
        "wrist": np.stack([o["robot0_eye_in_hand_image"] for o in episode]),
        "state": np.stack([_state(o) for o in episode]),
        "success": np.array(done),
    }


def _state(seen: Any) -> Any:
    """The (8,) state that openvla and openpi give their policies."""
    from robosuite.utils.transform_utils import quat2axisangle  # pyright: ignore

    rotation = quat2axisangle(seen["robot0_eef_quat"])
    return np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]])


if __name__ == "__main__":
    suite, task, state, size, actions, out = sys.argv[1:]
    np.savez(out, **main(suite, int(task), int(state), int(size), np.load(actions)))
