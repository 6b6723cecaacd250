"""Meta-World's own environment, as a program for the environment `metaworld`: it imports nothing of ours.

    PYTHON -I reference.py TASK SET STEPS OUT.npz

It runs the package's scripted policy, and writes its observations, its actions and the package's sets of tasks.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from typing import Any

import numpy as np


def main(task: str, number: int, steps: int) -> dict[str, Any]:
    metaworld, tables = import_module("metaworld"), import_module("metaworld.env_dict")
    name = f"{task}-v3"
    benchmark = metaworld.MT1(name, seed=42)
    env = benchmark.train_classes[name]()
    expert = import_module("metaworld.policies").ENV_POLICY_MAP[name]()
    env.set_task(benchmark.train_tasks[number])
    seen, actions = [env.reset()[0]], []
    for _ in range(steps):
        actions.append(np.clip(expert.get_action(seen[-1]), -1, 1))
        seen.append(env.step(actions[-1])[0])
    sets = {"mt50": list(tables.ALL_V3_ENVIRONMENTS), "mt10": list(tables.MT10_V3)}
    sets |= {f"ml10_{part}": list(tables.ML10_V3[part]) for part in ("train", "test")}
    return {"seen": np.stack(seen), "actions": np.stack(actions), "sets": json.dumps(sets)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    task, number, steps, out = sys.argv[1:]
    np.savez(out, **main(task, int(number), int(steps)))
